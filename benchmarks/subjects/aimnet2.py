"""AIMNet2 (Anstine, Zubatyuk & Isayev 2025), as its own aimnet2.yaml configures it, but for the Coulomb energy."""

from importlib.resources import files

import torch
import yaml
from aimnet.config import build_module

from benchmarks.subjects.peer import Peer


class Subject(Peer):
    def __init__(self):
        torch.manual_seed(0)
        config = yaml.safe_load(files("aimnet.models").joinpath("aimnet2.yaml").read_text())
        del config["kwargs"]["outputs"]["lrcoulomb"]  # labels have no charges to learn
        self.model = build_module(config).float()
        self.optimizer = torch.optim.RAdam(self.model.parameters(), lr=4e-4, weight_decay=1e-8)
        self.sizes = {"width": 256, "layers": 3, "cutoff": "5 A"}
        self.optimizers = [self.optimizer]
        # Its own rate; its batches of 512 would be few updates.
        self.schedule = {"learning_rate": 4e-4, "batch_size": 32}

    def collate(self, molecules):
        """Dense batches, padded by atoms of number 0."""
        largest = max(len(m.atomic_numbers) for m in molecules) + 1  # it takes the last atom for padding
        batch = {
            "coord": torch.zeros(len(molecules), largest, 3),
            "numbers": torch.zeros(len(molecules), largest, dtype=torch.long),
            "charge": torch.zeros(len(molecules)),
            "energy": torch.tensor([m.energy for m in molecules]),
            "forces": torch.zeros(len(molecules), largest, 3),
        }
        for row, molecule in enumerate(molecules):
            count = len(molecule.atomic_numbers)
            for key, values in (
                ("coord", molecule.positions),
                ("numbers", molecule.atomic_numbers),
                ("forces", molecule.forces),
            ):
                batch[key][row, :count] = torch.from_numpy(values)
        return batch

    def _forward(self, batch, create_graph: bool):
        coord = batch["coord"].clone().requires_grad_()
        energy = self.model({"coord": coord, "numbers": batch["numbers"], "charge": batch["charge"]})["energy"]
        (gradient,) = torch.autograd.grad(energy.sum(), coord, create_graph=create_graph)
        return energy.float(), -gradient

    def predicted(self, batch):
        energy, forces = self._forward(batch, create_graph=True)
        is_atom = batch["numbers"] > 0
        return energy, forces[is_atom], batch["energy"], batch["forces"][is_atom]

    def energy_and_forces(self, batch):
        energy, forces = self._forward(batch, create_graph=False)
        return energy.detach(), forces.detach()
