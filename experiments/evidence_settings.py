"""What is trained and measured: every run of the evidence is declared here.

configs/evidence.yaml is the whole of setting "displaced"; the other entries say what they change of it.
"""

from dataclasses import dataclass, field, replace

from pcbridge.evaluation.config import EvaluationConfig
from pcbridge.training.run import CONSISTENCY, MULTI_TASK


@dataclass(frozen=True)
class Setting:
    """One column of the evidence.

    Attributes:
        title: for the tables.
        overrides: options of train_accelerate.py on top of configs/evidence.yaml.
        start: another setting, whose stage 1 is taken; only stage 2 of the consistency model is trained then, and its
            baseline is that of `start`.
        fine_tunes: another setting, whose two models are trained further by configs/fine_tuning.yaml.
        num_seeds: at most so many of the seeds asked for.
    """

    title: str
    overrides: list[str] = field(default_factory=list)
    start: str | None = None
    fine_tunes: str | None = None
    num_seeds: int = 5

    @property
    def begins_from(self) -> str | None:
        """The setting whose models it needs, if any."""
        return self.start or self.fine_tunes

    @property
    def models(self) -> tuple[str, ...]:
        return (CONSISTENCY,) if self.start is not None else (MULTI_TASK, CONSISTENCY)


_PM6 = "{name: pm6, weight: 5}"
_LABELLED = "{name: pm6, weight: 4, only_labelled: true}"
_MINIMA_ONLY = [f"--{stage}.sources=[{_PM6}, {_LABELLED}]" for stage in ("stage1", "stage2")]
_NO_FORCES = ["--stage1.losses.force_weight=0", "--stage2.losses.force_weight=0"]

_LOCAL = "{num_structure_layers: 4, position_std: 1.3, attention_cutoff: 5.0, torsion_terms: true}"

# The data settings of the paper's tables 1 and 2, and the last of them with the E of today's presets.
DATA_SETTINGS = {
    "energies": Setting("PM6 structures, B3LYP energies at them", _MINIMA_ONLY + _NO_FORCES),
    "forces": Setting("and B3LYP forces at them", _MINIMA_ONLY),
    "displaced": Setting("and energies and forces of displaced structures"),
    "local": Setting("displaced, E local and with torsion terms", [f"--model={_LOCAL}"], num_seeds=3),
    "fine_tuned": Setting("displaced, then DFT structures of the training molecules", fine_tunes="displaced"),
}


def _ablation(title: str, start: str = "displaced", num_seeds: int = 2, **losses) -> Setting:
    options = [option for option in DATA_SETTINGS[start].overrides if option.startswith("--model=")]
    options += [f"--stage2.losses.{name}={value}" for name, value in losses.items()]
    return Setting(title, options, start=start, num_seeds=num_seeds)


# As much weight on the structures as the baseline has.
_OFF = {
    "denoising_weight": 1.1,
    "optimality_weight": 0,
    "score_weight": 0,
    "distillation_weight": 0,
    "data_precision": 0,
}
_EQ_11 = _OFF | {"score_form": "noisy", "score_timesteps": "[5, 300]"}
_PAPER = _EQ_11 | {"optimality_weight": 0.1, "score_weight": 1.0, "denoising_weight": 0.01}
# Where Eq. 11 is a stable step down E (experiments/exact_score.py); weights chosen on validation (paper_form.py).
_NEAR = _EQ_11 | {
    "score_timesteps": "[1, 5]",
    "optimality_weight": 0.005,
    "score_weight": 0.01,
    "denoising_weight": 0.01,
}
# Stage 2 with other forms and weights of the consistency losses, from the same stage 1.
ABLATIONS = {
    "paper_form": _ablation(
        "the paper: Eqs. 10 and 11, weights .1 and 1 beside .01 for denoising",
        **_PAPER,
    ),
    "paper_form_local": _ablation("the same, from the local E", "local", 3, **_PAPER),
    "paper_form_near": _ablation("Eqs. 10 and 11 at tau 1 to 5, from the local E", "local", 3, **_NEAR),
    "eq_11": _ablation("Eq. 11 alone, weight .1", **_EQ_11 | {"score_weight": 0.1}),
    "eq_11_small_noise": _ablation(
        "Eq. 11 alone, weight .1, tau 1 to 40", **_EQ_11 | {"score_weight": 0.1, "score_timesteps": "[1, 40]"}
    ),
    "denoised_point": _ablation(
        "gradient at the denoised point, step .03, weight .4, tau 1 to 100",
        **_OFF | {"score_form": "denoised", "score_weight": 0.4, "score_timesteps": "[1, 100]"},
    ),
    "eq_10": _ablation("Eq. 10 alone, weight .005", **_OFF | {"optimality_weight": 0.005}),
    "decoder_only": _ablation(
        "distillation that trains the structure decoder alone", distillation_trains_encoder="false"
    ),
    "no_data_precision": _ablation("distillation beside PM6 denoising at full weight", data_precision=0),
    "with_eq_10": _ablation("distillation and Eq. 10, weight .005", optimality_weight=0.005),
}
SETTINGS = DATA_SETTINGS | ABLATIONS

EVALUATION = EvaluationConfig(split="test", max_molecules=200, num_samples=20, num_inference_steps=20)
QUICK_EVALUATION = replace(EVALUATION, max_molecules=8, num_samples=2, num_inference_steps=5)
# Options that make a run take seconds, to see that everything works.
QUICK_TRAINING = ["--stage1.num_steps=20", "--stage2.num_steps=10"]
QUICK_FINE_TUNING = ["--stage1.num_steps=10"]
