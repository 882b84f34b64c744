"""What the subjects that are not ours share."""


class Peer:
    """A subject with an `optimizer`, and `predicted(batch)`: energies, forces and the labels of both."""

    def train_step(self, batch):
        self.optimizer.zero_grad()
        energy, forces, energy_label, forces_label = self.predicted(batch)
        ((energy - energy_label).square().mean() + (forces - forces_label).square().mean()).backward()
        self.optimizer.step()
