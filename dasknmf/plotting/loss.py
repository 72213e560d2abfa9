"""How a fit went: its loss by reads, passes or seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from dasknmf.numerics.errors import ParameterError
from dasknmf.numerics.kernels import Array
from dasknmf.plotting.style import BLUE, GREY, new_axes, plain_ticks, scale_to

OFF_SCALE = 3.0  # a first value this much above the second would flatten the rest of the curve
AXES = {"reads": "reads of the data", "pass": "passes", "seconds": "seconds since the start"}


def plot_loss(
    history: Mapping[str, Array], floor: float | None = None, ax: Any = None, *, x: str = "reads"
) -> Any:
    """Relative error (or, for other losses, the loss) after each pass.

    A value of the random start that is far above all others is named at the edge, off the scale.

    Parameters
    ----------
    history : mapping
        ``model.history_``.
    floor : float, optional
        A bound to draw as a line, such as the error of a truncated SVD.
    ax : matplotlib axes, optional
    x : {'reads', 'pass', 'seconds'}
        What it is drawn against.

    Returns
    -------
    ax : matplotlib axes

    Raises
    ------
    ParameterError
        ``x`` is none of these, or the history has no pass yet.
    """
    if x not in AXES:
        raise ParameterError(f"x={x!r}; expected one of {', '.join(map(repr, AXES))}.")
    if not len(history["loss"]):
        raise ParameterError("the history has no pass yet; draw it after the first.")
    ax = new_axes() if ax is None else ax
    error = np.asarray(history["relative_error"])
    known = bool(np.isfinite(error).all())
    at, values = np.asarray(history[x]), error if known else np.asarray(history["loss"])
    ax.plot(at, values, "o-", color=BLUE, ms=3.5, lw=1.2)
    bounds = values if floor is None else np.append(values, floor)
    if bounds.min() > 0:
        ax.set_yscale("log")
    if len(values) > 2 and values[0] > OFF_SCALE * values[1]:
        scale_to(ax, bounds[1:])
        where = (
            f"{at[0]:.3g} s" if x == "seconds" else f"{x.removesuffix('reads') or 'read'} {at[0]:g}"
        )
        ax.annotate(
            f"{where}: {values[0]:.3g}, off the scale",
            (at[1], 1), xycoords=("data", "axes fraction"),
            xytext=(9, -5), textcoords="offset points", va="top", color=GREY, fontsize=8,
        )  # fmt: skip
    if floor is not None:
        ax.axhline(floor, color="0.5", ls="--", lw=1)
        ax.annotate(
            f"truncated SVD: {floor:.4g}", (1, floor), xycoords=("axes fraction", "data"),
            xytext=(-4, 7), textcoords="offset points", ha="right", color=GREY, fontsize=8,
        )  # fmt: skip
    plain_ticks(ax)
    if x != "seconds":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(AXES[x])
    ax.set_ylabel("‖X − WH‖ / ‖X‖" if known else "loss")
    return ax
