"""Reuters: topics of real text, their words, how coherent they are, and a report to pass on.

    python examples/topics.py [--out DIR] [--topics K] [--overwrite]

Factorises counts of words in 395 news stories by their Kullback-Leibler divergence, prints the
topics with their NPMI coherence and a headline for each, and writes a picture and a report.

Data: Reuters news of 1996-97, 395 stories × 4258 words, as shipped in the package lda.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from dasknmf import NMF


def load_reuters() -> tuple[sp.csr_array, list[str], list[str]]:
    """Give counts (stories × words), the words, and the headlines."""
    try:
        folder = distribution("lda").locate_file("lda/tests")
    except PackageNotFoundError as error:
        hint = "this example's data is in a package: pip install 'dasknmf[examples]'"
        raise SystemExit(hint) from error
    folder = Path(str(folder))
    words = (folder / "reuters.tokens").read_text(encoding="utf8").splitlines()
    titles = (folder / "reuters.titles").read_text(encoding="utf8").splitlines()
    headlines = [title.split(" ", 1)[1] for title in titles]  # each after its number
    rows, columns, counts = [], [], []
    for row, line in enumerate((folder / "reuters.ldac").read_text().splitlines()):
        for pair in line.split()[1:]:
            column, count = pair.split(":")
            rows.append(row)
            columns.append(int(column))
            counts.append(float(count))
    shape = (len(headlines), len(words))
    return sp.coo_array((counts, (rows, columns)), shape=shape).tocsr(), words, headlines


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the results")
    parser.add_argument("--topics", type=int, default=10, help="how many (default 10)")
    parser.add_argument("--overwrite", action="store_true", help="replace results of before")
    options = parser.parse_args(argv)
    picture, report = options.out / "topics.png", options.out / "topics.html"
    existing = [str(p) for p in (picture, report) if p.exists()]
    if existing and not options.overwrite:
        raise SystemExit(f"{', '.join(existing)} exist; use --overwrite, or --out DIR")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from dasknmf import plotting

    options.out.mkdir(parents=True, exist_ok=True)

    X, words, headlines = load_reuters()
    model = NMF(options.topics, beta_loss="kullback-leibler", n_init=8, random_state=0)
    W = model.fit_transform(X)
    share, npmi, titles = plotting.shares(W, model.components_), model.coherence(X), []
    print(f"{X.shape[0]} stories × {X.shape[1]} words, {int(X.sum())} in all\n")
    order = np.argsort(-share)
    for t in order:
        titles.append(f"{share[t]:.0%} of words, NPMI {npmi[t]:.2f}")
        print(f"{titles[-1]}\n  {' '.join(model.top_features(names=words)[t])}")
        print(f"  {headlines[W[:, t].argmax()]}\n")
    axes = plotting.plot_top_features(model.components_[order], words, 10, titles)
    axes[0].figure.savefig(picture, dpi=150)
    plt.close(axes[0].figure)
    model.report(report, names=words, overwrite=options.overwrite)
    print(f"picture  {picture.resolve()}\nreport   {report.resolve()}")


if __name__ == "__main__":
    main()
