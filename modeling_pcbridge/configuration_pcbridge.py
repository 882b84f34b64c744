"""Configuration of PCBridge models."""

from dataclasses import field
from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .dispersion import with_d3bj
from .errors import InputError, require
from .training_coverage import TrainingCoverage

# The sizes of Ren et al., Appendix B.2, and the elements of PubChemQC's CHNOPSFClNaKMgCa subset. Sizes only: unlike the
# paper's, the denoiser is preconditioned (Karras et al. 2022), distances also multiply attention weights, the diffusion
# time gates the distances instead of entering attention by an outer product, and the structure decoder is not
# GeoMFormer, so its layers, its width and the range of distances are our choices.
PAPER_SIZES = {
    "hidden_size": 768,
    "intermediate_size": 768,
    "vector_size": 384,
    "num_hidden_layers": 24,
    "num_structure_layers": 12,
    "num_attention_heads": 32,
    "num_gaussians": 128,
    "max_distance": 16.0,
    "supported_elements": [1, 6, 7, 8, 9, 11, 12, 15, 16, 17, 19, 20],
}

# Coordinates of N atoms around their centre have a standard deviation of 0.35 sqrt(N) angstrom, as in a random coil:
# within 20% of the mean at every size from 5 to 85 atoms, and the farthest atom of any is 4.7 times as far away. From
# 2,009 molecules: bundled PM6 and DFT structures, r2SCAN-3c minima of FlexiSol and MMFF94 minima of MOSES.
_POSITION_STD_PER_ROOT = 0.35
# At these widths an untrained model of the default size has forces of a few eV/angstrom.
_INITIALIZER_RANGE, _ITS_HIDDEN_SIZE = 0.08, 96
# Chosen on validation molecules of up to nine heavy atoms: bonds get sharper down to here.
_LAST_MEAN_SHIFT_TIMESTEP = 3
# From t = 8, 5 steps are as good as 20; from t = 30 and 60, 20 are as good as 40 (MMFF94 minima, bonds and angles).
_MOST_MEAN_SHIFT_STEPS = 20
# What makes E hold for molecules larger than those it learned from. In every preset, but not the defaults of the
# fields, which are what a config.json from before there were these fields means.
EXTENSIVE = {"attention_cutoff": 5.0, "torsion_terms": True, "out_of_plane_terms": True}
# What drug-like molecules need: H C N O F P S Cl Br I, ions, and energies that do not depend on how they are drawn.
DRUG_LIKE = {
    "supported_elements": [1, 6, 7, 8, 9, 15, 16, 17, 35, 53],
    "supported_total_charges": [-2, -1, 0, 1, 2],
    "resonance_invariant": True,
    "level_differences": True,
}

# What transformers itself puts into a config.json, or passes on, besides the fields of `PreTrainedConfig`.
_TRANSFORMERS_FIELDS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "model_type",
    "name_or_path",
    "torch_dtype",
}


