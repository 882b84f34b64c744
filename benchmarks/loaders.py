"""Rate and memory of the data loaders, on files written here by the documented layouts from bundled molecules.

    pip install -e ".[bench]"
    python -m benchmarks.loaders [NAME ...] [--hub_gigabytes 2]

Writes what it measured into results/loaders.json, where what was not asked for stays. `fragments` is `pcbridge data
fragments` without the choice, on the molecules of the bundled `drug_like`.
Rates are per second of processor time of one core; "parse" is reading and decoding without the chemistry (graph and
stereo perception by RDKit), "rows" is everything. Memory is the peak resident size of a process of its own, of which
importing PyTorch, transformers and datasets is `import_megabytes`.
"""

import argparse
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import IterableDataset, load_dataset
from rdkit import Chem, RDLogger

from dataset_scripts.bundled import files_of_source, load_bundled
from dataset_scripts.collator import mol_from_row
from dataset_scripts.fragments import MAX_HEAVY_ATOMS, RADII
from dataset_scripts.library import read_library
from dataset_scripts.library_counts import count_library
from dataset_scripts.mixture import MixtureBatchSampler
from dataset_scripts.own_data import own_source
from dataset_scripts.qm9 import parse_xyz
from dataset_scripts.raw_sources import SOURCES
from dataset_scripts.schema import B3LYP_6_31GD, FEATURES
from dataset_scripts.sharded import ShardedExamples
from modeling_pcbridge.constants import HARTREE_TO_EV

RESULTS = Path(__file__).parent / "results" / "loaders.json"
NUM_RECORDS = 5_000
RESUME_ROW = 10_000_000
_ROWS_PER_SHARD = 10_000


def molecules() -> list[dict]:
    rows = [row for row in load_bundled("dft_equilibrium", "train") if len(row["atomic_numbers"]) > 14]
    return rows[:500]


def write_qm9(folder: Path) -> Path:
    symbols = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
    (folder / "uncharacterized.txt").write_text("===\n===\n133885 \n===\n")
    path = folder / "dsgdb9nsd.xyz.tar.bz2"
    with tarfile.open(path, "w:bz2") as archive:
        for index, row in enumerate(islice(cycle(molecules()), NUM_RECORDS), 1):
            u0 = row["energy"] / HARTREE_TO_EV
            lines = [str(len(row["atomic_numbers"])), f"gdb {index}\t" + "1.0\t" * 9 + f"0.0\t{u0}\t" + "1.0\t" * 4]
            for z, xyz in zip(row["atomic_numbers"], row["positions"], strict=True):
                lines.append("\t".join([symbols[z], *(f"{x:.10f}" for x in xyz), "1.5*^-6"]))
            lines += ["\t".join(["100.1234"] * 40), f"{row['smiles']}\t{row['smiles']}\t", "InChI\tInChI"]
            content = "\n".join(lines).encode()
            add_member(archive, f"dsgdb9nsd_{index:06d}.xyz", content)
    return path


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def bonds_of(row: dict) -> list[int]:
    bonds = [(bond.GetBeginAtomIdx() + 1, bond.GetEndAtomIdx() + 1) for bond in mol_from_row(row).GetBonds()]
    return np.ravel(bonds).tolist()


# As large as real ones (17 kilobytes): most of them are orbital energies and charges.
_ORBITALS = [np.linspace(-500, 50, 500).tolist()]


def write_archive(folder: Path) -> Path:
    path = folder / "Compound_000000001_000025000.tar.xz"
    with tarfile.open(path, "w:xz", preset=1) as archive:
        for cid, row in enumerate(islice(cycle(molecules()), NUM_RECORDS), 1):
            calculation = {
                "atoms": {
                    "elements": {"number": row["atomic_numbers"]},
                    "coords": {"3d": np.ravel(row["positions"]).tolist()},
                },
                "bonds": {"connections": {"index": bonds_of(row)}},
                "properties": {"charge": 0, "multiplicity": 1, "energy": {"total": row["energy"]}},
                "orbitals": _ORBITALS,
            }
            molecule = {"cid": cid, "Isomeric SMILES": row["smiles"], "B3LYP@PM6": calculation}
            content = json.dumps({"pubchem": molecule}, indent=4).encode()
            add_member(archive, f"{cid:09d}/{cid:09d}.B3LYP@PM6.S0.json", content)
    return path


def write_hub(folder: Path, size: float) -> Path:
    path = folder / "000000001-000253696.json"
    records = []
    for row in molecules():
        record = {
            "state": "S0",
            "pubchem-isomeric-smiles": row["smiles"],
            "atomic-numbers": row["atomic_numbers"],
            "coordinates": np.ravel(row["positions"]).tolist(),
            "connection-indices": bonds_of(row),
            "charge": 0,
            "multiplicity": 1,
            "total-energy": row["energy"],
            "orbital-energies": _ORBITALS,
        }
        records.append(json.dumps(record, indent=4).replace("\n", "\n    "))
    with path.open("w") as file:
        for cid, record in enumerate(cycle(records), 1):
            file.write(("[\n" if cid == 1 else ",\n") + "    {\n" + f'        "cid": {cid},' + record[1:])
            if file.tell() > size:
                break
        file.write("\n]")
    return path


