"""Indian Pines: a hyperspectral cube into 16 materials, out of core, in a handful of reads.

    python examples/indian_pines.py [--out DIR] [--passes N] [--overwrite]

Writes the cube to a chunked Zarr array, factorises it through Dask with the progress shown, saves
the model to Zarr, and draws the component spectra, their abundance maps and the error per read.

Data: AVIRIS Indian Pines, 145 × 145 pixels × 200 bands (M. F. Baumgardner, L. L. Biehl, D. A.
Landgrebe, Purdue University, 2015, CC BY 3.0), as shipped in the package tensorly.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import dask.array as da
import numpy as np
import zarr

from dasknmf import NMF, open_matrix

K = 16
CUBE = "tensorly/datasets/data/Indian_pines_corrected.npy"


def load_cube() -> np.ndarray:
    """Give the cube, 145 × 145 × 200, counts of radiance."""
    try:
        path = distribution("tensorly").locate_file(CUBE)
    except PackageNotFoundError as error:
        hint = "this example's data is in a package: pip install 'dasknmf[examples]'"
        raise SystemExit(hint) from error
    return np.load(path, allow_pickle=False)


def write_pixels(cube: np.ndarray, path: Path) -> da.Array:
    """Write pixels × bands to Zarr in chunks of rows, and open it lazily."""
    pixels = cube.reshape(-1, cube.shape[2]).astype(np.float32)
    store = zarr.create_array(
        path,
        shape=pixels.shape,
        chunks=(1024, pixels.shape[1]),
        dtype=pixels.dtype,
        dimension_names=("pixel", "band"),
        overwrite=True,
    )
    store[...] = pixels
    return open_matrix(path)


def svd_error(X: np.ndarray, k: int) -> float:
    """Give the relative error of the truncated SVD, which no factorisation of rank k beats."""
    values = np.linalg.eigvalsh(X.T.astype(float) @ X)
    return float(np.sqrt(values[:-k].clip(0).sum() / values.sum()))


def draw(model: NMF, W: np.ndarray, cube: np.ndarray, path: Path) -> None:
    """Draw spectra on the left, maps on the right, heaviest first, and the error per read below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from dasknmf import plotting

    figure = plt.figure(figsize=(13, 9.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3.6, 1])
    left, right = above.subfigures(1, 2)
    left.suptitle("component spectra (rows of H, each with maximum 1)", fontsize=11)
    right.suptitle("abundance maps (columns of W)", fontsize=11)
    # W and H share a free scale per component; here every spectrum has maximum 1.
    scale = model.components_.max(axis=1)
    scale[scale == 0] = 1
    weight = plotting.shares(W, model.components_)
    order = np.argsort(-weight)
    titles = [f"{i}   ({100 * weight[i]:.1f} %)" for i in order]
    spectra, maps = (model.components_ / scale[:, None])[order], (W * scale)[:, order]
    grid = {"nrows": 4, "ncols": 4, "sharex": True, "sharey": True}
    band = np.arange(1, spectra.shape[1] + 1)
    plotting.plot_components(spectra, band, "band", titles, axes=left.subplots(**grid))
    plotting.plot_maps(maps, cube.shape[:2], titles, axes=right.subplots(**grid))
    floor = svd_error(cube.reshape(-1, cube.shape[2]), K)
    ax = plotting.plot_loss(model.history_, floor, ax=below.subplots())
    ax.set_title(
        f"relative error {model.history_['relative_error'][-1]:.5f} after "
        f"{model.history_['reads'][-1]} reads of the data",
        fontsize=11,
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the results")
    parser.add_argument("--passes", type=int, default=40, help="passes at most (default 40)")
    parser.add_argument("--overwrite", action="store_true", help="replace results of before")
    options = parser.parse_args(argv)
    matrix = options.out / "indian_pines.zarr"
    saved, picture = options.out / "indian_pines_model.zarr", options.out / "indian_pines.png"
    existing = [str(p) for p in (matrix, saved, picture) if p.exists()]
    if existing and not options.overwrite:
        raise SystemExit(f"{', '.join(existing)} exist; use --overwrite, or --out DIR")
    options.out.mkdir(parents=True, exist_ok=True)

    began = time.perf_counter()
    cube = load_cube()
    X = write_pixels(cube, matrix)
    model = NMF(n_components=K, max_iter=options.passes, tol=2e-4, random_state=0, verbose=1)
    W = model.fit_transform(X)
    model.save(saved, overwrite=options.overwrite)
    draw(model, np.asarray(W), cube, picture)
    print(
        f"{X.shape[0]} pixels × {X.shape[1]} bands ≈ {K} components: relative error "
        f"{model.history_['relative_error'][-1]:.5f} in {model.n_iter_} passes, "
        f"{time.perf_counter() - began:.1f} s in all\n"
        f"matrix   {matrix.resolve()}\nmodel    {saved.resolve()}\npicture  {picture.resolve()}"
    )


if __name__ == "__main__":
    main()
