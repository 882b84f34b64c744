"""The two consistency laws on one bond length: draws two-laws.svg beside this file."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

MINIMUM, WIDTH, DEPTH, KT = 1.1, 2.0, 4.0, 0.6  # angstrom, 1/angstrom, eV, eV
plt.rcParams |= {"svg.hashsalt": "pcbridge", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def energy(r: np.ndarray) -> np.ndarray:
    """Morse potential, eV."""
    return DEPTH * (1 - np.exp(-WIDTH * (r - MINIMUM))) ** 2


def slope(r: np.ndarray) -> np.ndarray:
    decay = np.exp(-WIDTH * (r - MINIMUM))
    return 2 * DEPTH * WIDTH * decay * (1 - decay)


def draw_optimality(axis: plt.Axes) -> None:
    predicted, moved = 1.32, 1.2
    for r, label in ((predicted, "$R_{pred}$"), (moved, "$R_{pred} + \\eta$")):
        axis.plot(r, energy(r), "o", color="#c2410c" if r == predicted else "#1d4ed8")
        axis.annotate(label, (r, energy(r)), (r + 0.05, energy(r) - 0.08))
    axis.hlines([energy(predicted), energy(moved)], 0.86, [predicted, moved], color="#999999", lw=0.7, ls=":")
    ends = (0.9, energy(moved)), (0.9, energy(predicted))
    axis.annotate("", *ends, arrowprops={"arrowstyle": "<->", "color": "#c2410c"})
    axis.text(0.91, 0.3, "loss", color="#c2410c")
    axis.set_title("Optimality: no neighbour is lower")


def draw_score(axis: plt.Axes, r: np.ndarray) -> None:
    density = np.exp(-energy(r) / KT)
    axis.fill_between(r, density, color="#1d4ed8", alpha=0.15, lw=0)
    axis.text(1.16, 0.78, "$p(R)$", color="#1d4ed8")
    for start in (0.95, 1.02, 1.2, 1.3, 1.42):
        length = -0.009 * slope(start) / KT
        arrow = {"arrowstyle": "->", "color": "#c2410c", "lw": 1.5}
        axis.annotate("", (start + length, energy(start)), (start, energy(start)), arrowprops=arrow)
    axis.text(1.3, 1.2, r"score $= -\nabla E / kT$", color="#c2410c", ha="right")
    axis.set_title("Score: the distribution follows the energy")


def main() -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), constrained_layout=True, sharey=True)
    r = np.linspace(0.86, 1.6, 300)
    for axis in axes:
        axis.plot(r, energy(r), color="#222222")
        axis.plot(MINIMUM, 0, "|", color="#222222", ms=12)
        axis.set(xlabel="bond length R (angstrom)", xlim=(0.86, 1.6), ylim=(-0.1, 1.6))
    axes[0].set_ylabel("E (eV)")
    draw_optimality(axes[0])
    draw_score(axes[1], r)
    figure.savefig(Path(__file__).with_name("two-laws.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
