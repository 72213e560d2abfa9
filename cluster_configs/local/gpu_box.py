"""A fit on a machine with GPUs that prepare the data: a worker beside each (dask-cuda, CuPy).

    python gpu_box.py raw.zarr 16 nmf.zarr nmf.run

dasknmf itself computes on CPUs. Where blocks of V are made on a GPU (a Fourier transform, a
calibration), the worker beside it makes them, copies them to the machine's memory, and its CPU
threads factorise them: V as a whole is neither stored nor moved. The same command goes on where an
earlier one was stopped.
"""

import os
import sys

import cupy
from dask_cuda import LocalCUDACluster
from distributed import Client

from dasknmf import NMF, open_matrix

CORES = len(os.sched_getaffinity(0))
SCRATCH = os.environ.get("TMPDIR", "/tmp")  # a fast disk: what memory does not hold


def prepare(block):
    """Make a block of V (rows × columns, non-negative) of a raw one: on the GPU, back to NumPy."""
    return cupy.log1p(cupy.asarray(block)).get()  # change: what your data need


def fit(raw: str, k: int, output: str, run: str) -> None:
    """Start a worker for each GPU, fit, close them."""
    gpus = cupy.cuda.runtime.getDeviceCount()
    with (
        LocalCUDACluster(
            threads_per_worker=max(1, CORES // gpus),  # the default, 1, would leave cores idle
            memory_limit="auto",  # of the machine's memory, a worker's share
            local_directory=SCRATCH,
            host="127.0.0.1",  # nobody else on the network can connect, and so run code
            dashboard_address="127.0.0.1:0",  # any free port: others may run Dask here
        ) as cluster,
        Client(cluster) as client,
    ):
        X = open_matrix(raw)
        # with meta, prepare is not tried on an empty block here, outside of the workers
        V = X.map_blocks(prepare, dtype=X.dtype, meta=X._meta)
        model = NMF(k, random_state=0, checkpoint=run, verbose=1).fit(V, client=client)
        model.save(output)


if __name__ == "__main__":  # workers import this file, and must not start workers
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    fit(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
