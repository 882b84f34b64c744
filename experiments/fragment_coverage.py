"""What the bundled fragments cover of drug-like molecules, in the report of `pcbridge data fragments`.

    python -m experiments.fragment_coverage        # half a minute of one core

The library is the bundled `drug_like`, all splits; the fragments are the labelled molecules of `fragments`, training
split, in their order there: what bundled labels can teach. Writes experiments/results/fragment_coverage.json and .png.
"""

import json

from datasets import concatenate_datasets

from dataset_scripts.bundled import load_bundled
from dataset_scripts.fragment_choice import in_order
from dataset_scripts.fragment_report import draw_report, summarize
from dataset_scripts.fragments import MAX_HEAVY_ATOMS, RADII
from dataset_scripts.library import LibraryRecord
from dataset_scripts.library_counts import count_library
from dataset_scripts.splits import SPLITS
from experiments.qm9_benchmark import RESULTS

OUTPUT = RESULTS / "fragment_coverage.json"


def report() -> dict:
    """Write both files; returns what the JSON has."""
    library = concatenate_datasets([load_bundled("drug_like", split) for split in SPLITS])
    records = map(LibraryRecord, library["molecule_id"], library["smiles"])
    counts = count_library(records, MAX_HEAVY_ATOMS, RADII)
    fragments = in_order(dict.fromkeys(load_bundled("fragments", "train")["smiles"]), counts)
    found = summarize(counts, fragments)
    OUTPUT.write_text(json.dumps(found, indent=1) + "\n")
    draw_report(counts, fragments, OUTPUT.with_suffix(".png"))
    return found


def main() -> None:
    found = report()
    print(
        f"{found['molecules']:,} molecules, {found['heavy_atoms']:,} heavy atoms, {len(found['fragments'])} fragments"
    )
    for radius, share in found["fragments"][-1]["coverage"].items():
        print(f"{share:8.1%} of the heavy atoms are covered to radius {radius}")


if __name__ == "__main__":
    main()
