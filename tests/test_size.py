"""What holds at any size: initial weights of every preset, and molecules much larger than those of the bundled data."""

import json

import pytest
import torch
from accelerate import Accelerator
from conftest import small_model
from rdkit import Chem
from rdkit.Chem import AllChem, rdMolTransforms
from test_training import ROOT

from dataset_scripts.bundled import load_bundled
from modeling_pcbridge import PCBridgeProcessor
from modeling_pcbridge.configuration_pcbridge import PAPER_SIZES
from modeling_pcbridge.diffusion import centre, centred_noise
from modeling_pcbridge.graph_batch import GRAPH_KEYS, GraphBatch
from pcbridge.training.data import collate_in_parts
from pcbridge.training.initial_model import initial_model
from pcbridge.training.update import LOSSES, RECORD_NAMES, run_update
from train_accelerate import parse

# The real thing has 159 million parameters: its depth at a sixth of the width, and its width at a few layers.
DEEP = {"hidden_size": 128, "intermediate_size": 128, "vector_size": 64}
WIDE = {"num_hidden_layers": 3, "num_structure_layers": 2}


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [
        ("mini", {}),
        pytest.param("paper_size", DEEP, id="as deep as the paper's"),
        pytest.param("paper_size", WIDE, id="as wide as the paper's"),
        pytest.param("paper_size", {}, marks=pytest.mark.slow),
    ],
)
def test_untrained_models_are_gentle_and_take_an_update_of_every_loss(preset, sizes):
    few = [{"name": "pm6", "only_labelled": True, "max_rows": 40}, {"name": "pm6_displaced", "max_rows": 40}]
    config = parse(
        [
            f"--config={ROOT / 'configs/paper.yaml'}",
            f"--preset={preset}",
            f"--model={json.dumps(sizes)}",
            f"--stage1.sources={json.dumps(few)}",
            f"--stage2.sources={json.dumps(few)}",
            "--stage2.losses.distillation_weight=1.0",
        ]
    )
    torch.manual_seed(config.seed)
    model, data = initial_model(config)
    examples = [
        rows[i] for rows in data.examples(config.stage2.sources, "train") for i in range(len(rows) - 4, len(rows))
    ]
    [(batch, ids)] = collate_in_parts(examples, config.max_pairs)
    graph = {key: batch[key] for key in GRAPH_KEYS}

    def largest_force() -> float:
        return model.predict_energy(**graph, positions=batch["positions"]).forces.norm(dim=-1).max().item()

    assert 0.01 < largest_force() < 20  # eV/angstrom; 7 to 14 by seed, of the deepest
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.Adam(model.parameters(), config.stage2.learning_rate)
    values = run_update(
        accelerator.prepare(model), [[(batch, ids)]], 0, config.stage2, config, accelerator, [optimizer]
    )
    record = dict(zip(RECORD_NAMES, values.record.tolist(), strict=True))
    assert values.good
    for name in LOSSES:
        # Eq. 11 has forces over kT, squared: 3 eV/angstrom on 20 atoms are 2e4.
        assert 0 <= record[name] < (1e5 if name in ("loss", "score_consistency_loss") else 3e3), name
    assert record["score_consistency_loss"] > 0 and record["distillation_loss"] > 0 and record["force_loss"] > 0
    assert 0 < record["gradient_norm"] < 1e6
    assert largest_force() < 16


# 41 and 50 heavy atoms folded up, 18 and 29 in a straight line.
ATORVASTATIN = "CC(C)c1c(C(=O)Nc2ccccc2)c(-c2ccccc2)c(-c2ccc(F)cc2)n1CC[C@@H](O)C[C@@H](O)CC(=O)O"
RITONAVIR = "CC(C)c1nc(cs1)CN(C)C(=O)N[C@@H](C(C)C)C(=O)N[C@@H](Cc2ccccc2)C[C@@H]([C@H](Cc3ccccc3)NC(=O)OCc4cncs4)O"
CHAINS = ("C" * 15 + "C(=O)O", "C" * 29)


def structure(smiles: str) -> Chem.Mol:
    """A conformer; where all bonds lie in one chain it is stretched."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(molecule, randomSeed=0, useRandomCoords=True) == 0
    if smiles in CHAINS:
        for first in range(molecule.GetNumHeavyAtoms() - (5 if "O" in smiles else 3)):
            rdMolTransforms.SetDihedralDeg(molecule.GetConformer(), first, first + 1, first + 2, first + 3, 180.0)
    return molecule


@pytest.mark.parametrize("smiles", [ATORVASTATIN, RITONAVIR, *CHAINS])
def test_large_molecules_are_not_shrunk(smiles):
    """A decoder that knows the answer is let through at every noise level; with the old fixed width it was not."""
    inputs = PCBridgeProcessor(PAPER_SIZES["supported_elements"])([structure(smiles)])
    graph = GraphBatch(**{key: inputs[key] for key in GRAPH_KEYS})
    truth = centre(inputs["positions"].double(), graph.atom_mask)
    assert truth.norm(dim=-1).max() > 8
    errors = {}
    for position_std in (None, 1.3):
        model = small_model(position_std=position_std)
        model.encoder.forward = lambda *_: (None, None)
        errors[position_std] = []
        for t in (1, 30, 300, 600, 1000):
            timesteps = torch.tensor([t])
            noise = centred_noise(graph.atom_mask, truth.dtype, torch.Generator().manual_seed(t))
            noisy = model.diffusion.add_noise(truth, noise, timesteps)
            width = model.config.position_std_of(truth.shape[1])
            _, c_skip, c_out = model.diffusion.preconditioning(timesteps, width)
            answer = (truth - c_skip * noisy) / c_out
            model.structure_decoder.forward = lambda *_, answer=answer: answer
            errors[position_std].append((model.denoise(graph, noisy, timesteps) - truth).abs().max().item())
    assert max(errors[None]) < 1e-9
    assert errors[1.3][-1] > 0.1


def test_the_law_of_sizes_on_real_molecules():
    """By number of atoms, the mean width of bundled structures is what `position_std_of` says, within a quarter."""
    widths: dict[int, list[float]] = {}
    for row in load_bundled("pm6", "train"):
        positions = torch.tensor(row["positions"])
        widths.setdefault(len(positions), []).append((positions - positions.mean(0)).square().mean().sqrt().item())
    config = small_model().config
    ratios = {n: torch.tensor(those).mean().item() / config.position_std_of(n) for n, those in widths.items() if n > 4}
    assert len(ratios) > 10 and max(ratios) > 20
    assert min(ratios.values()) > 0.75 and max(ratios.values()) < 1.25
    assert small_model(position_std=1.3).config.position_std_of(20) == 1.3
