"""What the model returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class PCBridgeOutput(ModelOutput):
    """What `PCBridgeModel` returns; absent where it was not asked for or has no label.

    Attributes:
        loss: weighted sum of the terms below, scalar.
        energy_loss: Eq. 7, first term, mean over labelled molecules, eV.
        denoising_loss: Eq. 7, second term.
        force_loss: Eq. 12, square (eV/angstrom), or its "norm" form, eV/angstrom; summed over the atoms of a molecule.
        optimality_consistency_loss: Eq. 10, eV.
        score_consistency_loss: Eq. 11, or its "denoised" form.
        distillation_loss: the denoising term of Eq. 7 on structures relaxed on E; not in the paper.
        energy: (B,) float64, total electronic energy, eV; NaN in rows that no loss asked it of. With labels at their
            level of theory, without dispersion; without labels as `predict_energy` gives it.
        forces: (B, N, 3), minus the gradient of `energy`, eV/angstrom; zero on padding, NaN as `energy`.
    """

    loss: Tensor | None = None
    energy_loss: Tensor | None = None
    denoising_loss: Tensor | None = None
    force_loss: Tensor | None = None
    optimality_consistency_loss: Tensor | None = None
    score_consistency_loss: Tensor | None = None
    distillation_loss: Tensor | None = None
    energy: Tensor | None = None
    forces: Tensor | None = None


@dataclass
class StructureOutput(ModelOutput):
    """Generated structures.

    Attributes:
        positions: (B, num_samples, N, 3), angstrom, each centred; zero on padding.
        is_sound: (B, num_samples) bool, on the CPU: whether nothing is wrong with the structure as one of its graph.
        faults: for each molecule and sample what is wrong, as `StructureChecks.faults` names it: bonds broken or
            formed, atoms too close, stereo marks, aromatic rings, double bonds and amides out of their plane; and with
            `relaxation_steps="converged"` that the relaxation has not.
        beyond_training: for each molecule in what it goes beyond the training data, as `beyond_training` says; None
            for a model that does not know.
    """

    positions: Tensor
    is_sound: Tensor | None = None
    faults: list[list[list[str]]] | None = None
    beyond_training: list[list[str] | None] | None = None


@dataclass
class RelaxationOutput(ModelOutput):
    """Structures relaxed on the model's energy.

    Attributes:
        positions: (B, N, 3), angstrom, each centred; zero on padding.
        energy: (B,) float64, total electronic energy there, eV.
        forces: (B, N, 3), eV/angstrom, there; zero on padding.
        converged: (B,) bool, whether no atom has a force above the threshold. Atoms far apart have none, either.
        faults: for each molecule what is wrong with the structure, as `StructureChecks.faults` names it.
        num_evaluations: (B,) int64, how often the energy was evaluated.
    """

    positions: Tensor
    energy: Tensor | None = None
    forces: Tensor | None = None
    converged: Tensor | None = None
    faults: list[list[str]] | None = None
    num_evaluations: Tensor | None = None
