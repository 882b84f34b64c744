"""MACE (Batatia et al. 2022): ScaleShiftMACE with the defaults of its training command."""

import mace  # noqa: F401, first: it lets e3nn load its constants under torch >= 2.6
import numpy as np
import torch
from e3nn import o3
from mace import data, modules, tools
from mace.tools import torch_geometric

from benchmarks.subjects.peer import Peer

_CUTOFF = 5.0
_ELEMENTS = (1, 6, 7, 8, 9, 15, 16, 17, 35, 53)


class Subject(Peer):
    def __init__(self):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float32)
        self.table = tools.AtomicNumberTable(_ELEMENTS)
        self.model = modules.ScaleShiftMACE(
            r_max=_CUTOFF,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            num_interactions=2,
            num_elements=len(_ELEMENTS),
            hidden_irreps=o3.Irreps("128x0e + 128x1o"),
            MLP_irreps=o3.Irreps("16x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.zeros(len(_ELEMENTS)),
            avg_num_neighbors=15.0,
            atomic_numbers=self.table.zs,
            correlation=3,
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, amsgrad=True)
        self.sizes = {"width": 128, "layers": 2, "cutoff": "5 A"}
        self.optimizers = [self.optimizer]
        self.schedule = {"learning_rate": 1e-2, "batch_size": 10}  # defaults of its training command

    def collate(self, molecules):
        """MACE's own neighbour lists and batches."""
        systems = []
        for molecule in molecules:
            configuration = data.Configuration(
                atomic_numbers=molecule.atomic_numbers,
                positions=molecule.positions.astype(np.float64),
                properties={"energy": molecule.energy, "forces": molecule.forces},
                property_weights={"energy": 1.0, "forces": 1.0},
            )
            systems.append(data.AtomicData.from_config(configuration, z_table=self.table, cutoff=_CUTOFF))
        loader = torch_geometric.dataloader.DataLoader(systems, batch_size=len(systems), shuffle=False)
        return next(iter(loader))

    def predicted(self, batch):
        result = self.model(batch.to_dict(), training=True)
        return result["energy"], result["forces"], batch.energy, batch.forces

    def energy_and_forces(self, batch):
        result = self.model(batch.to_dict(), training=False)
        return result["energy"].detach(), result["forces"].detach()
