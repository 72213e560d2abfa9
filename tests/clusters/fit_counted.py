"""A fit that stops after each pass until it is told to go on: ``fit_counted.py ADDRESS V.zarr``."""

from __future__ import annotations

import sys

from distributed import Client

import dasknmf


def wait(info: dasknmf.PassInfo) -> None:
    """Say that a pass is over, and wait for a line."""
    print(info.phase, info.number, flush=True)
    sys.stdin.readline()


def main(address: str, matrix: str, workers: str, k: str, passes: str) -> None:
    """Fit, counted pass by pass."""
    with Client(address, timeout=120) as client:
        client.wait_for_workers(int(workers), timeout=200)
        model = dasknmf.NMF(
            int(k), tol=0, max_iter=int(passes), random_state=0, compress=False, callbacks=[wait]
        )
        model.fit(dasknmf.open_matrix(matrix), client=client)


if __name__ == "__main__":
    main(*sys.argv[1:])
