"""What a GPU gives: the same numbers, how fast, a training, several processes. Each part is a process with a limit.

    python -m benchmarks.gpu --output results                      # everything, in about a quarter of an hour
    python -m benchmarks.gpu --parts check speed --output results
    python -m benchmarks.gpu --device cpu --quick --output rehearsal

docs/gpu.md says how to bring it to a machine without network. Results are written as they come, OUTPUT/results.md and
a JSON file of each part. Exits with 1 if something failed.
"""

import argparse
import os
import signal
import subprocess
import sys

from benchmarks.gpu.options import Options, add_arguments, options_of

# Minutes after which a part has no more than what it has written; that of the training is on top of its own.
LIMITS = {"check": 2.0, "speed": 4.0, "train": 1.5, "ddp": 1.5}


def run_part(part: str, options: Options, limit: float) -> bool:
    """Run one part; whether it went well."""
    command = [sys.executable, "-m", f"benchmarks.gpu.{part}", f"--device={options.device}"]
    command += [f"--output={options.output}", f"--minutes={options.minutes}", "--config", *options.configs]
    command += ["--quick"] if options.quick else []
    command += ["--states", *map(str, options.states)] if options.states else []
    print(f"{part}, at most {limit:g} minutes", flush=True)
    # A group of its own, so that nothing that it started outlives it.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(60 * limit) == 0
    except subprocess.TimeoutExpired:
        print(f"{part}: stopped after {limit:g} minutes", flush=True)
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--train_minutes", type=float, default=8.0, help="(default: 8)")
    add_arguments(parser)
    parsed = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the part ends too
    well = []
    for part in parsed.parts:
        minutes = parsed.train_minutes if part == "train" else LIMITS[part]
        limit = LIMITS[part] + (minutes if part == "train" else 0.0)
        well.append(run_part(part, options_of(parsed, minutes), limit))
    print(f"see {parsed.output / 'results.md'}")
    sys.exit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
