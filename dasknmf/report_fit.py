"""The report of one fit: what was found, how the fit went, and how to repeat it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dasknmf import plotting
from dasknmf.exports import column_norms
from dasknmf.numerics import interpretation
from dasknmf.numerics.kernels import Array
from dasknmf.parallel.inputs import Labels
from dasknmf.plotting.style import columns_of, grid
from dasknmf.report import Block, Code, Picture, Section, Table, Text, environment, write_report

MOST = 25  # components in pictures
CURVES = 1000  # features up to which components without names are drawn as curves
TOP = 10


def report_fit(
    model: Any,
    path: str | Path,
    labels: Labels | None = None,
    *,
    shape: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the report of a fitted model (see :meth:`dasknmf.NMF.report`)."""
    labels = Labels() if labels is None else labels
    k, n = model.components_.shape
    title = f"{type(model).__name__} of {k} components, {model._n_samples} × {n}"
    return write_report(path, title, sections_of(model, labels, shape), overwrite=overwrite)


def sections_of(model: Any, labels: Labels, shape: tuple[int, int] | None = None) -> list[Section]:
    """Everything that a report tells of a fitted model."""
    return [
        Section("Result", _result(model)),
        Section("Components", [*_components(model, labels), *_maps(model, shape)]),
        Section("How the fit went", _course(model)),
        Section("How to repeat it", repeat(model, "model", "W = model.fit_transform(X)")),
        environment(),
    ]


def _result(model: Any) -> list[Block]:
    history = model.history_
    error = float(history["relative_error"][-1])
    k, n = model.components_.shape
    facts: dict[str, Any] = {
        "data": f"{model._n_samples} samples × {n} features",
        "components": k,
        f"loss ({model.beta_loss})": f"{history['loss'][-1]:.6g}",
    }
    if np.isfinite(error):
        facts["relative error ‖X − WH‖ / ‖X‖"] = error
        facts["explained variance"] = interpretation.explained_variance(error**2, 1.0)
    facts |= {
        "end": model.outcome_.value,
        "passes, reads of the data": f"{model.n_iter_}, {history['reads'][-1]:.4g}",
        "time": f"{history['seconds'][-1]:.3g} s",
        "fingerprint of the data": model.fingerprint_,
    }
    about = (
        f"The data X are approximated by W H, both without negative entries: each sample is a sum "
        f"of {k} components (rows of H) in amounts (rows of W)."
    )
    return [Text(about), Table.of_pairs(facts)]


def _by_weight(model: Any) -> tuple[Array, Array]:
    """Weights of the components (without W: norms of H), and the components, heaviest first."""
    weight = interpretation.row_norms(model.components_)
    if hasattr(model, "W_"):
        weight = weight * column_norms(model.W_, "l2")
    return weight, np.argsort(-weight, kind="stable")


def _components(model: Any, labels: Labels) -> list[Block]:
    H, W = model.components_, getattr(model, "W_", None)
    weight, order = _by_weight(model)
    names = None if labels.features is None else [str(name) for name in labels.features]
    sparse = model.sparseness()
    columns: dict[str, Any] = {"component": order}
    if W is not None:
        labels_of_rows = np.asarray(model.hard_clusters())
        sizes = np.bincount(labels_of_rows[labels_of_rows >= 0], minlength=len(H))
        columns["weight"] = weight[order]
        columns["samples it leads"] = sizes[order]
        columns["sparseness of W"] = sparse.W[order]
    columns["sparseness of H"] = sparse.H[order]
    top = interpretation.top_features(H, TOP, names)
    columns[f"top {labels.dims[1]}s"] = [", ".join(map(str, top[i])) for i in order]
    note = (
        "Heaviest first. Weight: the Frobenius norm of the component's part of WH. Samples it "
        "leads: those of which it is the largest part. Sparseness (Hoyer): 0, all entries are "
        "equal; 1, one entry is not zero."
        if W is not None
        else "W was not kept by the fit, so order is that of the norms of H. Sparseness (Hoyer): "
        "0, all entries are equal; 1, one entry is not zero."
    )
    return [Table.of_columns(columns, note), *_pictures(H, order[:MOST], names, labels.dims[1])]


def _pictures(H: Array, order: Array, names: Sequence[str] | None, label: str) -> list[Block]:
    k, n = len(order), H.shape[1]
    titles = [f"component {i}" for i in order]
    few = f" The {k} heaviest of {len(H)} are shown." if k < len(H) else ""
    if names is None and n <= CURVES:
        columns = columns_of(k)
        figure = Figure(figsize=(2.3 * columns, 1.6 * -(-k // columns)), layout="constrained")
        axes = grid(figure, k, columns)
        plotting.plot_components(H[order], label=label, titles=titles, axes=axes)
        return [Picture(figure, f"Components over the {label}s, heaviest first.{few}")]
    columns = min(k, 4)
    figure = Figure(figsize=(2.4 * columns, 2.2 * -(-k // columns)), layout="constrained")
    axes = grid(figure, k, columns)
    plotting.plot_top_features(H[order], names, TOP, titles, axes)
    about = f"The {TOP} {label}s of the largest weights in each component, heaviest first.{few}"
    return [Picture(figure, about)]


def _maps(model: Any, shape: tuple[int, int] | None) -> list[Block]:
    """Where the components are, for samples that are the pixels of an image."""
    if shape is None:
        return []
    W, order = np.asarray(model.separated().W[:, :MOST]), _by_weight(model)[1]
    k = W.shape[1]
    columns = columns_of(k)
    size = (2.0 * columns, 2.15 * -(-k // columns) * min(2.0, shape[0] / shape[1]))
    figure = Figure(figsize=size, layout="constrained")
    titles = [f"component {i}" for i in order[:k]]
    plotting.plot_maps(W, shape, titles, grid(figure, k, columns))
    about = "Amounts of the components (columns of W) in the image, each from 0 (dark) up."
    return [Picture(figure, about, vector=False)]


def _course(model: Any) -> list[Block]:
    history = model.history_
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    plotting.plot_loss(history, ax=axes[0])
    plotting.plot_loss(history, ax=axes[1], x="seconds")
    return [
        Picture(
            figure,
            "Error after each pass, by reads of the data and by time. What is left of the first "
            "point went into the start.",
        ),
        Table.of_columns(history, "Every pass.", folded=True),
    ]


def repeat(model: Any, name: str, call: str) -> list[Block]:
    """Lines that fit an estimator again, called ``name`` in them, and all its parameters."""
    given = model.get_params(deep=False)
    defaults = inspect.signature(type(model).__init__).parameters
    changed = [
        f"    {parameter}={value!r},"
        for parameter, value in given.items()
        if not _same(value, defaults[parameter].default)
    ]
    lines = [
        "import dasknmf",
        f"{name} = dasknmf.{type(model).__name__}(",
        *changed,
        ")",
        call,
        f"assert {name}.fingerprint_ == {model.fingerprint_!r}  # the same X, in the same chunks",
    ]
    blocks: list[Block] = [Code("\n".join(lines))]
    if given["random_state"] is None:
        blocks.append(
            Text("random_state was None: another fit starts elsewhere, and may end elsewhere.")
        )
    values = {parameter: repr(value) for parameter, value in given.items()}
    return [*blocks, Table.of_pairs(values, "All parameters.")]


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and value == default)
