"""Choosing a rank: the consensus of restarts, and what a study of ranks found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from dasknmf.numerics.consensus import linkage_order
from dasknmf.numerics.errors import DataError
from dasknmf.numerics.kernels import Array
from dasknmf.plotting.style import (
    BLUE,
    FEW,
    VERMILION,
    colour_bar,
    new_axes,
    panels,
    plain_ticks,
    short_names,
)  # fmt: skip

COLUMNS = {
    "loss": "loss",
    "explained_variance": "explained variance",
    "holdout_error": "hold-out error",
    "stability": "stability of components",
    "silhouette": "silhouette of components",
    "cophenetic": "cophenetic correlation",
    "dispersion": "dispersion of consensus",
    "sparseness": "Hoyer sparseness",
}


def plot_consensus(
    consensus: Array,
    names: Sequence[Any] | None = None,
    ax: Any = None,
    *,
    order: Array | None = None,
) -> Any:
    """How often restarts put two samples together: clusters are blocks along the diagonal.

    Parameters
    ----------
    consensus : array of shape (m, m)
        In [0, 1], as :func:`dasknmf.numerics.consensus.consensus` gives it.
    names : sequence of m names, optional
    ax : matplotlib axes, optional
    order : permutation of m samples, optional
        By default that of the average linkage.

    Returns
    -------
    ax : matplotlib axes
    """
    consensus = np.asarray(consensus, dtype=float)
    order = linkage_order(consensus) if order is None else np.asarray(order)
    m = len(consensus)
    if names is not None and len(names) != m:
        raise DataError(f"names has {len(names)} entries; expected {m}, one for each sample.")
    ax = new_axes((5.6, 5.0)) if ax is None else ax
    image = ax.imshow(
        consensus[np.ix_(order, order)], cmap="cividis", vmin=0, vmax=1, interpolation="nearest"
    )
    ax.set_xticks([])
    ax.set_yticks([])
    if names is not None and m <= FEW:
        ax.set_yticks(np.arange(m), short_names([names[i] for i in order]), fontsize=6)
        ax.set_xlabel(f"{m} samples, in the same order")
    else:
        ax.set_xlabel(f"{m} samples, ordered by average linkage")
        ax.set_ylabel("samples")
    colour_bar(image, "part of restarts that put both together")
    return ax


def plot_ranks(
    table: Mapping[str, Array] | Array, chosen: int | None = None, axes: Any = None
) -> list[Any]:
    """A panel for each criterion over the ranks, with the chosen rank marked.

    Parameters
    ----------
    table : mapping of columns, structured array or data frame
        ``rank``, and of the columns in :data:`COLUMNS` those that there are. Values that are nan
        (undefined) are left out; a column of nothing else has no panel.
    chosen : int, optional
        The rank to mark.
    axes : matplotlib axes, optional
        As many as there are panels.

    Returns
    -------
    axes : list of matplotlib axes
    """
    names = getattr(getattr(table, "dtype", None), "names", None) or list(table)
    if "rank" not in names:
        raise DataError(f"the table has columns {list(names)}; expected one named 'rank'.")
    ranks = np.asarray(table["rank"])
    columns = {n: np.asarray(table[n], dtype=float) for n in COLUMNS if n in names}
    columns = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    if not columns:
        raise DataError(f"the table has columns {list(names)}; expected some of {list(COLUMNS)}.")
    axes = panels(len(columns), axes, size=(3.0, 2.3), columns=min(len(columns), 4))
    for ax, (name, values) in zip(axes, columns.items(), strict=True):
        known = np.isfinite(values)
        ax.plot(ranks[known], values[known], "o-", color=BLUE, ms=4, lw=1.2)
        if chosen is not None:
            ax.axvline(chosen, color=VERMILION, lw=1.2, ls="--", zorder=0)
            here = known & (ranks == chosen)
            ax.plot(ranks[here], values[here], "D", color=VERMILION, ms=7)
        ax.set_title(COLUMNS[name], fontsize=9)
        ax.set_xlabel("rank" if chosen is None else f"rank (chosen: {chosen})", fontsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(0.06, 0.12)
        plain_ticks(ax)
    return axes
