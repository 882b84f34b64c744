"""The losses of the method (Eqs. 7 to 12), one value per molecule, and the settings that switch and weigh them.

Every function takes tensors and returns (B,) losses; `reduce_mean` averages over the molecules that have the label.
Energies are in eV, positions in angstrom. Symbols: S is the denoiser, E the energy model, R a structure.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import InputError, require, require_choices

# Where the ten numbers of the upper triangle of a symmetric 4 x 4 matrix stand.
_SYMMETRIC = [0, 1, 2, 3, 1, 4, 5, 6, 2, 5, 7, 8, 3, 6, 8, 9]

# Which loss each weight of `LossSettings` weighs, by its name in the model's output.
LOSS_NAMES = {
    "energy_weight": "energy_loss",
    "denoising_weight": "denoising_loss",
    "force_weight": "force_loss",
    "optimality_weight": "optimality_consistency_loss",
    "score_weight": "score_consistency_loss",
    "distillation_weight": "distillation_loss",
}


@dataclass(frozen=True)
class LossSettings:
    """Weights and constants of the losses; a term of weight 0 is not computed.

    The defaults are the paper's (force weight and `sigma_max`: not stated there) with the consistency losses off,
    which is the multi-task setting.

    Attributes:
        energy_weight, denoising_weight, force_weight: Eq. 7 and Eq. 12; paper 1.0, 0.01, not stated. Where there are
            no force labels the last has nothing to weigh.
        force_form: "squared" is Eq. 12; "norm" sums the lengths of the force errors instead of their squares.
        optimality_weight, score_weight: Eqs. 8 to 10 and Eq. 11; paper 0.1 and 1.0 in stage 2.
        distillation_weight: of a term that is not in the paper, and no score matching: structures are relaxed on E by
            `relaxation_steps` quasi-Newton steps and then denoised like data (Eq. 7), at the time steps of the
            denoising term. It is what Eq. 11 asks for in the limit kT = 0: the minimum of E without thermal width.
        optimality_timesteps: tau ~ U[first, last] at which pure noise is denoised; paper 400 to 700.
        sigma_max: width of the perturbation eta at most, angstrom; 0.1 in a later configuration of the authors. One
            width is drawn per molecule; the paper's diag(sigma^2) may mean one per coordinate.
        score_timesteps: tau ~ U[first, last] of the score consistency; paper 5 to 300.
        score_form: "noisy" is Eq. 11, the energy gradient at R_tau over kT. "denoised" asks for the gradient at
            S(R_tau) instead and pulls S down it by `gradient_step`; it keeps the minimum of E without thermal width.
        kT: temperature of Eq. 11, eV; paper 0.1.
        gradient_step: step of the "denoised" form, square angstrom per eV, about one over the stiffness of a bond.
        relaxation_steps: of the distillation.
        distillation_trains_encoder: let the distillation train the shared encoder too, as the denoising term of Eq. 7
            does, and not the structure decoder alone. The relaxed structures are constants either way: no loss of
            structures can reach them through E.
        data_precision: angstrom, bounds the weight of the denoising term at small noise (see `denoising_loss`); beside
            the distillation, which teaches what is finer than that. 0 is Eq. 7.
        denoising_exponent: the time of the denoising term is T u^exponent with u ~ U(0, 1); 1 is uniform as in the
            paper, larger values train small noise more.
        align_targets: rotate R onto the noisy structure before Eq. 7 compares, as AlphaFold 3 does. The paper does
            not; without it the denoiser of nearly pure noise shrinks to a point (Proposition 1).
    """

    energy_weight: float = 1.0
    denoising_weight: float = 0.01
    force_weight: float = 1.0
    force_form: Literal["squared", "norm"] = "squared"
    optimality_weight: float = 0.0
    score_weight: float = 0.0
    distillation_weight: float = 0.0
    optimality_timesteps: tuple[int, int] = (400, 700)
    sigma_max: float = 0.1
    score_timesteps: tuple[int, int] = (5, 300)
    score_form: Literal["noisy", "denoised"] = "noisy"
    kT: float = 0.1
    gradient_step: float = 0.03
    relaxation_steps: int = 3
    distillation_trains_encoder: bool = False
    data_precision: float = 0.0
    denoising_exponent: float = 1.0
    align_targets: bool = False

    def only(self, **weights: float) -> "LossSettings":
        """The same constants with the named weights and all others zero."""
        off: dict[str, Any] = dict.fromkeys(self.weights(), 0.0)
        return replace(self, **{**off, **weights})

    def weights(self) -> dict[str, float]:
        """The weight of every loss, by field name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name.endswith("_weight")}

    def in_turn(self) -> list["LossSettings"]:
        """The losses in use, in groups that share no activations: after a backward pass of each its memory is free.

        Energies and forces are of one evaluation of E. In this order the groups draw the noise that they draw together.
        """
        of_labels = {"energy_weight": self.energy_weight, "force_weight": self.force_weight}
        others = [{name: weight} for name, weight in self.weights().items() if name not in of_labels]
        return [self.only(**group) for group in (of_labels, *others) if any(group.values())]

    def check_timesteps(self, num_train_timesteps: int) -> None:
        """Raises InputError if a loss in use asks for a time step that the model does not have."""
        for name in ("optimality", "score"):
            _, last = getattr(self, f"{name}_timesteps")
            if getattr(self, f"{name}_weight") > 0 and last > num_train_timesteps:
                raise InputError(f"{name}_timesteps end at {last}, but the model has {num_train_timesteps} time steps")

    def trained_blocks(self) -> dict[str, tuple[str, ...]]:
        """Which blocks of the model each loss in use gives a gradient to."""
        energy, structure = ("encoder", "energy_decoder"), ("encoder", "structure_decoder")
        blocks = {
            "energy": energy,
            "force": energy,
            "denoising": structure,
            "optimality": ("structure_decoder",),
            "score": ("structure_decoder",),
            "distillation": structure if self.distillation_trains_encoder else ("structure_decoder",),
        }
        return {name: trained for name, trained in blocks.items() if getattr(self, f"{name}_weight") > 0}

    def __post_init__(self):
        require_choices(self)
        for name in ("optimality_timesteps", "score_timesteps"):
            first, last = getattr(self, name)
            require(1 <= first <= last, name, "(first, last) with 1 <= first <= last", (first, last))
        for name in (*self.weights(), "data_precision"):
            require(getattr(self, name) >= 0, name, "zero or more", getattr(self, name))
        for name in ("kT", "sigma_max", "gradient_step", "relaxation_steps", "denoising_exponent"):
            require(getattr(self, name) > 0, name, "positive", getattr(self, name))


