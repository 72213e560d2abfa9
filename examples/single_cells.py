"""Single cells: gene programmes of blood cells, from an AnnData and back into it.

    python examples/single_cells.py [--out DIR] [--programmes K] [--overwrite]

Factorises log-normalised counts, prints for each programme its genes and the kind of cell that uses
it most, and draws where on the map of cells (UMAP) each programme is used.

Data: 700 of 68,579 peripheral blood mononuclear cells, 765 genes of high variance (G. X. Y. Zheng
et al.: Massively parallel digital transcriptional profiling of single cells, Nature Communications
8, 14049, 2017), as shipped in the package scanpy, with kinds of cell by bulk expression.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np

from dasknmf import NMF

CELLS = "scanpy/datasets/10x_pbmc68k_reduced.h5ad"


def load_cells() -> Any:
    """Give an AnnData: X sparse, log(1 + counts per cell), and what is known of cells and genes."""
    try:
        import anndata

        path = distribution("scanpy").locate_file(CELLS)
    except (ImportError, PackageNotFoundError) as error:
        hint = "this example's data is in a package: pip install 'dasknmf[notebooks]'"
        raise SystemExit(hint) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is of an early version of AnnData
        stored = anndata.read_h5ad(str(path))
    cells = stored.raw.to_adata()  # X itself is centred, and half of it negative
    cells.obsm["X_umap"] = stored.obsm["X_umap"]
    return cells


def usage_by_kind(cells: Any, kinds: Sequence[str]) -> np.ndarray:
    """Mean use of each programme (columns) by each kind of cell (rows)."""
    label, use = cells.obs["bulk_labels"].to_numpy(), cells.obsm["X_nmf"]
    return np.stack([use[label == kind].mean(axis=0) for kind in kinds])


def draw_map(cells: Any, titles: Sequence[str]) -> Any:
    """Draw the map of cells once for each programme, coloured by use; give the figure."""
    import matplotlib.pyplot as plt

    k = len(titles)
    across = -(-k // 2)
    figure, axes = plt.subplots(2, across, figsize=(2.7 * across, 5.6), layout="constrained")
    for ax in axes.ravel()[k:]:
        ax.set_visible(False)
    for ax, use, title in zip(axes.ravel(), cells.obsm["X_nmf"].T, titles, strict=False):
        order = np.argsort(use)  # cells that use it most on top
        x, y = cells.obsm["X_umap"][order].T
        ax.scatter(x, y, c=use[order], s=7, lw=0, cmap="viridis", vmax=np.quantile(use, 0.99))
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the results")
    parser.add_argument("--programmes", type=int, default=8, help="how many (default 8)")
    parser.add_argument("--overwrite", action="store_true", help="replace results of before")
    options = parser.parse_args(argv)
    picture = options.out / "single_cells.png"
    if picture.exists() and not options.overwrite:
        raise SystemExit(f"{picture} exists; use --overwrite, or --out DIR")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    options.out.mkdir(parents=True, exist_ok=True)
    cells = load_cells()
    model = NMF(options.programmes, n_init=10, random_state=0)
    model.fit_transform(cells)
    model.to_anndata(cells)
    kinds = list(cells.obs["bulk_labels"].cat.categories)
    use = usage_by_kind(cells, kinds)
    most = [kinds[row] for row in use.argmax(axis=0)]
    print(f"{cells.n_obs} cells × {cells.n_vars} genes\n")
    for number, genes in enumerate(model.top_features(names=cells.var_names)):
        print(f"programme {number}, most in {most[number]}\n  {' '.join(genes)}")
    figure = draw_map(cells, [f"{i}: most in {kind}" for i, kind in enumerate(most)])
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    print(f"\npicture  {picture.resolve()}")


if __name__ == "__main__":
    main()