@strict
class PCBridgeConfig(PreTrainedConfig):
    r"""Sizes and constants of a [`PCBridgeModel`]. The sizes by default are those of the `mini` preset, meant
    for a CPU.

    A field that does not exist, is of another type or out of range is refused with an error that names it.

    Args:
        supported_elements: atomic numbers the model has learned; others are refused by the processor.
        supported_total_charges: total charges of molecules the model has learned; others are refused by the processor.
            None, as in checkpoints of before this field: not known, none is refused.
        resonance_invariant: whether graphs describe all resonance forms of a molecule, see `graph_from_mol`; False, as
            in checkpoints of before this field: the form that was drawn.
        hidden_size: width of the node features, a multiple of `num_attention_heads` (768 in the paper).
        intermediate_size: width of the feed-forward blocks (equal to `hidden_size` in the paper).
        vector_size: width of the vector features of the structure decoder, a multiple of `num_attention_heads`.
        num_hidden_layers: layers of the shared encoder (24 in the paper).
        num_structure_layers: layers of the equivariant structure decoder (not stated in the paper).
        num_attention_heads: heads, and so the resolution of every per-pair tensor (32 in the paper).
        num_gaussians: Gaussian basis functions of interatomic distances (128 in the paper), evenly spaced.
        max_distance: centre of the last Gaussian, angstrom; the first is at 0. Farther pairs have no distance: beyond
            8 angstrom lie 2% of the pairs of atoms of bundled molecules, 20% at 30 to 50 atoms and 30% above 60;
            beyond 16 angstrom lie 2% above 60.
        attention_cutoff: angstrom, beyond which atoms do not see each other in a layer of E, so that E of fragments
            holds for large molecules; about 5. None, as in models from before there was one: all see all, as in the
            paper.
        structure_cutoff: angstrom, beyond which atoms more than three bonds apart do not see each other when structures
            are denoised; lengths are those that the network sees, which at much noise are scaled. None: all see all.
        torsion_terms: give E a learned term for each torsion about a bond, see `TorsionEnergy` (not in the paper).
        out_of_plane_terms: and one for each atom with three neighbours, see `OutOfPlaneEnergy` (not in the paper).
        initializer_range: standard deviation of initial weights; by default it falls with the square root of
            `hidden_size` from 0.08 at 96, so that features start equally large at every width.
        layer_norm_eps: added to the variance in layer normalisation.
        num_train_timesteps: diffusion steps T (1000 in the paper); t = 0 is the unperturbed structure.
        beta_start, beta_end: ends of the sigmoid schedule (1e-4 and 2e-2 in the paper).
        length_unit: the length, in angstrom, in which the diffusion noise has unit variance (not stated in the
            paper).
        position_std: standard deviation of centred coordinates of the training structures, angstrom; sets the
            preconditioning of the denoiser, not its target. By default it grows with the number of atoms, see
            `position_std_of`.
        denoising_timestep: tau at which "denoising" generation evaluates pure noise; inside the range the
            optimality loss trains, U[400, 700] in the paper.
        refinement_timestep: t whose noise "refine" adds to a structure; 30 is .07 `length_unit`s with the paper's
            schedule, a few times the difference between PM6 and DFT bond lengths.
        mean_shift_timesteps: from which t, down to which, mean shift falls. Beginning with more noise moves torsions,
            which shows in large molecules; with less, bonds stay as they came. None, as in checkpoints from before
            this field: from `refinement_timestep` to 3.
        num_relaxation_steps: quasi-Newton steps down E at the end of mean shift, unless told otherwise. A few average
            what the two decoders say of stiff bonds and angles and leave the conformer.
        energy_levels_of_theory: the methods whose total electronic energies the model predicts, each by a head and
            reference energies of its own; the first is the model's own, by which it relaxes, ranks and teaches.
        level_differences: E at each level but the last is E at the last, which should be the one with the most labels,
            and what a head of its own adds: differences of levels are smoother than energies, and few labels do.
            False, as in checkpoints from before this field: heads that share nothing but the encoder.
        has_learned_forces: whether forces were among the labels. False: the gradient of E is no force, so that
            relaxation on E and dynamics are refused unless asked for twice; None, as in checkpoints from before this
            field: not known.
        training_coverage: sizes, charges and atom environments of the training molecules, see `TrainingCoverage`; None,
            as in checkpoints from before this field: not known.
        dispersion: "d3bj" adds D3(BJ) to the model's own level, see `dispersion`; labels of that level are without it.
    """

    model_type = "pcbridge"
    _auto_class: ClassVar[str | None] = "AutoConfig"  # what is saved carries this code, for trust_remote_code=True

    supported_elements: list[int] = field(default_factory=lambda: [1, 6, 7, 8, 9])
    supported_total_charges: list[int] | None = None
    resonance_invariant: bool = False
    hidden_size: int = 96
    intermediate_size: int = 96
    vector_size: int = 48
    num_hidden_layers: int = 3
    num_structure_layers: int = 2
    num_attention_heads: int = 8
    num_gaussians: int = 48
    max_distance: float | int = 8.0
    attention_cutoff: float | int | None = None
    structure_cutoff: float | int | None = None
    torsion_terms: bool = False
    out_of_plane_terms: bool = False
    initializer_range: float | int | None = None
    layer_norm_eps: float | int = 1e-5
    num_train_timesteps: int = 1000
    beta_start: float | int = 1e-4
    beta_end: float | int = 2e-2
    length_unit: float | int = 1.0
    position_std: float | int | None = None
    denoising_timestep: int = 550
    refinement_timestep: int = 30
    mean_shift_timesteps: list[int] | None = None
    num_relaxation_steps: int = 0
    energy_levels_of_theory: list[str] = field(default_factory=lambda: ["B3LYP/6-31G*"])
    level_differences: bool = False
    has_learned_forces: bool | None = None
    training_coverage: dict | None = None
    dispersion: Literal["d3bj"] | None = None

    def __post_init__(self, **kwargs):
        if "energy_level_of_theory" in kwargs:  # of checkpoints from before there could be several
            self.energy_levels_of_theory = [kwargs.pop("energy_level_of_theory")]
        unknown = sorted(name for name in kwargs if name not in _TRANSFORMERS_FIELDS and not name.startswith("_"))
        if unknown:
            raise InputError(f"PCBridgeConfig has no field {', '.join(unknown)}")
        super().__post_init__(**kwargs)
        sizes = (
            "hidden_size",
            "intermediate_size",
            "vector_size",
            "num_hidden_layers",
            "num_structure_layers",
            "num_attention_heads",
            "num_gaussians",
            "num_train_timesteps",
        )
        for name in sizes:
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        heads = self.num_attention_heads
        for name in ("hidden_size", "vector_size"):
            size = getattr(self, name)
            require(size % heads == 0, name, f"a multiple of num_attention_heads ({heads})", size)
        if self.initializer_range is None:
            self.initializer_range = _INITIALIZER_RANGE * (_ITS_HIDDEN_SIZE / self.hidden_size) ** 0.5
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(f"need 0 < beta_start <= beta_end < 1, not {self.beta_start} and {self.beta_end}")
        positive = ["length_unit", "max_distance", "initializer_range", "layer_norm_eps"]
        optional = ("position_std", "attention_cutoff", "structure_cutoff")
        positive += [name for name in optional if getattr(self, name) is not None]
        for name in positive:
            number = getattr(self, name)
            require(0 < number < float("inf"), name, "positive and finite", number)
        last = self.num_train_timesteps
        for name in ("denoising_timestep", "refinement_timestep"):
            timestep = getattr(self, name)
            require(1 <= timestep <= last, name, f"in 1..num_train_timesteps ({last})", timestep)
        if (falling := self.mean_shift_timesteps) is not None:
            is_right = len(falling) == 2 and last >= falling[0] >= falling[1] >= 1
            require(is_right, "mean_shift_timesteps", f"two, falling, in 1..num_train_timesteps ({last})", falling)
        require(self.num_relaxation_steps >= 0, "num_relaxation_steps", "at least 0", self.num_relaxation_steps)
        levels = self.energy_levels_of_theory
        are_different = 0 < len(levels) == len(set(levels))
        require(are_different, "energy_levels_of_theory", "one or more different names", levels)
        if self.dispersion is not None:
            with_d3bj(levels[0])  # refuses a level that it has no parameters for
        elements = self.supported_elements
        are_elements = bool(elements) and all(1 <= z <= 118 for z in elements)
        require(are_elements, "supported_elements", "atomic numbers in 1..118", elements)
        if self.supported_total_charges is not None and not self.supported_total_charges:
            raise InputError("supported_total_charges must name at least one charge, or be null")
        _ = self.coverage  # refuses one that is damaged

    def position_std_of(self, num_atoms):
        """`position_std` for molecules of `num_atoms` atoms, angstrom: 0.35 sqrt(N) where it is not a fixed number."""
        return _POSITION_STD_PER_ROOT * num_atoms**0.5 if self.position_std is None else self.position_std

    @property
    def mean_shift_ends(self) -> tuple[int, int]:
        """The first and the last t of mean shift."""
        if self.mean_shift_timesteps is not None:
            return self.mean_shift_timesteps[0], self.mean_shift_timesteps[1]
        return self.refinement_timestep, min(_LAST_MEAN_SHIFT_TIMESTEP, self.refinement_timestep)

    @property
    def coverage(self) -> TrainingCoverage | None:
        """`training_coverage`; None where it is not known."""
        return None if self.training_coverage is None else TrainingCoverage.from_json(self.training_coverage)

    @property
    def num_mean_shift_steps(self) -> int:
        """How many steps of mean shift refine a structure: two for three t of the first one's, 20 at most."""
        return min(max(2 * self.mean_shift_ends[0] // 3, 1), _MOST_MEAN_SHIFT_STEPS)

    @property
    def energy_level_of_theory(self) -> str:
        """The model's own level of theory, with dispersion if it has that."""
        own = self.energy_levels_of_theory[0]
        return own if self.dispersion is None else with_d3bj(own)

    def find_level_of_theory(self, name: str | None) -> tuple[int, bool]:
        """The place of a level in `energy_levels_of_theory`, and whether dispersion is added; None is the model's own.

        Raises:
            InputError: the model has not learned it.
        """
        if name is None or name == self.energy_level_of_theory:
            return 0, self.dispersion is not None
        if name not in self.energy_levels_of_theory:
            known = ", ".join(dict.fromkeys([self.energy_level_of_theory, *self.energy_levels_of_theory]))
            raise InputError(f"the model has not learned energies at {name!r}, only at {known}")
        return self.energy_levels_of_theory.index(name), False

    def find_other_level_of_theory(self, name: str | None) -> str:
        """A level whose minima can be moved to the model's own; None is the only one.

        Raises:
            InputError: the model has no head for it beside its own, no forces, or several where none is named.
        """
        own, *others = self.energy_levels_of_theory
        if name is None and len(others) == 1:
            [name] = others
        if name not in others:
            named = "minima of another level" if name is None else f"minima of {name!r}"
            known = f"the model knows the way from {', '.join(others) or 'no other level'}"
            raise InputError(f"{named} cannot be moved to {own}; {known}")
        self.check_forces_are_learned("correcting a structure")
        return name

    def check_forces_are_learned(self, what: str) -> None:
        """Raises InputError that names `what` needs forces, where the model has learned none."""
        if self.has_learned_forces is False:
            raise InputError(
                f"{what} needs forces, but this model has learned from energies of minima only: its gradients lead "
                "away from them; take another model, or allow it by allow_unlearned_forces"
            )

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "PCBridgeConfig":
        """The `mini`, `paper_size` or `drug_like` configuration, with single fields overridden.

        Raises:
            ValueError: no such preset.
        """
        presets: dict[str, dict] = {"mini": {}, "paper_size": PAPER_SIZES, "drug_like": DRUG_LIKE}
        if name not in presets:
            raise InputError(f"no preset {name!r}; there are {', '.join(presets)}")
        return cls(**{**EXTENSIVE, **presets[name], **overrides})
