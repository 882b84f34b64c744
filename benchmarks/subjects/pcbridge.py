"""PCBridge, at the width and depth of the peers or as one of its presets."""

from pathlib import Path

import torch
import yaml
from datasets import disable_progress_bars

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import Example, collate, example_from_row
from modeling_pcbridge import PCBridgeConfig, PCBridgeModel
from modeling_pcbridge.graph_batch import GRAPH_KEYS, GraphBatch
from modeling_pcbridge.losses import LossSettings
from modeling_pcbridge.molecular_graph import graph_from_mol
from modeling_pcbridge.rdkit_molecules import mol_from_smiles, with_structure
from pcbridge.training.compilation import compiled
from pcbridge.training.optimizers import make_optimizers
from train_accelerate import parse

PEER_SIZES = {"hidden_size": 128, "intermediate_size": 128, "vector_size": 64, "num_hidden_layers": 4}
disable_progress_bars()
_CONFIGS = Path(__file__).parents[2] / "configs"


class Subject:
    def __init__(self, sizes: str = "peer", compile: str = ""):
        torch.manual_seed(0)
        self.sources = {}  # shape of a batch -> the molecules and examples it was collated from
        config = PCBridgeConfig(**PEER_SIZES) if sizes == "peer" else PCBridgeConfig.from_preset(sizes)
        self.schedule = {"learning_rate": 4e-3, "batch_size": 32}  # as in experiments/extensive.py
        self.model = PCBridgeModel(config).train()
        if compile:
            self.compiled = compiled(self.model)  # for as long as the worker lives
            self.compiled.__enter__()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.optimizers = make_optimizers(
            self.model, parse([f"--config={_CONFIGS / 'drug_like.yaml'}"]), self.schedule["learning_rate"]
        )
        stages = yaml.safe_load((_CONFIGS / "mini.yaml").read_text())
        self.multi_task_losses = LossSettings(**stages["stage1"]["losses"])
        self.consistency_losses = LossSettings(**stages["stage2"]["losses"])
        energy = sum(
            p.numel() for name, p in self.model.named_parameters() if name.startswith(("encoder.", "energy_decoder."))
        )
        self.sizes = {
            "width": config.hidden_size,
            "layers": config.num_hidden_layers,
            "cutoff": "none",
            "energy_parameters": energy,
        }

    def collate(self, molecules):
        examples = [_example(number, molecule) for number, molecule in enumerate(molecules)]
        batch = collate(examples)
        self.sources[batch["atom_mask"].shape] = molecules, examples
        return batch

    def batch_from_cache(self, batch):
        """What every step of training pays: graph features are computed once and cached."""
        _, examples = self.sources[batch["atom_mask"].shape]
        collate(examples)

    def batch_from_smiles(self, batch):
        """From raw SMILES, everything anew."""
        molecules, _ = self.sources[batch["atom_mask"].shape]
        collate([_example(number, molecule) for number, molecule in enumerate(molecules)])

    def batch_from_parquet(self, batch):
        """From the rows of a Parquet file, everything anew."""
        rows = load_bundled("pm6", "train").select(range(len(batch["energy"])))
        collate([example_from_row(row, ["B3LYP/6-31G*"]) for row in rows])

    def _step(self, batch, settings):
        self.optimizer.zero_grad()
        self.model(**batch, loss_settings=settings).loss.backward()
        self.optimizer.step()

    def predicted(self, batch):
        """Of E alone; atoms one after another, without padding."""
        graph = GraphBatch(**_graph(batch))
        energy, gradient = self.model.interaction_energy_and_gradient(graph, batch["positions"])
        real = graph.atom_mask
        return energy, -gradient[real], batch["energy"].to(energy.dtype), batch["forces"][real].to(energy.dtype)

    def train_step(self, batch):
        """Energies and forces alone: what the peers do."""
        self._step(batch, LossSettings().only(energy_weight=1.0, force_weight=1.0))

    def multi_task_step(self, batch):
        """Stage 1 of configs/mini.yaml: energies, forces and denoising."""
        self._step(batch, self.multi_task_losses)

    def consistency_step(self, batch):
        """Stage 2 of configs/mini.yaml: both consistency losses besides."""
        self._step(batch, self.consistency_losses)

    def energy_and_forces(self, batch):
        self.model.predict_energy(**_graph(batch), positions=batch["positions"])


def _example(number, molecule):
    mol = with_structure(mol_from_smiles(molecule.mapped_smiles), molecule.positions)
    return Example(
        molecule_id=str(number),
        graph=graph_from_mol(mol),
        positions=molecule.positions,
        energy=molecule.energy,
        forces=molecule.forces,
        is_equilibrium=True,
    )


def _graph(batch):
    return {key: batch[key] for key in GRAPH_KEYS}
