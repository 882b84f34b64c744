"""SchNetPack's PaiNN (Schütt, Unke & Gastegger 2021), as its MD17 configuration builds it."""

import torch
from ase import Atoms
from torch.utils.data import dataloader

if not hasattr(dataloader, "T_co"):  # torch renamed what SchNetPack 2.0.4 imports
    dataloader.T_co = dataloader._T_co
from schnetpack import properties
from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
from schnetpack.data.loader import _atoms_collate_fn
from schnetpack.interfaces.ase_interface import AtomsConverter
from schnetpack.model import NeuralNetworkPotential
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.representation import PaiNN
from schnetpack.transform import MatScipyNeighborList

from benchmarks.subjects.peer import Peer

_CUTOFF = 5.0


class Subject(Peer):
    def __init__(self):
        torch.manual_seed(0)
        representation = PaiNN(
            n_atom_basis=128, n_interactions=4, radial_basis=GaussianRBF(20, _CUTOFF), cutoff_fn=CosineCutoff(_CUTOFF)
        )
        self.model = NeuralNetworkPotential(
            representation,
            input_modules=[PairwiseDistances()],
            output_modules=[Atomwise(128, output_key="energy"), Forces()],
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.converter = AtomsConverter(MatScipyNeighborList(_CUTOFF), dtype=torch.float32)
        self.sizes = {"width": 128, "layers": 4, "cutoff": "5 A"}
        self.optimizers = [self.optimizer]
        self.schedule = {"learning_rate": 5e-4, "batch_size": 10}  # of its MD17 configuration

    def collate(self, molecules):
        """SchNetPack's own neighbour lists and collation, done once: in training it caches neighbour lists."""
        systems = []
        for molecule in molecules:
            system = self.converter(Atoms(molecule.atomic_numbers, molecule.positions))
            systems.append({key: value for key, value in system.items() if key != properties.idx_m})
        batch = _atoms_collate_fn(systems)
        batch["energy_label"] = torch.tensor([molecule.energy for molecule in molecules])
        batch["forces_label"] = torch.cat([torch.from_numpy(molecule.forces) for molecule in molecules])
        return batch

    def predicted(self, batch):
        result = self.model(dict(batch))
        return result["energy"], result["forces"], batch["energy_label"], batch["forces_label"]

    def energy_and_forces(self, batch):
        self.model.eval()
        result = self.model(dict(batch))
        self.model.train()
        return result["energy"].detach(), result["forces"].detach()
