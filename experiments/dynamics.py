"""Does dynamics on E keep molecules whole? Langevin dynamics of drug-like molecules at 300 K, by torch-sim.

    python -m experiments.dynamics checkpoints/drug_like     # an hour of one core; goes on where it stopped

The first ten molecules of the bundled `drug_like` test split that have an amide or a double bond outside of rings, from
their GFN2-xTB minima. Ten times a picosecond it is seen whether a bond has left the range of its kind
(`StructureChecks`), and whether an amide or a double bond has turned, by more than 90 degrees from where it began:
that takes far longer at 300 K. Needs the extra `torch-sim`. Table, plot and the trace of each molecule go to
experiments/results/dynamics.*.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from tqdm.auto import tqdm

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import mol_from_row
from experiments.figures import plt, save_figure
from experiments.provenance import written_by
from modeling_pcbridge import PCBridgeModel, PCBridgeProcessor
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.structure_checks import StructureChecks

RESULTS = Path(__file__).parent / "results" / "dynamics"
NUM_MOLECULES = 10
TEMPERATURE = 300.0  # kelvin
TIMESTEP = 1.0  # fs
FRICTION = 1.0  # 1/ps
_STEPS_PER_FRAME = 100  # .1 ps
_FRAMES_PER_STATE = 10
_STIFF = [Chem.MolFromSmarts(text) for text in ("[*][CX3](=[O,S])-!@[NX3][*]", "[*]~[C,N]=!@[C,N]~[*]")]
# Of the atoms that a pattern matches, those of the torsion.
_TORSIONS = [(0, 1, 3, 4), (0, 1, 2, 3)]


@dataclass
class Watched:
    """A molecule, its checks, and the torsions (K, 4) that should not turn."""

    name: str
    mol: Chem.Mol
    checks: StructureChecks
    torsions: np.ndarray


def watched(rows) -> list[Watched]:
    """The first molecules with a stiff bond."""
    found = []
    for row in rows:
        mol = mol_from_row(row)
        torsions = {}
        for pattern, places in zip(_STIFF, _TORSIONS, strict=True):
            for match in mol.GetSubstructMatches(pattern, uniquify=False):
                torsion = [match[place] for place in places]
                torsions.setdefault(frozenset(torsion[1:3]), torsion)
        if torsions:
            graph = graph_from_mol(mol)
            found.append(Watched(row["smiles"], mol, StructureChecks(graph), np.array(list(torsions.values()))))
        if len(found) == NUM_MOLECULES:
            break
    return found


def dihedrals(positions: np.ndarray, torsions: np.ndarray) -> np.ndarray:
    """(K,) angles in degrees, -180 to 180, of `torsions` (K, 4) of atoms at (N, 3) `positions`."""
    one, axis, other = np.diff(positions[torsions], axis=1).transpose(1, 0, 2)
    normals = np.cross(one, axis), np.cross(axis, other)
    sine = (np.cross(*normals) * axis).sum(-1) / np.linalg.norm(axis, axis=-1)
    return np.degrees(np.arctan2(sine, (normals[0] * normals[1]).sum(-1)))


def turns(positions: np.ndarray, start: np.ndarray, torsions: np.ndarray) -> np.ndarray:
    """(K,) by how many degrees, 0 to 180, each torsion has turned from where it was in `start`."""
    off = dihedrals(positions, torsions) - dihedrals(start, torsions)
    return np.abs((off + 180) % 360 - 180)


def has_broken_bond(molecule: Watched, positions: np.ndarray) -> bool:
    """Whether the length of a bond is out of the range of its kind, at (N, 3) `positions`."""
    return any(fault.startswith("the bond ") for fault in molecule.checks.faults(positions))


def run(checkpoint: str, molecules: list[Watched], picoseconds: float, folder: Path) -> dict[str, np.ndarray]:
    """Of each frame and molecule: largest turn (degrees), whether a bond is broken, temperature (K), energy (eV)."""
    import torch_sim

    from modeling_pcbridge.torch_sim_model import PCBridgeTorchSimModel

    model = PCBridgeModel.from_pretrained(checkpoint).eval()
    inputs = PCBridgeProcessor.of_config(model.config)([m.mol for m in molecules])
    simulated = PCBridgeTorchSimModel(model, inputs)
    units = torch_sim.units.MetalUnits
    dt, kt = torch.tensor(TIMESTEP * 1e-3 * units.time), torch.tensor(TEMPERATURE * units.temperature)
    initialize, step = torch_sim.nvt_langevin(simulated, dt=dt, kT=kt, gamma=torch.tensor(FRICTION / units.time))
    start = simulated.initial_state()
    ends = np.cumsum([m.mol.GetNumAtoms() for m in molecules])[:-1]
    starts = np.split(start.positions.numpy(), ends)
    num_frames = round(picoseconds * 1e3 / TIMESTEP / _STEPS_PER_FRAME)
    path = folder / "state.npz"
    traces: dict[str, list] = {"turn": [], "broken": [], "temperature": [], "energy": []}
    momenta = None
    if path.exists():
        with np.load(path) as saved:
            traces = {key: list(saved[key]) for key in traces}
            start.positions, momenta = (torch.from_numpy(saved[key]) for key in ("positions", "momenta"))
    state = initialize(start, seed=len(traces["turn"]))
    if momenta is not None:
        state.momenta = momenta
    for frame in tqdm(range(len(traces["turn"]), num_frames), unit="frame", mininterval=30):
        for _ in range(_STEPS_PER_FRAME):
            state = step(state, dt=dt, kT=kt)
        structures = np.split(state.positions.numpy(), ends)
        traces["turn"].append(
            [turns(x, x_0, m.torsions).max() for x, x_0, m in zip(structures, starts, molecules, strict=True)]
        )
        traces["broken"].append([has_broken_bond(m, x) for x, m in zip(structures, molecules, strict=True)])
        kelvin = torch_sim.calc_kT(masses=state.masses, momenta=state.momenta, system_idx=state.system_idx)
        traces["temperature"].append((kelvin / units.temperature).tolist())
        traces["energy"].append(state.energy.tolist())
        if (frame + 1) % _FRAMES_PER_STATE == 0:
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".unfinished.npz")
            np.savez(unfinished, positions=state.positions.numpy(), momenta=state.momenta.numpy(), **traces)
            unfinished.replace(path)
    return {key: np.array(values) for key, values in traces.items()}


def table(molecules: list[Watched], traces: dict[str, np.ndarray]) -> list[str]:
    """A row for each molecule."""
    half = len(traces["turn"]) // 2
    lines = [
        "| | atoms | amides and double bonds | frames with one turned | largest turn, degrees | frames with a bond "
        "broken | temperature, kelvin | energy, last half less first, eV |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for k, molecule in enumerate(molecules):
        turn, broken, kelvin, energy = (traces[key][:, k] for key in ("turn", "broken", "temperature", "energy"))
        cells = [str(molecule.mol.GetNumAtoms()), str(len(molecule.torsions)), str((turn > 90).sum())]
        cells += [f"{turn.max():.0f}", str(broken.sum()), f"{kelvin.mean():.0f}"]
        cells.append(f"{energy[half:].mean() - energy[:half].mean():+.2f}")
        lines.append(f"| `{molecule.name}` | " + " | ".join(cells) + " |")
    return lines


def plot(traces: dict[str, np.ndarray], path: Path) -> None:
    """How far amides and double bonds have turned, and the energy, in time."""
    times = np.arange(1, len(traces["turn"]) + 1) * _STEPS_PER_FRAME * TIMESTEP * 1e-3
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    axes[0].plot(times, traces["turn"], linewidth=0.6)
    axes[0].axhline(90, color="black", linestyle=":", linewidth=1)
    axes[0].set(xlabel="ps", ylabel="largest turn of a stiff bond, degrees", ylim=(0, 180))
    axes[1].plot(times, traces["energy"] - traces["energy"][0], linewidth=0.6)
    axes[1].set(xlabel="ps", ylabel="energy less that of the first frame, eV")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--picoseconds", type=float, default=50.0)
    parser.add_argument("--folder", type=Path, default=Path("outputs/dynamics"), help="of the state to go on from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    molecules = watched(load_bundled("drug_like", "test"))
    traces = run(arguments.checkpoint, molecules, arguments.picoseconds, arguments.folder)
    lines = [
        "# Dynamics at 300 K",
        "",
        f"{arguments.picoseconds:g} ps of Langevin dynamics on E of `{Path(arguments.checkpoint).name}`, steps of "
        f"{TIMESTEP:g} fs, looked at {len(traces['turn'])} times. {written_by('dynamics', arguments.checkpoint)}",
        "",
        *table(molecules, traces),
    ]
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")
    rounded = {key: np.round(values.astype(float), 3).tolist() for key, values in traces.items()}
    RESULTS.with_suffix(".json").write_text(json.dumps({"molecules": [m.name for m in molecules], **rounded}) + "\n")
    plot(traces, RESULTS.with_suffix(".png"))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