def write_pcqm4mv2(folder: Path) -> Path:
    rows = list(islice(cycle(molecules()), NUM_RECORDS))
    with gzip.open(folder / "data.csv.gz", "wt") as file:
        file.write("idx,smiles,homolumogap\n" + "".join(f"{i},{row['smiles']},5\n" for i, row in enumerate(rows)))
    path = folder / "pcqm4m-v2-train.sdf.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        sdf = "".join(Chem.MolToMolBlock(mol_from_row(row)) + "$$$$\n" for row in rows)
        add_member(archive, "pcqm4m-v2-train.sdf", sdf.encode())
    return path


def write_spice(folder: Path) -> Path:
    """Ten conformations of each molecule."""
    import h5py

    path = folder / "SPICE.hdf5"
    with h5py.File(path, "w") as file:
        for row in molecules():
            group = file.create_group(row["molecule_id"])
            positions = np.repeat(np.array(row["positions"], dtype=np.float32)[None], 10, axis=0)
            group["smiles"], group["subset"] = [row["mapped_smiles"]], ["PubChem"]
            group["atomic_numbers"] = np.array(row["atomic_numbers"], dtype=np.int16)
            for name, values, unit in [
                ("conformations", positions, "bohr"),
                ("dft_total_energy", np.full(10, -100.0), "hartree"),
                ("dft_total_gradient", positions, "hartree/bohr"),
            ]:
                group[name] = values
                group[name].attrs["units"] = unit
    return path


def write_table(folder: Path) -> Path:
    rows = [{k: row[k] for k in ("smiles", "atomic_numbers", "positions", "energy")} for row in molecules()]
    pq.write_table(pa.Table.from_pylist(rows * (NUM_RECORDS // len(rows))), folder / "mine.parquet")
    return folder / "mine.parquet"


def write_shards(folder: Path) -> Path:
    """More than `RESUME_ROW` rows: one shard under many names."""
    (folder / "train").mkdir()
    rows = list(islice(cycle(molecules()), _ROWS_PER_SHARD))
    first = folder / "train" / "00000.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema), first, compression="zstd")
    for shard in range(1, RESUME_ROW // _ROWS_PER_SHARD + 10):
        os.link(first, folder / "train" / f"{shard:05d}.parquet")
    return folder


def write_library(folder: Path) -> Path:
    path = folder / "library.smi"
    path.write_text("".join(f"{row['smiles']} {row['molecule_id']}\n" for row in load_bundled("drug_like", "train")))
    return path


def rate(items: Iterator, parse: Callable | None = None) -> float:
    """Items per second of processor time."""
    start = time.process_time()
    count = 0
    for item in items:
        count += 1
        if parse is not None:
            parse(item)
    return count / (time.process_time() - start)


def streamed_rows(folder: Path) -> IterableDataset:
    return load_dataset("parquet", data_files=str(folder / "train/*.parquet"), split="train", streaming=True)


def training_seconds(folder: Path) -> dict:
    """Wall time until training has its index of the shards, and its first batch after `RESUME_ROW` rows."""
    start = time.perf_counter()
    examples = ShardedExamples(files_of_source(str(folder), "train"), [B3LYP_6_31GD])
    indexed = time.perf_counter()
    sampler = MixtureBatchSampler(
        [examples.sizes], [1.0], 32, 10**9, seed=0, start_batch=RESUME_ROW // 32, shard_lengths=[examples.shard_lengths]
    )
    for index in next(iter(sampler)):
        examples[index]
    first_batch = time.perf_counter() - indexed
    return {"indexed_rows": len(examples), "index_seconds": indexed - start, "first_batch_seconds": first_batch}


def measure(name: str, path: Path) -> dict:
    """What the process of one loader reports."""
    result = {"import_megabytes": peak_megabytes()}
    if name == "prepared_shards":
        result["rows_per_second"] = rate(islice(streamed_rows(path), 5 * _ROWS_PER_SHARD))
        result |= training_seconds(path)
    elif name == "fragments":
        start = time.process_time()
        counts = count_library(read_library(path), MAX_HEAVY_ATOMS, RADII)
        result["molecules_per_second"] = counts.num_molecules / (time.process_time() - start)
    else:
        source = own_source(None, "B3LYP/6-31G*") if name == "own" else SOURCES[name]
        if name == "qm9":
            result["parse_per_second"] = rate(source.read(path), lambda record: parse_xyz(*record[:2]))
        if name.startswith("pubchemqc"):
            result["gigabytes"] = path.stat().st_size / 1e9
            result["parse_per_second"] = rate(source.read(path), lambda record: json.loads(record[1]))
        result["rows_per_second"] = rate(islice(source.read(path), NUM_RECORDS), source.parse)
    return result | {"peak_megabytes": peak_megabytes()}


def peak_megabytes() -> float:
    """Of this program alone; getrusage would include the process it was started from."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="(default: all)")
    parser.add_argument("--hub_gigabytes", type=float, default=2.0)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return
    writers = {
        "qm9": write_qm9,
        "pubchemqc_b3lyp": write_archive,
        "pubchemqc_b3lyp_hub": partial(write_hub, size=arguments.hub_gigabytes * 1e9),
        "pcqm4mv2": write_pcqm4mv2,
        "spice": write_spice,
        "own": write_table,
        "prepared_shards": write_shards,
        "fragments": write_library,
    }
    if unknown := [name for name in arguments.names if name not in writers]:
        parser.error(f"no loader {unknown[0]!r}; there are {', '.join(writers)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in arguments.names or writers:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.loaders", "--measure", name, str(writers[name](Path(folder)))]
            results[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(name, results[name], file=sys.stderr)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