def energy_loss(energy: Tensor, label: Tensor) -> Tensor:
    """|E(R) - E_label|, the first term of Eq. 7; (B,) from (B,) and (B,)."""
    return (energy - label).abs()


def denoising_loss(
    denoised_positions: Tensor, positions: Tensor, signal_to_noise: Tensor, precision: float = 0.0
) -> Tensor:
    """||S_t(R_t) - R||^2 / ((1 - abar) / abar + precision^2), the second term of Eq. 7 where `precision` is 0; (B,).

    Args:
        denoised_positions, positions: (B, N, 3).
        signal_to_noise: abar / (1 - abar), (B,).
        precision: angstrom, how well R is known; bounds the weight at small noise.
    """
    weights = 1 / (1 / signal_to_noise + precision**2)
    return weights * (denoised_positions - positions).square().sum((-1, -2))


def force_loss(forces: Tensor, label: Tensor) -> Tensor:
    """||grad E(R) + F||^2, Eq. 12; (B,) from predicted and labelled forces (B, N, 3)."""
    return (forces - label).square().sum((-1, -2))


def force_norm_loss(forces: Tensor, label: Tensor, atom_mask: Tensor) -> Tensor:
    """Sum over atoms of |grad_i E(R) + F_i|, the robust form of Eq. 12; (B,). Large forces do not outweigh small."""
    # The epsilon keeps the derivative finite where prediction and label agree, as they do on padding.
    norms = ((forces - label).square().sum(-1) + 1e-8).sqrt()
    return (norms * atom_mask).sum(-1)


def optimality_consistency_loss(
    positions: Tensor, energy: Tensor, forces: Tensor, perturbed_energy: Tensor, perturbed_forces: Tensor
) -> Tensor:
    """max(0, E(R_pred) - E(R_pred + eta)), Eq. 10; its gradient flows into R_pred only.

    Args:
        positions: (B, N, 3), R_pred, from the structure decoder.
        energy, forces: (B,) and (B, N, 3), of E at R_pred, detached.
        perturbed_energy, perturbed_forces: the same at R_pred + eta.
    """
    gap = energy - perturbed_energy
    # d gap / d R_pred = grad E(R_pred) - grad E(R_pred + eta)
    gap = attach_gradient(gap, positions, perturbed_forces - forces)
    return gap.clamp(min=0)


