"""The card that a training run leaves beside its weights: model_card.md with what this run was trained on."""

import re
from pathlib import Path

from rdkit import Chem

from modeling_pcbridge.configuration_pcbridge import PCBridgeConfig
from pcbridge.training.config import StageConfig, TrainingConfig

_TEMPLATE = Path(__file__).parent / "card_template.md"


def card_of_run(model: PCBridgeConfig, run: TrainingConfig, stages: dict[str, StageConfig]) -> str:
    """Markdown of the card of `model` after `stages`, by name, of `run`.

    The template speaks of the bundled data and the models released on it; what depends on the run is said anew.
    """
    table = Chem.GetPeriodicTable()
    elements = ", ".join(table.GetElementSymbol(z) for z in model.supported_elements)
    start = f"It started from the weights of `{run.init_from}`. " if run.init_from else ""
    trained = [
        f"- {name}: {stage.num_steps:,} updates of {run.batch_size * run.gradient_accumulation_steps} molecules a "
        f"process from {', '.join(f'`{source.name}` (weight {source.weight:g})' for source in stage.sources)}"
        for name, stage in stages.items()
    ]
    sections = {
        "What the energy is": f"The total electronic energy in eV, nuclear repulsion included, at "
        f"{model.energy_level_of_theory}. Forces are its exact negative gradient, in eV/angstrom.",
        "Training data": f"{start}Sources: configurations of the set bundled with the code "
        f"(`dataset_scripts/bundled/README.md`) or folders of the person who trained it.\n\n" + "\n".join(trained),
        "What it cannot do": f"- Elements other than {elements}. Molecules larger than those of the training data are "
        "extrapolations.\n- Radicals, several fragments, metals.\n- It gives structures from the distribution of the "
        "training conformers, not a Boltzmann ensemble.\n- Energies far from the training structures are meaningless.\n"
        "- Stereo marks other than tetrahedral centres and double bonds are not seen.",
    }
    # The template is front matter and an introduction, then sections.
    card, *parts = re.split(r"(?m)^(?=## )", _TEMPLATE.read_text())
    for part in parts:
        title = part.partition("\n")[0].removeprefix("## ")
        card += f"## {title}\n\n{sections[title]}\n\n" if title in sections else part
    return card
