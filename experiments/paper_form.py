"""The paper's own form of the losses from a local E: as printed, and where exact_score.py says that it can work.

    python -m experiments.paper_form             # two core hours; what evidence.py has trained is taken
    python -m experiments.paper_form --report    # trains nothing

All arms begin from the same stage 1 of each seed (settings `local`, `paper_form_local` and `paper_form_near` of the
evidence). Their structures are refined from PM6 by mean shift at one t, since `paper_form_near` knows small t only. Of
each arm the best t is chosen on the validation split.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from experiments.evidence import Runner
from experiments.evidence_settings import EVALUATION
from experiments.exact_score import mean_bond_error
from experiments.figures import plt, save_figure
from experiments.outside import RESULTS
from experiments.provenance import write_results
from experiments.statistics import compare
from modeling_pcbridge import PCBridgeModel
from pcbridge.evaluation.batches import moved
from pcbridge.evaluation.references import graphs_for, load_references, pm6_structures
from pcbridge.training.run import CONSISTENCY, MULTI_TASK

OUTPUT = RESULTS.with_name("paper_form.json")
BASELINE = "multi-task"
ARMS = {  # title: setting and model of the evidence
    BASELINE: ("local", MULTI_TASK),
    "relaxed on E and denoised (this project)": ("local", CONSISTENCY),
    "Eqs. 10 and 11 as printed, t of 5 to 300": ("paper_form_local", CONSISTENCY),
    "Eqs. 10 and 11, t of 1 to 5": ("paper_form_near", CONSISTENCY),
}
TIMESTEPS = (60, 20, 5, 3, 2)
NUM_STEPS = 10
SEEDS = (0, 1, 2)
_CHOICE, _TEST = "validation", "test"
Errors = dict[str, dict[str, float]]  # split -> t -> mean bond error, angstrom


@torch.no_grad()
def errors_of(checkpoint: Path) -> Errors:
    """Mean bond errors of PM6 structures after mean shift at each t."""
    model = PCBridgeModel.from_pretrained(checkpoint).eval()
    errors: Errors = {}
    for split in (_CHOICE, _TEST):
        evaluation = replace(EVALUATION, split=split)
        references, pm6 = load_references(evaluation, model.config.supported_elements), pm6_structures(evaluation)
        graphs, starts = graphs_for(model, references), [pm6(reference)[0] for reference in references]
        errors[split] = {}
        for timestep in TIMESTEPS:
            model.config.mean_shift_timesteps = [timestep, timestep]
            move = partial(model.mean_shift, num_steps=NUM_STEPS)
            structures = moved(model, graphs, starts, evaluation.batch_size, move)
            errors[split][str(timestep)] = mean_bond_error(references, structures)
    return errors


def best_timestep(seeds: list[Errors]) -> str:
    """With the smallest error of the validation split, mean over seeds."""
    return min(seeds[0][_CHOICE], key=lambda t: np.mean([seed[_CHOICE][t] for seed in seeds]))


def report(found: dict[str, list[Errors]]) -> str:
    """The table in Markdown: means and spreads over seeds, and each arm against multi-task."""
    head = " | ".join(f"t = {timestep}" for timestep in TIMESTEPS)
    lines = [
        "# The paper's form of the losses, from a local E",
        "",
        f"Mean bond error, angstrom, of {EVALUATION.max_molecules} QM9 molecules of the test split against DFT, after "
        f"{NUM_STEPS} steps of mean shift at one t from PM6 structures; mean (standard deviation) over {len(SEEDS)} "
        "seeds, the same stage 1 for all arms of a seed. Against multi-task: paired t-test over seeds, each at the t "
        "that is best on the validation split. Written by `python -m experiments.paper_form`.",
        "",
        f"| | {head} | best t | against {BASELINE} | p |",
        "|---" * (4 + len(TIMESTEPS)) + "|",
    ]
    chosen = {title: [seed[_TEST][best_timestep(seeds)] for seed in seeds] for title, seeds in found.items()}
    for title, seeds in found.items():
        by_timestep = [[seed[_TEST][str(timestep)] for seed in seeds] for timestep in TIMESTEPS]
        cells = " | ".join(f"{np.mean(values):.4f} ({np.std(values, ddof=1):.4f})" for values in by_timestep)
        against = " | "
        if title != BASELINE:
            effect = compare(chosen[BASELINE], chosen[title])
            against = f"{effect.relative:+.0%} | {effect.p_value:.2g}"
        lines.append(f"| {title} | {cells} | {best_timestep(seeds)} | {against} |")
    return "\n".join(lines) + "\n"


def plot(found: dict[str, list[Errors]]) -> None:
    """Errors of the test split by arm and t, one line per seed."""
    figure, axis = plt.subplots(figsize=(6, 4), constrained_layout=True)
    for number, (title, seeds) in enumerate(found.items()):
        for place, seed in enumerate(seeds):
            values = [seed[_TEST][str(timestep)] for timestep in TIMESTEPS]
            axis.plot(TIMESTEPS, values, ".-", color=f"C{number}", label=title if place == 0 else None)
    axis.set(xscale="log", yscale="log", xlabel="t of mean shift", ylabel="bond error, angstrom")
    axis.set_xticks(TIMESTEPS, [str(timestep) for timestep in TIMESTEPS])
    axis.set_xticks([], minor=True)
    axis.legend(fontsize=8)
    save_figure(figure, OUTPUT.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    runner = Runner(quick=False)
    for seed in () if arguments.report else SEEDS:
        for setting in dict.fromkeys(setting for setting, _ in ARMS.values()):
            runner.train(setting, seed)
    found = {title: [errors_of(runner.checkpoint(*arm, seed)) for seed in SEEDS] for title, arm in ARMS.items()}
    write_results(OUTPUT, found, report(found))
    plot(found)


if __name__ == "__main__":
    main()
