"""What all pictures share: colours that the colour-blind can tell apart, panels, tick labels.

M. Okabe, K. Ito: Color universal design, 2008 (the palette).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.4"
SEQUENTIAL, DIVERGING = "magma", "PuOr_r"
FEW = 60  # names along an axis
LONG = 22  # letters of a name


def new_axes(size: tuple[float, float] | None = None) -> Any:
    """One axes in a new figure; ``size`` in inches."""
    return plt.subplots(layout="constrained", figsize=size)[1]


def columns_of(k: int) -> int:
    """Columns of a grid of k panels that is about square."""
    return int(np.ceil(np.sqrt(k)))


def panels(
    k: int, axes: Any, size: tuple[float, float] = (1.9, 1.7), columns: int | None = None
) -> list[Any]:
    """Give k axes: the first of those given, or a new grid with the surplus hidden."""
    if axes is not None:
        given = list(np.ravel(axes))
        if len(given) < k:
            raise ValueError(f"{len(given)} axes for {k} components; pass {k} axes, or none.")
        return given[:k]
    columns = columns or columns_of(k)
    width, height = size[0] * columns, size[1] * -(-k // columns)
    return grid(plt.figure(layout="constrained", figsize=(width, height)), k, columns)


def grid(figure: Any, k: int, columns: int) -> list[Any]:
    """Give k axes of a figure, row by row, in a grid whose surplus is hidden."""
    axes = figure.subplots(-(-k // columns), columns, squeeze=False)
    for ax in axes.ravel()[k:]:
        ax.set_visible(False)
    return list(axes.ravel()[:k])


def colour_bar(image: Any, label: str) -> None:
    """A scale beside an image."""
    bar = image.axes.figure.colorbar(image, ax=image.axes, fraction=0.05, pad=0.02)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def short_names(names: Sequence[Any]) -> list[str]:
    """Names as drawn: cut where long, and no formulas of matplotlib's (a $ stays a $)."""
    texts = [str(name) for name in names]
    cut = [text if len(text) <= LONG else text[: LONG - 1] + "…" for text in texts]
    return [text.replace("$", r"\$") for text in cut]


def scale_to(ax: Any, values: Any) -> None:
    """Set the y range to that of the values, with a margin."""
    low, high = float(values.min()), float(values.max())
    if ax.get_yscale() == "log":
        margin = max((high / low) ** 0.08, 1.01)
        ax.set_ylim(low / margin, high * margin)
    else:
        margin = 0.08 * (high - low) or 1.0
        ax.set_ylim(low - margin, high + margin)


def plain_ticks(ax: Any) -> None:
    """0.02 and 0.025 rather than 2 × 10⁻² and nothing."""
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log" and high > 10 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    else:
        ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
