"""What chosen fragments cover of a library and what they do not: as JSON, as a picture and as text."""

import heapq
import json
from collections.abc import Sequence
from pathlib import Path

from rdkit import Chem

from dataset_scripts.fragment_choice import ChosenFragment
from dataset_scripts.library_counts import EnvironmentCount, LibraryCounts
from modeling_pcbridge.atom_environments import environments_of_mol

_UNCOVERED_EXAMPLES = 12
# In the text: coverage after so many fragments, and what is uncovered.
_NUMBERS, _NUM_UNCOVERED = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000), 3


def write_fragments(counts: LibraryCounts, chosen: Sequence[ChosenFragment], path: Path) -> dict:
    """Write chosen fragments as SMILES, beside them the report (.json) and the picture (.png); returns the report."""
    report = summarize(counts, chosen)
    path.write_text("".join(f"{fragment.smiles} {fragment.name}\n" for fragment in chosen))
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    draw_report(counts, chosen, path.with_suffix(".png"))
    return report


def summarize(counts: LibraryCounts, chosen: Sequence[ChosenFragment]) -> dict:
    """The report as JSON has it: counts, coverage after each fragment, failures, what is covered by none."""
    return {
        "molecules": counts.num_molecules,
        "heavy_atoms": counts.num_atoms,
        "failures": {
            reason: {"count": count, "examples": counts.failure_examples[reason]}
            for reason, count in counts.failures.most_common()
        },
        "different_fragments": len(counts.fragments),
        "different_environments": {str(radius): len(table) for radius, table in counts.environments.items()},
        "rarer_ones_were_dropped": counts.least_counts,
        "fragments": [
            {
                "name": fragment.name,
                "smiles": fragment.smiles,
                "heavy_atoms": fragment.num_heavy_atoms,
                "molecules": fragment.num_molecules,
                "coverage": {str(radius): round(share, 5) for radius, share in fragment.coverage.items()},
            }
            for fragment in chosen
        ],
        "uncovered": {
            str(radius): [
                {"smiles": count.smiles, "atom": count.atom, "share": round(count.num_atoms / counts.num_atoms, 5)}
                for count in uncovered_environments(counts, chosen, radius)
            ]
            for radius in counts.radii
        },
    }


def as_text(report: dict) -> str:
    """Lines for the screen: counts, coverage against the number of fragments, and most of what is uncovered."""
    chosen = report["fragments"]
    lines = [
        f"{report['molecules']:8,} molecules cut, {sum(f['count'] for f in report['failures'].values()):,} left out",
        f"{report['different_fragments']:8,} different fragments, {len(chosen):,} chosen",
    ]
    numbers = [*(number for number in _NUMBERS if number < len(chosen)), *([len(chosen)] if chosen else [])]
    lines.append("heavy atoms covered by" + "".join(f"{number:9,}" for number in numbers) + " fragments")
    for radius, examples in report["uncovered"].items():
        shares = "".join(f"{chosen[number - 1]['coverage'][radius]:9.1%}" for number in numbers)
        lines.append(f"           to radius {radius} {shares}")
        if left := [f"atom {e['atom']} of {e['smiles']} ({e['share']:.2%})" for e in examples[:_NUM_UNCOVERED]]:
            lines.append(f"             most of the rest: {', '.join(left)}")
    return "\n".join(lines)


def uncovered_environments(
    counts: LibraryCounts, chosen: Sequence[ChosenFragment], radius: int
) -> list[EnvironmentCount]:
    """The most frequent environments that no chosen fragment has, with an example of each."""
    covered: set[int] = set()
    for fragment in chosen:
        covered.update(environments_of_mol(Chem.MolFromSmiles(fragment.smiles), [radius])[radius])
    left = [count for environment, count in counts.environments[radius].items() if environment not in covered]
    return heapq.nlargest(_UNCOVERED_EXAMPLES, left, key=lambda count: (count.num_atoms, count.smiles))


def draw_report(counts: LibraryCounts, chosen: Sequence[ChosenFragment], path: Path) -> None:
    """A picture: coverage against the number of fragments, and the most frequent environments without any."""
    from matplotlib.figure import Figure
    from rdkit.Chem import Draw

    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.add_gridspec(2, 1)
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    axes = upper.subplots()
    for radius in counts.radii:
        shares = [0.0, *(100 * fragment.coverage[radius] for fragment in chosen)]
        axes.plot(shares, label=f"radius {radius}: {shares[-1]:.1f}%")
    axes.set(xlabel="fragments", ylabel="heavy atoms covered (%)", ylim=(0, 100))
    axes.set_title(f"{counts.num_molecules:,} molecules, {counts.num_atoms:,} heavy atoms", loc="left")
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.3)

    radius = counts.radii[0]
    left = uncovered_environments(counts, chosen, radius)[:8]
    lower.suptitle(f"most frequent environments of radius {radius} without a fragment" if left else "")
    for place, count in zip(lower.subplots(2, 4, squeeze=False).flat, left + [None] * (8 - len(left)), strict=True):
        place.axis("off")
        if count is not None:
            mol = Chem.MolFromSmiles(count.smiles)
            place.imshow(Draw.MolToImage(mol, size=(500, 300), highlightAtoms=[count.atom]))
            place.set_title(f"{100 * count.num_atoms / counts.num_atoms:.2f}% of atoms", fontsize=9)
    figure.savefig(path, dpi=110)
