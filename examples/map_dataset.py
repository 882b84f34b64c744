"""Predict structures, energies and forces for a column of SMILES of a Hugging Face data set; bad rows say why.

python examples/map_dataset.py --output predicted.parquet
"""

import argparse

from datasets import Dataset

from pcbridge.app.dataset_map import BatchPredictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="released model, checkpoint folder or hub name (default: drug_like)")
    parser.add_argument("--output", default="predicted.parquet")
    options = parser.parse_args()

    dataset = Dataset.from_dict({"smiles": ["C[C@H](N)C(=O)O", "no molecule", "c1ccoc1", "[Na+].[Cl-]", None]})
    predict_batch = BatchPredictor(options.model)
    predicted = dataset.map(
        predict_batch, batched=True, batch_size=64, features=predict_batch.features(dataset.features)
    )
    for row in predicted:
        if row["failure"]:
            print(f"{row['smiles']}: {row['failure']}")
        else:
            print(f"{row['smiles']}: {len(row['positions'])} atoms, {row['energy']:.3f} eV")
    predicted.to_parquet(options.output)


if __name__ == "__main__":
    main()
