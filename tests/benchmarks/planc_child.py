"""Run by the Python that has pyplanc: FILE OUT K ITERATIONS METHOD SEED."""

import json
import sys
import time

import numpy as np
import pyplanc


def main(path, out, k, iterations, method, seed):
    """Factorise the transpose from a random start, and write seconds and 1/2 ||V - W H||²."""
    V = np.asfortranarray(np.load(path).T.astype(np.float64))
    small = np.asfortranarray(V[:, :200])
    pyplanc.nmf(small, k, niter=2, algo=method, ncores=2)
    rng = np.random.default_rng(seed)
    began = time.perf_counter()
    start = {
        name: np.asfortranarray(rng.random((size, k)))
        for name, size in zip(("Winit", "Hinit"), V.shape, strict=True)
    }
    found = pyplanc.nmf(V, k, niter=iterations, algo=method, ncores=2, **start)
    seconds = time.perf_counter() - began
    loss = 0.5 * float(np.sum(np.square(V - found.W @ found.H.T)))
    with open(out, "w", encoding="utf8") as file:
        json.dump({"seconds": seconds, "loss": loss}, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5]), sys.argv[5], int(sys.argv[6]))
