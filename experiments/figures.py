"""Pictures of the experiments: how they are kept, and bars for tables of few rows."""

import io
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_COLOURS = 128  # of a palette: a third of the room, and no difference to be seen


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG that is small enough for the repository, and close the figure."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def bar_plot(path: Path, panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """A PNG with a panel for each quantity: in it by category one bar for each series.

    Args:
        path: of the file.
        panels: by the label of the vertical axis, series and category, the same categories for all series of a panel.
    """
    num_bars = sum(len(next(iter(series.values()))) * len(series) for series in panels.values())
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2 + 0.3 * num_bars, 3.5), constrained_layout=True, squeeze=False
    )
    for axis, (label, series) in zip(axes[0], panels.items(), strict=True):
        categories, width = list(next(iter(series.values()))), 0.8 / len(series)
        for place, (name, of_category) in enumerate(series.items()):
            left = np.arange(len(categories)) + (place + 0.5) * width - 0.4
            axis.bar(left, [of_category[category] for category in categories], width, label=name)
        axis.set_xticks(range(len(categories)), categories, rotation=30, ha="right", fontsize=8)
        axis.set_ylabel(label)
        axis.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1))
    save_figure(figure, path)
