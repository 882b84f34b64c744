"""Validity by independent judges: each wrong structure fails the check that is about it."""

import gzip

import numpy as np
import pytest
from rdkit import Chem

from experiments import validity as experiment
from experiments.perception import has_perceived_bonds, has_perceived_stereo
from modeling_pcbridge.rdkit_molecules import mol_from_smiles, with_conformers
from modeling_pcbridge.rdkit_structures import rdkit_structures
from pcbridge.app.command_line import main
from pcbridge.evaluation.validity import checks, shares


@pytest.fixture(scope="module")
def toluene() -> Chem.Mol:
    return rdkit_structures(mol_from_smiles("Cc1ccccc1"), 1, timeout=10)[0]


@pytest.fixture(scope="module")
def broken(toluene) -> Chem.Mol:
    """The methyl group is pushed out of the ring's plane, its bond too long."""
    positions = toluene.GetConformer().GetPositions()
    normal = np.cross(positions[2] - positions[1], positions[3] - positions[1])
    positions[0] += 1.5 * normal / np.linalg.norm(normal)
    return with_conformers(toluene, positions)


def test_posebusters_passes_a_sound_structure_and_names_what_is_wrong_with_a_broken_one(toluene, broken):
    sound, wrong = checks([toluene, broken])
    assert all(sound.values()) and len(sound) >= 10
    assert not wrong["bond_lengths"] and wrong["sanitization"]
    assert shares([sound, wrong])["bond_lengths"] == shares([sound, wrong])["all_checks"] == 0.5
    assert checks([]) == [] and shares([]) == {}


def test_perceived_bonds_are_those_of_the_molecule_until_one_breaks(toluene, broken):
    assert has_perceived_bonds(toluene)
    assert not has_perceived_bonds(broken)


def test_perceived_stereo_of_a_mirror_image_is_wrong():
    alanine = rdkit_structures(mol_from_smiles("C[C@H](N)C(=O)O"), 1, timeout=10)[0]
    assert has_perceived_stereo(alanine)
    mirrored = with_conformers(alanine, alanine.GetConformer().GetPositions() * [1, 1, -1])
    assert not has_perceived_stereo(mirrored) and has_perceived_bonds(mirrored)
    unmarked = with_conformers(mol_from_smiles("CC(N)C(=O)O"), mirrored.GetConformer().GetPositions())
    assert has_perceived_stereo(unmarked)


def test_perceived_stereo_of_a_double_bond_is_told_apart():
    e, z = (rdkit_structures(mol_from_smiles(smiles), 1, timeout=10)[0] for smiles in ("F/C=C/F", "F/C=C\\F"))
    assert has_perceived_stereo(e) and has_perceived_stereo(z)
    assert not has_perceived_stereo(with_conformers(e, z.GetConformer().GetPositions()))


def test_the_command_names_structures_that_fail_and_records_that_cannot_be_read(toluene, broken, tmp_path, capsys):
    path = tmp_path / "structures.sdf"
    records = [Chem.SDWriter.GetText(mol) for mol in (toluene, broken)]
    path.write_text(records[0] + "nonsense\n$$$$\n" + records[1])
    assert main(["check", str(path)]) == 0
    output = capsys.readouterr()
    assert "| bond lengths | 50.0% |" in output.out and "of 2" in output.out
    assert "record 2" in output.err and "record 3" in output.err and "bond lengths" in output.err
    path.write_text("")
    with pytest.raises(SystemExit, match="1"):
        main(["check", str(path)])
    assert "there is no structure" in capsys.readouterr().err
    packed = tmp_path / "packed.sdf.gz"
    packed.write_bytes(gzip.compress(records[0].encode()))
    assert main(["check", str(packed)]) == 0


def test_the_report_counts_by_size_and_leaves_out_what_the_own_check_refuses(tmp_path):
    def line(name: str, heavy_atoms: int, failed: list[str], sound: bool, closest: float | None) -> dict:
        methods = (experiment.DFT, experiment.RDKIT, experiment.REFINED, experiment.NOISE)
        structures = {method: [{"sound": True, "failed": []}] for method in methods}
        structures[experiment.NOISE].append({"sound": sound, "failed": failed})
        numbers = {str(number): closest for number in experiment.NUM_CONFORMERS}
        where = {"commit": "abc", "machine": "one", "seed": 0}
        return (
            {"name": name, "heavy_atoms": heavy_atoms, "structures": structures}
            | where
            | {"closest": {experiment.RDKIT: numbers, experiment.REFINED: numbers}}
        )

    lines = [line("small", 10, ["stereo"], False, 0.4), line("large", 30, ["bond_lengths"], True, None)]
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ") for row in experiment.report(lines).splitlines()}
    assert rows[experiment.NOISE][1:] == ["4", "50.0", "nan", "50.0", "50.0", "75.0", "100.0", "75.0 |"]
    assert rows[f"{experiment.NOISE}, after the check"][1:5] == ["3", "100.0", "nan", "50.0"]
    assert experiment.covered(lines, experiment.REFINED, 20) == 50.0
    experiment.plot(lines, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
