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

PATH_COLUMNS = {
    "loss": "loss",
    "objective": "loss and penalties",
    "explained_variance": "explained variance",
    "holdout_error": "hold-out error",
    "sparseness_W": "Hoyer sparseness of W",
    "sparseness_H": "Hoyer sparseness of H",
    "stability": "stability of components",
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
        (undefined) are left out; a column of nothing else has no panel. ``holdout_se`` becomes
        bars of the hold-out error.
    chosen : int, optional
        The rank to mark.
    axes : matplotlib axes, optional
        As many as there are panels.

    Returns
    -------
    axes : list of matplotlib axes
    """
    ranks, columns = _columns_of(table, "rank", COLUMNS)
    errors = None if "holdout_se" not in _names(table) else np.asarray(table["holdout_se"])
    axes = panels(len(columns), axes, size=(3.0, 2.3), columns=min(len(columns), 4))
    for ax, (name, values) in zip(axes, columns.items(), strict=True):
        _draw(ax, ranks, values, chosen)
        if name == "holdout_error" and errors is not None:
            ax.errorbar(ranks, values, errors, fmt="none", ecolor=BLUE, lw=1.0, capsize=2)
        ax.set_title(COLUMNS[name], fontsize=9)
        ax.set_xlabel("rank" if chosen is None else f"rank (chosen: {chosen})", fontsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        plain_ticks(ax)
    return axes


def plot_path(
    table: Mapping[str, Array] | Array, chosen: float | None = None, axes: Any = None
) -> list[Any]:
    """A panel for each criterion along a path of regularisation, with the chosen alpha marked.

    Parameters
    ----------
    table : mapping of columns, structured array or data frame
        ``alpha``, and of the columns in :data:`PATH_COLUMNS` those that there are, as for
        :func:`plot_ranks`.
    chosen : float, optional
        The alpha to mark; nan: none.
    axes : matplotlib axes, optional
        As many as there are panels.

    Returns
    -------
    axes : list of matplotlib axes
        Logarithmic in alpha; 0 is at the left end, where the scale is linear.
    """
    alphas, columns = _columns_of(table, "alpha", PATH_COLUMNS)
    marked = chosen if chosen is not None and np.isfinite(chosen) else None
    axes = panels(len(columns), axes, size=(3.0, 2.3), columns=min(len(columns), 4))
    positive = alphas[alphas > 0]
    for ax, (name, values) in zip(axes, columns.items(), strict=True):
        if positive.size:
            ax.set_xscale("symlog", linthresh=float(positive.min()), linscale=0.5)
        _draw(ax, alphas, values, marked)
        ax.set_title(PATH_COLUMNS[name], fontsize=9)
        label = "alpha" if marked is None else f"alpha (least hold-out error: {marked:g})"
        ax.set_xlabel(label, fontsize=8)
        plain_ticks(ax)
    return axes


def _names(table: Any) -> list[str]:
    return list(getattr(getattr(table, "dtype", None), "names", None) or list(table))


def _columns_of(table: Any, key: str, titles: Mapping[str, str]) -> tuple[Array, dict[str, Array]]:
    """The column of the x axis, and those with anything to draw."""
    names = _names(table)
    if key not in names:
        raise DataError(f"the table has columns {names}; expected one named {key!r}.")
    columns = {n: np.asarray(table[n], dtype=float) for n in titles if n in names}
    columns = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    if not columns:
        raise DataError(f"the table has columns {names}; expected some of {list(titles)}.")
    return np.asarray(table[key]), columns


def _draw(ax: Any, x: Array, values: Array, chosen: float | None) -> None:
    known = np.isfinite(values)
    ax.plot(x[known], values[known], "o-", color=BLUE, ms=4, lw=1.2)
    if chosen is not None:
        ax.axvline(chosen, color=VERMILION, lw=1.2, ls="--", zorder=0)
        here = known & (x == chosen)
        ax.plot(x[here], values[here], "D", color=VERMILION, ms=7)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(0.06, 0.12)
