"""The report of a study of ranks: which rank and why, what every rank gives, how to repeat it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dasknmf import plotting
from dasknmf.numerics.choosing import ALIKE, NEAR, SHARED, SMALL, STABLE
from dasknmf.report import Block, Picture, Section, Table, Text, environment, write_report
from dasknmf.report_fit import repeat

HELP = {
    "loss": "the objective without penalties, of the best restart",
    "explained_variance": "1 − ‖X − WH‖² / ‖X‖², of the best restart",
    "holdout_error": "mean error on entries hidden from the fits, of the best restart (with folds, "
    "of all blocks): it rises with a rank too many",
    "holdout_se": "standard error of the hold-out error, from its values on the single blocks",
    "stability": "mean cosine of the components that restarts have in common; 1: they all agree",
    "silhouette": "whether these are nearer to one another than to other components; 1: clearly",
    "cophenetic": "whether samples fall into clusters, the same in all restarts; 1: they do",
    "dispersion": "whether restarts agree on which samples belong together; 1: they all do",
    "sparseness": "Hoyer's, of the components: 1, one entry is not zero; 0, all are equal",
}


def report_study(study: Any, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the report of a fitted study (see :meth:`dasknmf.RankStudy.report`)."""
    ranks = study.ranks_
    title = f"Ranks {ranks[0]} to {ranks[-1]} of {study._n_samples} × {study.n_features_in_}"
    return write_report(path, title, sections_of(study), overwrite=overwrite)


def sections_of(study: Any) -> list[Section]:
    """Everything that a report tells of a study."""
    return [
        Section("Choice", _choice(study)),
        Section("Ranks", _ranks(study)),
        Section("Do restarts agree?", _agreement(study)),
        Section("How to repeat it", repeat(study, "study", "study.fit(X)")),
        environment(),
    ]


def _choice(study: Any) -> list[Block]:
    facts: dict[str, Any] = {
        "chosen rank": study.best_rank_,
        "runner-up": study.runner_up_,
        "rule": study.rule_,
        "data": f"{study._n_samples} samples × {study.n_features_in_} features",
        "fits": f"{len(study.ranks_)} ranks × {study.n_init} restarts, in {study.reads_:.4g} reads "
        "of the data",
        "time": f"{study.history_['seconds'][-1]:.3g} s",
        "fingerprint of the data": study.fingerprint_,
    }
    rule = (
        f"Every restart of every rank was fitted to the same data, {_hidden(study)}. Of the ranks "
        f"with a hold-out error at most {100 * NEAR:g} % above the least, or "
        f"{100 * SMALL:g} % of the way down to it from the largest error of smaller ranks, the one "
        "is chosen whose "
        "components come back most alike in all restarts (largest mean silhouette; within "
        f"{ALIKE} of it, the one with the least hold-out error). Ranks whose "
        f"mean silhouette is below {SHARED} are left out while there are others; without hidden "
        f"entries it is the largest rank with one of at least {STABLE}. No rule knows what the "
        "components are for: look at the runner-up, too."
    )
    return [Text(rule), Table.of_pairs(facts)]


def _hidden(study: Any) -> str:
    """What the fits did not see."""
    if study.folds is None:
        return "with the same entries hidden"
    rows, columns = study.folds
    return (
        f"and one more fit for each of {rows} × {columns} blocks of rows and columns without it "
        "(bi-cross-validation, Owen & Perry 2009): the hold-out error is that on all blocks"
    )


def _ranks(study: Any) -> list[Block]:
    table = study.table()
    figure = plotting.plot_ranks(table, study.best_rank_)[0].figure
    columns = {name.replace("_", " "): table[name] for name in table.dtype.names}
    chosen = int(np.flatnonzero(table["rank"] == study.best_rank_)[0])
    return [
        Picture(figure, f"Criteria by rank; rank {study.best_rank_} is marked."),
        Table.of_columns(columns, "The chosen rank is marked; – is undefined.", chosen=chosen),
        Table.of_pairs(
            {k.replace("_", " "): v for k, v in HELP.items() if k in table.dtype.names},
            "What the columns say.",
        ),
    ]


def _agreement(study: Any) -> list[Block]:
    best = study.best_rank_
    if best not in study.consensus_:
        if study.n_init > 1:
            return [Text("The study is not done: the clusters of samples come with its last read.")]
        return [Text("With n_init=1 there are no restarts to compare: stability is undefined.")]
    stability = np.sort(study.stabilities_[best])[::-1]
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    plotting.plot_consensus(study.consensus_[best], ax=figure.add_subplot())
    note = f"Stability of the components of rank {best}: mean cosine over pairs of restarts."
    pairs = {"component": np.arange(1, best + 1), "stability": stability}
    return [
        Picture(figure, f"How often restarts of rank {best} put two samples together.", False),
        Table.of_columns(pairs, note),
    ]
