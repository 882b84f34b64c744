"""Model cards: one template for training runs and releases, and what a configuration says of the losses it trains."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from rdkit import Chem

from modeling_pcbridge.configuration_pcbridge import PCBridgeConfig
from modeling_pcbridge.losses import LossSettings
from pcbridge.training.config import StageConfig, TrainingConfig

_TEMPLATE = Path(__file__).parent / "card_template.md"
_INTRODUCTION = (
    "Predicts a molecule's equilibrium structure from its graph, and the total electronic energy and forces of any "
    "structure, with one shared encoder."
)


def render_card(
    *,
    title: str,
    level_of_theory: str,
    losses: str,
    data: str,
    limits: str,
    metrics: str,
    introduction: str = _INTRODUCTION,
    use: str = "",
    model_name: str | None = None,
    eval_results: Sequence[EvalResult] = (),
) -> ModelCard:
    """The template with these sections, each Markdown; `eval_results` become `model-index` metadata."""
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="graph-ml",
        license="mit",
        tags=["chemistry", "molecular-conformation", "energy", "forces", "diffusion"],
        model_name=model_name,
        eval_results=list(eval_results) or None,
    )
    sections = {"losses": losses, "data": data, "limits": limits, "metrics": metrics, "use": use}
    return ModelCard.from_template(
        card_data,
        template_path=str(_TEMPLATE),
        title=title,
        introduction=introduction,
        level_of_theory=level_of_theory,
        **sections,
    )


def card_of_run(
    model: PCBridgeConfig, run: TrainingConfig, stages: dict[str, StageConfig], metrics: str | None = None
) -> ModelCard:
    """The card of `model` after `stages`, by name, of `run`; `metrics` is Markdown, once they are known."""
    table = Chem.GetPeriodicTable()
    elements = ", ".join(table.GetElementSymbol(z) for z in model.supported_elements)
    start = f"It started from the weights of `{run.init_from}`. " if run.init_from else ""
    per_update = run.batch_size * run.gradient_accumulation_steps
    at_most = "up to " if run.validation else ""  # the weights are those of the best validation
    trained = [
        f"- {name}: {at_most}{stage.num_steps:,} updates of {per_update} molecules per process from "
        f"{', '.join(f'`{source.name}` (weight {source.weight:g})' for source in stage.sources)}"
        for name, stage in stages.items()
    ]
    return render_card(
        title="PCBridge",
        level_of_theory=model.energy_level_of_theory,
        losses=losses_section(stages),
        data=f"{start}Sources: configurations of the set bundled with the code (`dataset_scripts/bundled/README.md`) "
        "or folders of the person who trained it.\n\n" + "\n".join(trained),
        limits=f"- Elements other than {elements}. Molecules larger than those of the training data are "
        "extrapolations.\n- Radicals, several fragments, metals.\n- It gives structures from the distribution of the "
        "training conformers, not a Boltzmann ensemble.\n- Energies far from the training structures are meaningless.\n"
        "- Stereo marks other than of tetrahedral centres, double bonds and axes of atropisomers are not seen.",
        metrics=metrics or "The run writes them, with data split, sample numbers and seed, when it has evaluated.",
    )


def losses_section(stages: dict[str, StageConfig]) -> str:
    """Which losses of the method, and which that are not of the method, trained the model in each stage."""
    lines = [f"- {name}: {', '.join(_terms(stage.losses))}" for name, stage in stages.items()]
    settings = [stage.losses for stage in stages.values()]
    used = {name for losses in settings for name, weight in losses.weights().items() if weight > 0}
    absent = [
        title
        for name, title in (
            ("optimality_weight", "the optimality consistency (Eqs. 8 to 10)"),
            ("score_weight", "the score consistency (Eq. 11)"),
        )
        if name not in used
    ]
    if absent:
        lines += ["", f"Of the paper's consistency losses {' and '.join(absent)} did not train it."]
    if "distillation_weight" in used:
        lines += [
            "",
            "The distillation is not in the paper: structures are relaxed on the model's own energy and denoised like "
            "data.",
        ]
    return "\n".join(lines)


def _terms(losses: LossSettings) -> list[str]:
    """What each loss in use is, with its weight."""
    reached = "encoder and structure decoder" if losses.distillation_trains_encoder else "structure decoder alone"
    titles = {
        "energy_weight": "energy (Eq. 7)",
        "denoising_weight": "denoising (Eq. 7)",
        "force_weight": "force (Eq. 12)" if losses.force_form == "squared" else "force (Eq. 12, norms)",
        "optimality_weight": "optimality consistency (Eqs. 8 to 10)",
        "score_weight": "score consistency (Eq. 11)"
        if losses.score_form == "noisy"
        else "score consistency at the denoised point (not Eq. 11)",
        "distillation_weight": f"distillation of structures relaxed on E, into {reached}",
    }
    return [f"{titles[name]} {weight:g}" for name, weight in losses.weights().items() if weight > 0]
