"""TorchMD-NET's equivariant transformer (Thölke & De Fabritiis 2022), as its MD17 example configures it, and TensorNet
(Simeon & De Fabritiis 2023), as its rMD17 example does."""

import torch
from torchmdnet.models.model import create_model

from benchmarks.subjects.peer import Peer

# examples/ET-MD17.yaml of torchmd-net, of which only the depth differs, and examples/TensorNet-rMD17.yaml.
MODELS = {
    "equivariant-transformer": {"num_layers": 4, "cutoff_upper": 5.0},
    "tensornet": {"num_layers": 2, "cutoff_upper": 4.5, "equivariance_invariance_group": "O(3)"},
}
SETTINGS = {
    "embedding_dimension": 128,
    "num_rbf": 32,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "attn_activation": "silu",
    "neighbor_embedding": True,
    "num_heads": 8,
    "distance_influence": "both",
    "cutoff_lower": 0.0,
    "max_z": 100,
    "max_num_neighbors": 64,
    "aggr": "add",
    "reduce_op": "add",
    "output_model": "Scalar",
    "derivative": True,
    "atom_filter": -1,
    "prior_model": None,
    "precision": 32,
}


class Subject(Peer):
    def __init__(self, model: str = "equivariant-transformer"):
        torch.manual_seed(0)
        settings = SETTINGS | MODELS[model] | {"model": model}
        self.model = create_model(settings)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.sizes = {"width": 128, "layers": settings["num_layers"], "cutoff": f"{settings['cutoff_upper']:g} A"}
        self.optimizers = [self.optimizer]
        self.schedule = {"learning_rate": 1e-3, "batch_size": 8}  # of these examples

    def collate(self, molecules):
        """PyTorch Geometric's batches, concatenated atoms; neighbours are found inside the model."""
        return {
            "z": torch.cat([torch.from_numpy(m.atomic_numbers) for m in molecules]).long(),
            "pos": torch.cat([torch.from_numpy(m.positions) for m in molecules]),
            "batch": torch.repeat_interleave(
                torch.arange(len(molecules)), torch.tensor([len(m.atomic_numbers) for m in molecules])
            ),
            "energy": torch.tensor([[m.energy] for m in molecules]),
            "forces": torch.cat([torch.from_numpy(m.forces) for m in molecules]),
        }

    def predicted(self, batch):
        energy, forces = self.model(batch["z"], batch["pos"], batch["batch"])
        return energy.squeeze(-1), forces, batch["energy"].squeeze(-1), batch["forces"]

    def energy_and_forces(self, batch):
        self.model.eval()
        energy, forces = self.model(batch["z"], batch["pos"], batch["batch"])
        self.model.train()
        return energy.detach(), forces.detach()
