"""What dasknmf is compared with, each from its documented interface and with its own defaults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from .timing import Context, Peer, Run, SkippedError, clock

ROWS_AT_A_TIME = 1 << 14


def frobenius_loss(V: Any, W: np.ndarray, H: np.ndarray) -> float:
    """1/2 ||V - W H||² in float64, for a sparse V by ||V||² - 2 <V, W H> + ||W H||²."""
    W, H = W.astype(np.float64), H.astype(np.float64)
    if sp.issparse(V):
        squares = float(np.sum(np.square(V.data, dtype=np.float64)))
        cross = float(np.sum((V.astype(np.float64) @ H.T) * W))
        return 0.5 * squares - cross + 0.5 * float(np.sum((W.T @ W) * (H @ H.T)))
    total = 0.0
    for start in range(0, V.shape[0], ROWS_AT_A_TIME):
        part = slice(start, start + ROWS_AT_A_TIME)
        total += float(np.sum(np.square(V[part] - W[part] @ H)))
    return 0.5 * total


def kullback_leibler(V: sp.csr_array, W: np.ndarray, H: np.ndarray) -> float:
    """Sum of v log(v / wh) - v + wh over all entries, in float64."""
    W, H = W.astype(np.float64), H.astype(np.float64)
    coo = V.tocoo()
    total = float(W.sum(axis=0) @ H.sum(axis=1))
    tall = np.ascontiguousarray(H.T)
    for start in range(0, coo.nnz, ROWS_AT_A_TIME):
        part = slice(start, start + ROWS_AT_A_TIME)
        v = coo.data[part].astype(np.float64)
        model = np.einsum("ij,ij->i", W[coo.row[part]], tall[coo.col[part]])
        kept = v > 0
        total += float(np.sum(v[kept] * np.log(v[kept] / model[kept]))) - float(v.sum())
    return total


def sklearn_nmf(V: Any, k: int, iterations: int, **parameters: Any) -> Peer:
    """scikit-learn's NMF for exactly so many iterations: coordinate descent by default."""
    from sklearn.decomposition import NMF

    given = {"max_iter": iterations, "tol": 0, **parameters}
    loss = kullback_leibler if "beta_loss" in given else frobenius_loss

    def run(seed: int) -> Run:
        model = NMF(k, random_state=seed, **given)
        seconds, W = clock(lambda: model.fit_transform(V))
        return Run(seconds, loss(V, W, model.components_))

    return run


def sklearn_minibatch(V: Any, k: int) -> Peer:
    """scikit-learn's MiniBatchNMF as it comes: it decides itself when to stop."""
    from sklearn.decomposition import MiniBatchNMF

    def run(seed: int) -> Run:
        model = MiniBatchNMF(k, random_state=seed)
        seconds, W = clock(lambda: model.fit_transform(V))
        return Run(seconds, frobenius_loss(V, W, model.components_))

    return run


def dask_mu(V: np.ndarray, k: int, iterations: int) -> Peer:
    """Multiplicative updates in dask.array, the way one writes them down."""
    import dask
    import dask.array as da

    def fit(seed: int) -> tuple[Any, Any]:
        X = da.from_array(V, chunks=(-(-V.shape[0] // 8), -1)).persist()
        rng = da.random.default_rng(seed)
        W = rng.random((X.shape[0], k), chunks=(X.chunks[0], -1)).astype(V.dtype)
        H = rng.random((k, X.shape[1]), chunks=-1).astype(V.dtype)
        for _ in range(iterations):
            H = H * (W.T @ X) / (W.T @ W @ H + 1e-9)
            W = W * (X @ H.T) / (W @ (H @ H.T) + 1e-9)
            W, H = dask.persist(W, H)
        return dask.compute(W, H)

    def run(seed: int) -> Run:
        seconds, (W, H) = clock(lambda: fit(seed))
        return Run(seconds, frobenius_loss(V, W, H))

    return run


def planc(context: Context, V: np.ndarray, k: int, iterations: int, method: str) -> Peer:
    """pyplanc (C++) in a process of its own, which reports its own seconds and loss.

    It gets the transpose, and one BLAS thread under its two OpenMP threads: that way it is
    fastest, by a factor of two to ten.
    """
    python = context.pyplanc
    if not python:
        raise SkippedError("no Python with pyplanc was named (--pyplanc)")
    folder = Path(tempfile.mkdtemp(dir=context.scratch))
    np.save(folder / "V.npy", V)
    child = Path(__file__).with_name("planc_child.py")
    limits = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}

    def run(seed: int) -> Run:
        out = folder / "found.json"
        command = [python, str(child), str(folder / "V.npy"), str(out)]
        command += [str(k), str(iterations), method, str(seed)]
        environment = {**os.environ, **limits}
        environment.pop("PYTHONPATH", None)  # it would bring this environment's packages along
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
        except OSError as error:
            raise SkippedError(f"{python}: {error}") from error
        if "No module named" in done.stderr:
            raise SkippedError(f"{python}: {done.stderr.strip().splitlines()[-1]}")
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            raise RuntimeError(f"pyplanc ended with {done.returncode}")
        found = json.loads(out.read_text(encoding="utf8"))
        return Run(found["seconds"], found["loss"])

    return run
