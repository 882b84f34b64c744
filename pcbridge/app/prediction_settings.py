"""What `pcbridge predict` predicts for each molecule."""

from dataclasses import dataclass

# Besides the methods of the model: an ensemble of RDKit's conformers, refined.
CONFORMERS = "conformers"
# Settings that only this method has, and those that only the others have.
OF_CONFORMERS = ("num_conformers", "energy_window", "rmsd_threshold")
OF_OTHER_METHODS = ("num_samples", "rank_by")
# Of which every sample would be the same.
METHODS_WITHOUT_NOISE = ("mean_shift", "correct")


@dataclass(frozen=True)
class PredictionSettings:
    """All that a prediction depends on beside the molecule and the model.

    Attributes:
        method: of `PCBridgeModel.predict_structure`, or `CONFORMERS`.
        num_samples: structures that the model draws.
        rank_by: order of these: "energy", lowest first; "centrality", closest to the other structures first, which on
            QM9 is the better guess at the one that is asked for; None, as they come.
        num_conformers: RDKit's conformers that an ensemble is made of.
        energy_window: kcal/mol above the lowest conformer; what is higher is left out.
        rmsd_threshold: angstrom, of heavy atoms; conformers that are no farther from each other count as one.
        steps: evaluations of the model for a structure; None: as many as `predict_structure` takes by itself.
        mean_shift_steps: after a structure was drawn, see `predict_structure`.
        dispersion: whether D3(BJ) is part of the model's own level, of energies and forces.
        relax: whether structures are then relaxed on the model's energy.
        allow_unlearned_forces: relax also with a model that has learned no forces.
        level_of_theory: of energies and forces; None: the model's first.
        timeout: seconds that RDKit has for the conformers of a molecule.
        seed: of the noise.
    """

    method: str = CONFORMERS
    num_samples: int = 1
    rank_by: str | None = None
    num_conformers: int = 10
    energy_window: float = 6.0
    rmsd_threshold: float = 0.3
    steps: int | None = None
    mean_shift_steps: int = 10
    dispersion: bool = False
    relax: bool = False
    allow_unlearned_forces: bool = False
    level_of_theory: str | None = None
    timeout: float = 10.0
    seed: int = 0

    @property
    def num_structures(self) -> int:
        """Structures of a molecule that are made at once."""
        return self.num_conformers if self.method == CONFORMERS else self.num_samples
