"""Pictures of a factorisation. Functions take plain arrays and give the axes they drew on.

Needs matplotlib: ``pip install 'dasknmf[viz]'``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dasknmf.numerics.kernels import Array

try:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
except ImportError as error:  # pragma: no cover
    raise ImportError("dasknmf.plotting needs matplotlib: pip install 'dasknmf[viz]'") from error

OFF_SCALE = 3.0  # a first value this much above the second would flatten the rest of the curve


def shares(W: Array, components: Array) -> Array:
    """Part of each component in the sum of all entries of W H; descending is order of weight."""
    weight = np.asarray(W).sum(axis=0, dtype=float) * components.sum(axis=1, dtype=float)
    return weight / (weight.sum() or 1.0)


def plot_loss(history: Mapping[str, Array], floor: float | None = None, ax: Any = None) -> Any:
    """Relative error (or, for other losses, the loss) after each read of X.

    A value of the random start that is far above all others is named at the edge, off the scale.

    Parameters
    ----------
    history : mapping
        ``model.history_``.
    floor : float, optional
        A bound to draw as a line, such as the error of a truncated SVD.
    ax : matplotlib axes, optional

    Returns
    -------
    ax : matplotlib axes
    """
    ax = plt.subplots(layout="constrained")[1] if ax is None else ax
    error = np.asarray(history["relative_error"])
    known = bool(np.isfinite(error).all())
    reads, values = np.asarray(history["reads"]), error if known else np.asarray(history["loss"])
    ax.plot(reads, values, "o-", ms=3.5, lw=1.2)
    bounds = values if floor is None else np.append(values, floor)
    if bounds.min() > 0:
        ax.set_yscale("log")
    if len(values) > 2 and values[0] > OFF_SCALE * values[1]:
        _scale_to(ax, bounds[1:])
        ax.annotate(
            f"read {reads[0]}: {values[0]:.3g}, off the scale",
            (reads[1], 1), xycoords=("data", "axes fraction"),
            xytext=(9, -5), textcoords="offset points", va="top", color="0.4", fontsize=8,
        )  # fmt: skip
    if floor is not None:
        ax.axhline(floor, color="0.5", ls="--", lw=1)
        ax.annotate(
            f"truncated SVD: {floor:.4g}", (1, floor), xycoords=("axes fraction", "data"),
            xytext=(-4, 7), textcoords="offset points", ha="right", color="0.4", fontsize=8,
        )  # fmt: skip
    _plain_ticks(ax)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("reads of the data")
    ax.set_ylabel("‖X − WH‖ / ‖X‖" if known else "loss")
    return ax


def _scale_to(ax: Any, values: Array) -> None:
    """Set the y range to that of the values, with a margin."""
    low, high = float(values.min()), float(values.max())
    if ax.get_yscale() == "log":
        margin = max((high / low) ** 0.08, 1.01)
        ax.set_ylim(low / margin, high * margin)
    else:
        margin = 0.08 * (high - low) or 1.0
        ax.set_ylim(low - margin, high + margin)


def _plain_ticks(ax: Any) -> None:
    """0.02 and 0.025 rather than 2 × 10⁻² and nothing."""
    low, high = ax.get_ylim()
    if ax.get_yscale() == "log" and high > 10 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    else:
        ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def plot_components(
    components: Array,
    x: Array | None = None,
    label: str = "feature",
    titles: Sequence[str] | None = None,
    axes: Any = None,
) -> list[Any]:
    """One small panel a component (rows of H, k × n_features) over ``x`` (default: the index).

    Returns
    -------
    axes : list of k matplotlib axes
    """
    components = np.asarray(components)
    k = len(components)
    axes = _panels(k, axes)
    x = np.arange(components.shape[1]) if x is None else np.asarray(x)
    for i, (ax, row) in enumerate(zip(axes, components, strict=True)):
        ax.fill_between(x, row, color="C0", alpha=0.25, lw=0)
        ax.plot(x, row, color="C0", lw=1)
        ax.set_title(f"component {i}" if titles is None else titles[i], fontsize=8, pad=3)
        ax.set_ylim(bottom=0)
        ax.margins(x=0)
        ax.tick_params(labelsize=7)
        ax.yaxis.set_major_locator(MaxNLocator(2, steps=(1, 5, 10)))
        ax.spines[["top", "right"]].set_visible(False)
        if i >= k - _columns(k):
            ax.set_xlabel(label, fontsize=8)
            ax.tick_params(labelbottom=True)
    return axes


def plot_maps(
    W: Array, shape: tuple[int, int], titles: Sequence[str] | None = None, axes: Any = None
) -> list[Any]:
    """One image a component: a column of W (n_samples × k) laid out as ``shape``.

    Each image runs from 0 (dark) to the 99.5 % quantile of its values.

    Returns
    -------
    axes : list of k matplotlib axes
    """
    W = np.asarray(W)
    k = W.shape[1]
    axes = _panels(k, axes)
    for i, ax in enumerate(axes):
        picture = W[:, i].reshape(shape)
        ax.imshow(picture, cmap="magma", vmin=0, vmax=np.quantile(picture, 0.995) or 1.0)
        ax.set_title(f"component {i}" if titles is None else titles[i], fontsize=8, pad=3)
        ax.set_xticks([])
        ax.set_yticks([])
    return axes


def _columns(k: int) -> int:
    return int(np.ceil(np.sqrt(k)))


def _panels(k: int, axes: Any) -> list[Any]:
    """Give k axes: the first of those given, or a new grid with the surplus hidden."""
    if axes is not None:
        given = list(np.ravel(axes))
        if len(given) < k:
            raise ValueError(f"{len(given)} axes for {k} components; pass {k} axes, or none.")
        return given[:k]
    columns = _columns(k)
    rows = -(-k // columns)
    _, grid = plt.subplots(
        rows, columns, squeeze=False, layout="constrained", figsize=(1.9 * columns, 1.7 * rows)
    )
    for ax in grid.ravel()[k:]:
        ax.set_visible(False)
    return list(grid.ravel()[:k])