def score_consistency_loss(score: Tensor, forces: Tensor, kT: float) -> Tensor:
    """||s_tau(R_tau) + grad E(R_tau) / kT||^2, Eq. 11; (B,) from score and detached forces (B, N, 3)."""
    return (score - forces.detach() / kT).square().sum((-1, -2))


def denoised_point_consistency_loss(
    denoised_positions: Tensor, forces: Tensor, signal_to_noise: Tensor, gradient_step: float
) -> Tensor:
    """abar / (1 - abar) ||S - (S + step F(S))||^2 with the bracket held fixed; the "denoised" form of Eq. 11.

    S is pulled to where a gradient step of `gradient_step` on E takes it, so the loss is zero exactly at minima of E.

    Args:
        denoised_positions: (B, N, 3), S(R_tau).
        forces: (B, N, 3), -grad E at S(R_tau).
        signal_to_noise: (B,), as in the denoising loss it works beside.
        gradient_step: square angstrom per eV.
    """
    target = (denoised_positions + gradient_step * forces).detach()
    return signal_to_noise * (denoised_positions - target).square().sum((-1, -2))


def attach_gradient(values: Tensor, inputs: Tensor, gradients: Tensor) -> Tensor:
    """`values` (B,) unchanged, with d values / d inputs set to `gradients` (B, N, 3).

    This is how an energy reaches the structure decoder through its input while no parameter of the energy model is
    part of the graph.
    """
    # inputs - inputs.detach() is exactly zero but carries the derivative.
    linear = ((inputs - inputs.detach()) * gradients.detach()).sum((-1, -2))
    return values.detach() + linear


def reduce_mean(losses: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean of the (B,) losses where `mask` is True; zero when it never is.

    Args:
        losses: (B,).
        mask: (B,) bool.
        count: the number to divide by; by default that of this batch. With many processes or accumulation it is the
            count of labels in the whole update.
    """
    total = torch.where(mask, losses, 0.0).sum()
    return total / (mask.sum() if count is None else count).clamp(min=1)


def align(positions: Tensor, reference: Tensor, atom_mask: Tensor) -> Tensor:
    """Rotate centred `positions` onto centred `reference` (Kabsch, proper rotations only); all (B, N, 3)."""
    with torch.autocast(positions.device.type, enabled=False):  # a target in bfloat16 would be off by .01 angstrom
        rotation = kabsch_rotation(positions, reference, atom_mask)
        return positions @ rotation.mT.to(positions.dtype)


def kabsch_rotation(positions: Tensor, reference: Tensor, atom_mask: Tensor) -> Tensor:
    """The proper rotation Q (B, 3, 3) that minimises sum |Q p - r|^2 over the real atoms; (B, N, 3) centred inputs.

    Horn, J. Opt. Soc. Am. A 4, 629 (1987): Q is that of the unit quaternion with the largest eigenvalue of a 4 x 4
    matrix. The power of the matrix finds it; torch's decompositions would wait for the GPU.
    """
    weights = atom_mask.unsqueeze(-1)
    covariance = (positions * weights).double().mT @ (reference * weights).double()
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in covariance.unbind(-2))
    upper = [xx + yy + zz, yz - zy, zx - xz, xy - yx, xx - yy - zz, xy + yx, zx + xz, -xx + yy - zz, yz + zy]
    upper.append(-xx - yy + zz)
    matrix = torch.stack([upper[place] for place in _SYMMETRIC], dim=-1).unflatten(-1, (4, 4))
    # Shifted so that no eigenvalue is negative; without any extent every rotation is as good.
    size = torch.linalg.matrix_norm(matrix).clamp(min=torch.finfo(matrix.dtype).tiny)[:, None, None]
    power = matrix / size + torch.eye(4, dtype=matrix.dtype, device=matrix.device)
    for _ in range(5):  # to the power 2^20: the largest stands out if it is larger by one part in a million
        power = torch.linalg.matrix_power(power, 16)
        power = power / power.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    # A projector, onto more than one quaternion for a linear molecule; its longest column lies in it.
    longest = power.diagonal(dim1=-2, dim2=-1).argmax(-1)
    quaternion = power.take_along_dim(longest[:, None, None], dim=-1).squeeze(-1)
    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))
