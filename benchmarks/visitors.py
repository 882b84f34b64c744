"""Visitors of the page at the same time: writes benchmarks/results/visitors.*.

    python -m benchmarks.visitors [--visitors 10] [--conformers 10]

`pcbridge serve` runs as its users run it. At one moment each visitor asks for the conformers of a molecule of its own:
the largest neutral ones of the bundled `drug_like` test split. Until the last visitor is served, a file of the page is
fetched again and again: how long that takes is how the page feels meanwhile. Seconds are of the clock.
"""

import argparse
import http.client
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from dataset_scripts.bundled import load_bundled
from modeling_pcbridge.rdkit_molecules import mol_from_smiles

_ROOT = Path(__file__).parents[1]
_RESULTS = Path(__file__).parent / "results"
_START_SECONDS = 120
_PAUSE = 0.05  # seconds between two fetches of the file


def largest_molecules(number: int) -> list[str]:
    """SMILES of neutral molecules of the bundled test split, the largest first."""
    smiles = [each for each in load_bundled("drug_like", "test")["smiles"] if "+" not in each]
    return sorted(smiles, key=lambda each: mol_from_smiles(each).GetNumAtoms(), reverse=True)[:number]


def visit(port: int, smiles: str, conformers: int, together: threading.Barrier) -> dict:
    """What one visitor sees: the predictions ahead at first, and the seconds until its own begins and ends."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body = json.dumps({"smiles": smiles, "num_conformers": conformers})
    together.wait()
    start = time.perf_counter()
    connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    seen = {"atoms": mol_from_smiles(smiles).GetNumAtoms(), "status": response.status, "ahead": 0}
    for line in response:
        event = json.loads(line)
        if event["type"] == "waiting":
            seen["ahead"] = max(seen["ahead"], event["ahead"])
        else:
            seen[event["type"]] = time.perf_counter() - start
    return seen


def fetch(port: int) -> float:
    """Seconds until a file of the page is there."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/style.css")
    connection.getresponse().read()
    connection.close()
    return time.perf_counter() - start


def measure(num_visitors: int, conformers: int) -> dict:
    """What each visitor saw, and the seconds of the fetches meanwhile."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pcbridge.app.command_line", "serve", "--port", str(port)]
    server = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_served(port)
        molecules = largest_molecules(num_visitors)
        visit(port, "C", 1, threading.Barrier(1))  # what only the first prediction costs
        together = threading.Barrier(num_visitors + 1)
        with ThreadPoolExecutor(num_visitors) as threads:
            visits = [threads.submit(visit, port, smiles, conformers, together) for smiles in molecules]
            together.wait()
            fetches = []
            while not all(each.done() for each in visits):
                fetches.append(fetch(port))
                time.sleep(_PAUSE)
            file = {"fetches": len(fetches), "median_seconds": statistics.median(fetches), "most_seconds": max(fetches)}
            return {"visits": [each.result() for each in visits], "file": file}
    finally:
        server.terminate()
        server.wait()


def _wait_until_served(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            fetch(port)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def table(result: dict) -> list[str]:
    """Lines of visitors.md."""
    visits, file = result["visits"], result["file"]
    about = f"{result['date']}, commit {result['commit']}, {result['machine']}; load at the end {result['load']:.1f}."
    lines = ["# Visitors of the page at the same time", "", about, "", *__doc__.splitlines()[4:], ""]
    lines += ["| atoms | ahead at first | own prediction began after, s | was there after, s |", "|---|---|---|---|"]
    for seen in sorted(visits, key=lambda seen: seen["result"]):
        lines.append(f"| {seen['atoms']} | {seen['ahead']} | {seen['molecule']:.1f} | {seen['result']:.1f} |")
    took = (
        f"{file['median_seconds']:.3f} s in the median of {file['fetches']} fetches, {file['most_seconds']:.2f} at most"
    )
    return [*lines, "", f"{len(visits)} visitors, {result['conformers']} conformers each. The file took {took}.", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=10)
    parser.add_argument("--conformers", type=int, default=10)
    arguments = parser.parse_args()
    describe = ["git", "describe", "--always", "--dirty"]
    result = {
        "date": date.today().isoformat(),
        "commit": subprocess.run(describe, cwd=_ROOT, capture_output=True, text=True, check=False).stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "conformers": arguments.conformers,
        **measure(arguments.visitors, arguments.conformers),
    }
    result["load"] = os.getloadavg()[0]
    (_RESULTS / "visitors.json").write_text(json.dumps(result, indent=2) + "\n")
    (_RESULTS / "visitors.md").write_text("\n".join(table(result)))


if __name__ == "__main__":
    main()
