"""A resumable fit by worker processes on this machine, for programs and notebooks of your own.

    python fit_here.py V.zarr -k 16 -o nmf.zarr --checkpoint nmf.run

Everything is what `dasknmf fit` takes, which has --workers for the same. Without any cluster a fit
runs on threads, and gives the same bits; processes are for a V whose blocks Python code makes.
Exit codes are those of `dasknmf fit`: 75 says that the same command goes on.
"""

import os
import sys

from distributed import LocalCluster

from dasknmf.cli import main

THREADS = int(os.environ.get("THREADS", "2"))  # of each worker: one reads while the other computes
WORKERS = int(os.environ.get("WORKERS", "0")) or max(1, len(os.sched_getaffinity(0)) // THREADS)
MEMORY = os.environ.get("MEMORY", "auto")  # of each worker, such as 8GB; auto: its share of all
SCRATCH = os.environ.get("TMPDIR", "/tmp")  # a fast disk: what memory does not hold


def fit(options: list[str]) -> None:
    """Start the cluster, fit, close it."""
    with LocalCluster(
        n_workers=WORKERS,
        threads_per_worker=THREADS,
        memory_limit=MEMORY,
        local_directory=SCRATCH,
        host="127.0.0.1",  # nobody else on the network can connect, and so run code
        dashboard_address="127.0.0.1:0",  # any free port: others may run Dask here
    ) as cluster:
        main(["fit", *options, "--scheduler", cluster.scheduler_address])


if __name__ == "__main__":  # workers import this file, and must not start workers
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    fit(sys.argv[1:])
