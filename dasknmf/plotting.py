"""Pictures of a factorisation. Functions take plain arrays and give the axes they drew on.

Needs matplotlib: ``pip install 'dasknmf[viz]'``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dasknmf.numerics.kernels import Array

try:
    import matplotlib.pyplot as plt
except ImportError as error:  # pragma: no cover
    raise ImportError("dasknmf.plotting needs matplotlib: pip install 'dasknmf[viz]'") from error


def plot_loss(history: Mapping[str, Array], floor: float | None = None, ax: Any = None) -> Any:
    """Relative error (or, for other losses, the loss) after each read of X.

    Parameters
    ----------
    history : mapping
        ``model.history_``.
    floor : float, optional
        A bound to draw as a line, such as the error of a truncated SVD.
    ax : matplotlib axes, optional
    """
    ax = ax or plt.subplots()[1]
    error = np.asarray(history["relative_error"])
    known = bool(np.isfinite(error).all())
    ax.plot(history["reads"], error if known else history["loss"], "o-", ms=3.5, lw=1.2)
    if floor is not None:
        ax.axhline(floor, color="0.5", ls="--", lw=1)
        ax.annotate(
            "truncated SVD", (1, floor), xycoords=("axes fraction", "data"),
            xytext=(-4, 3), textcoords="offset points", ha="right", color="0.4", fontsize=8,
        )  # fmt: skip
    ax.set_yscale("log")
    ax.set_xlabel("reads of the data")
    ax.set_ylabel("‖X − WH‖ / ‖X‖" if known else "loss")
    return ax


def plot_components(
    components: Array, x: Array | None = None, label: str = "feature", axes: Any = None
) -> Any:
    """One small panel a component (rows of H), on a shared scale of x."""
    k = len(components)
    axes = _panels(k, axes)
    x = np.arange(components.shape[1]) if x is None else np.asarray(x)
    for i, (ax, row) in enumerate(zip(axes, components, strict=False)):
        ax.fill_between(x, row, color=f"C{i % 10}", alpha=0.25, lw=0)
        ax.plot(x, row, color=f"C{i % 10}", lw=1)
        ax.set_title(f"component {i}", fontsize=8, pad=2)
        ax.set_ylim(bottom=0)
        ax.tick_params(labelsize=6)
        ax.yaxis.set_major_locator(plt.MaxNLocator(3))
        if i >= k - _columns(k):
            ax.set_xlabel(label, fontsize=7)
    return axes


def plot_maps(W: Array, shape: tuple[int, int], axes: Any = None) -> Any:
    """One image a component: a column of W laid out as ``shape`` (abundance maps)."""
    k = W.shape[1]
    axes = _panels(k, axes)
    for i, ax in enumerate(axes[:k]):
        picture = np.asarray(W[:, i]).reshape(shape)
        ax.imshow(picture, cmap="magma", vmin=0, vmax=np.quantile(picture, 0.995) or 1.0)
        ax.set_title(f"component {i}", fontsize=8, pad=2)
        ax.set_xticks([])
        ax.set_yticks([])
    return axes


def _columns(k: int) -> int:
    return int(np.ceil(np.sqrt(k)))


def _panels(k: int, axes: Any) -> list[Any]:
    """Give k axes: those given, or a new grid with the surplus hidden."""
    if axes is None:
        columns = _columns(k)
        _, grid = plt.subplots(
            -(-k // columns), columns, squeeze=False, layout="constrained",
            figsize=(1.9 * columns, 1.7 * -(-k // columns)),
        )  # fmt: skip
        axes = grid.ravel()
        for ax in axes[k:]:
            ax.set_visible(False)
    return list(np.ravel(axes))
