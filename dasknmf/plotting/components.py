"""What the components look like: curves, heat maps, top features, images, maps, residuals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from dasknmf.numerics.errors import DataError
from dasknmf.numerics.interpretation import top_indices
from dasknmf.numerics.kernels import Array
from dasknmf.plotting.style import (
    BLUE,
    DIVERGING,
    FEW,
    SEQUENTIAL,
    colour_bar,
    columns_of,
    new_axes,
    panels,
    short_names,
)  # fmt: skip


def shares(W: Array, components: Array) -> Array:
    """Part of each component in the sum of all entries of W H; descending is order of weight."""
    weight = np.asarray(W).sum(axis=0, dtype=float) * components.sum(axis=1, dtype=float)
    return weight / (weight.sum() or 1.0)


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
    axes = panels(k, axes)
    x = np.arange(components.shape[1]) if x is None else np.asarray(x)
    for i, (ax, row) in enumerate(zip(axes, components, strict=True)):
        ax.fill_between(x, row, color=BLUE, alpha=0.25, lw=0)
        ax.plot(x, row, color=BLUE, lw=1)
        ax.set_title(f"component {i}" if titles is None else titles[i], fontsize=8, pad=3)
        ax.set_ylim(bottom=0)
        ax.margins(x=0)
        ax.tick_params(labelsize=7)
        ax.yaxis.set_major_locator(MaxNLocator(2, steps=(1, 5, 10)))
        ax.spines[["top", "right"]].set_visible(False)
        if i >= k - columns_of(k):
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
    axes = panels(k, axes)
    for i, ax in enumerate(axes):
        picture = _laid_out(W[:, i], shape)
        ax.imshow(picture, cmap=SEQUENTIAL, vmin=0, vmax=np.quantile(picture, 0.995) or 1.0)
        ax.set_title(f"component {i}" if titles is None else titles[i], fontsize=8, pad=3)
        ax.set_xticks([])
        ax.set_yticks([])
    return axes


def plot_images(
    components: Array, shape: tuple[int, int], titles: Sequence[str] | None = None, axes: Any = None
) -> list[Any]:
    """One image a component: a row of H (k × n_features) laid out as ``shape``, as faces are.

    Colours as in :func:`plot_maps`.

    Returns
    -------
    axes : list of k matplotlib axes
    """
    return plot_maps(np.asarray(components).T, shape, titles, axes)


def plot_heatmap(
    components: Array, names: Sequence[Any] | None = None, label: str = "feature", ax: Any = None
) -> Any:
    """All components as one picture: rows of H (k × n_features), each with maximum 1.

    Parameters
    ----------
    components : array of shape (k, n_features)
    names : sequence of n_features names, optional
        Written along the axis, as many as there is room for.
    label : str
        What a feature is.
    ax : matplotlib axes, optional

    Returns
    -------
    ax : matplotlib axes
    """
    components = np.asarray(components, dtype=float)
    k, n = components.shape
    _one_name_each(names, n)
    ax = new_axes((8.0, 1.2 + 0.26 * k)) if ax is None else ax
    largest = components.max(axis=1, keepdims=True)
    picture = components / np.where(largest > 0, largest, 1.0)
    image = ax.imshow(
        picture, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    ax.set_ylabel("component")
    ax.yaxis.set_major_locator(MaxNLocator(min(k, 20), integer=True))
    ax.set_xlabel(label)
    if names is None:
        ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    else:
        at = np.arange(0, n, -(-n // FEW))
        ax.set_xticks(at, short_names([names[i] for i in at]), rotation=90, fontsize=7)
    colour_bar(image, "weight (largest = 1)")
    return ax


def plot_top_features(
    components: Array,
    names: Sequence[Any] | None = None,
    n: int = 10,
    titles: Sequence[str] | None = None,
    axes: Any = None,
) -> list[Any]:
    """The n features of the largest weights of every component, as bars: the words of topics.

    Parameters
    ----------
    components : array of shape (k, n_features)
    names : sequence of n_features names, optional
        By default the positions.
    n : int
    titles : sequence of k titles, optional
    axes : k matplotlib axes, optional

    Returns
    -------
    axes : list of k matplotlib axes
    """
    components = np.asarray(components)
    _one_name_each(names, components.shape[1])
    k = len(components)
    axes = panels(k, axes, size=(2.3, 0.55 + 0.17 * n), columns=min(k, 5))
    for i, (ax, row, top) in enumerate(
        zip(axes, components, top_indices(components, n), strict=True)
    ):
        here = np.arange(len(top))
        ax.barh(here, row[top], color=BLUE, height=0.75)
        shown: Sequence[Any] = top.tolist() if names is None else [names[j] for j in top]
        ax.set_yticks(here, short_names(shown), fontsize=8)
        ax.set_ylim(n - 0.4, -0.6)
        ax.set_xlim(left=0)
        ax.set_title(f"component {i}" if titles is None else titles[i], fontsize=9, pad=3)
        ax.tick_params(axis="x", labelsize=7)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_locator(MaxNLocator(2))
        ax.spines[["top", "right", "left"]].set_visible(False)
    for ax in axes[-min(k, 5) :]:
        ax.set_xlabel("weight", fontsize=8)
    return axes


def plot_residuals(
    residuals: Array, shape: tuple[int, int], label: str = "‖x − wH‖ / ‖x‖", ax: Any = None
) -> Any:
    """Where the model fails: one value a sample (pixel), laid out as ``shape``.

    Values without a sign run from 0 to their 99.5 % quantile; with one, symmetrically about zero,
    which is white.

    Parameters
    ----------
    residuals : array of shape (n_samples,)
    shape : (rows, columns) with rows * columns = n_samples
    label : str
        What is shown, with its unit, for the colour bar.
    ax : matplotlib axes, optional

    Returns
    -------
    ax : matplotlib axes
    """
    picture = _laid_out(np.asarray(residuals, dtype=float), shape)
    ax = new_axes((5.0, 4.0)) if ax is None else ax
    limit = float(np.nanquantile(np.abs(picture), 0.995)) or 1.0
    signed = bool((picture < 0).any())
    image = ax.imshow(
        picture, cmap=DIVERGING if signed else SEQUENTIAL, vmin=-limit if signed else 0, vmax=limit
    )
    ax.set_xticks([])
    ax.set_yticks([])
    colour_bar(image, label)
    return ax


def _laid_out(values: Array, shape: tuple[int, int]) -> Array:
    if values.size != shape[0] * shape[1]:
        raise DataError(
            f"{values.size} values don't fill a picture of {shape[0]} × {shape[1]} "
            f"(= {shape[0] * shape[1]}); expected its (rows, columns)."
        )
    return values.reshape(shape)


def _one_name_each(names: Sequence[Any] | None, n: int) -> None:
    if names is not None and len(names) != n:
        raise DataError(f"names has {len(names)} entries; expected {n}, one for each feature.")
