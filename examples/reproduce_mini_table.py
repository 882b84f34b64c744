"""Train the mini models as configs/mini.yaml says, on the bundled data, and print the table of results.

    python examples/reproduce_mini_table.py                     # minutes on two CPU cores
    python examples/reproduce_mini_table.py --quick             # a few updates on a few rows; its numbers say nothing

For several GPUs, or to change anything: accelerate launch train_accelerate.py --help.
"""

import argparse
from pathlib import Path

from pcbridge.training.run import run
from train_accelerate import parse

FEW = "[{name: pm6, only_labelled: true, max_rows: 100}, {name: pm6_displaced, max_rows: 100}]"
QUICK = [
    f"--stage1.sources={FEW}",
    f"--stage2.sources={FEW}",
    "--stage1.num_steps=20",
    "--stage2.num_steps=10",
    "--batch_size=8",
    "--evaluation.max_molecules=4",
    "--evaluation.num_samples=1",
    "--evaluation.num_inference_steps=4",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/mini"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    run(parse([f"--output_dir={options.output_dir}", *(QUICK if options.quick else [])]))
    print(f"tables: {options.output_dir / 'results.md'}; pictures and checkpoints are beside it")


if __name__ == "__main__":
    main()
