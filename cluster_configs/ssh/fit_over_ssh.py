"""A resumable fit on machines that are reached by ssh: no batch system.

    python fit_over_ssh.py hosts.txt V.zarr -k 16 -o nmf.zarr --checkpoint nmf.run

Everything after the hosts file is what `dasknmf fit` takes. Every machine needs this Python at the
same path, the same files (V, the results, the current folder), and ssh without a password.
Exit codes are those of `dasknmf fit`: 75 says that the same command goes on.
"""

import os
import subprocess
import sys
import tempfile

import dask
from distributed import SSHCluster

from dasknmf.cli import main

THREADS = int(os.environ.get("THREADS", "4"))  # of each worker: the cores of a machine
MEMORY = os.environ.get("MEMORY", "auto")  # of each worker, such as 16GB; auto: the machine's
INTERFACE = os.environ.get("INTERFACE") or None  # the fast network where there are several


def keys(folder: str) -> dict[str, object]:
    """Make a key for this run alone: who can connect to a scheduler can run code as its owner."""
    key, certificate = f"{folder}/key.pem", f"{folder}/certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
         "-subj", "/CN=dasknmf", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )  # fmt: skip
    settings: dict[str, object] = {"require-encryption": True, "tls.ca-file": certificate}
    for role in ("scheduler", "worker", "client"):
        settings |= {f"tls.{role}.key": key, f"tls.{role}.cert": certificate}
    return {f"distributed.comm.{name}": value for name, value in settings.items()}


def fit(hosts: list[str], options: list[str]) -> None:
    """Start the cluster, fit, close it."""
    network = {"protocol": "tls", "interface": INTERFACE}
    # In the current folder, which the machines share; only its owner can read it. Dask hands its
    # configuration, with these paths, to what it starts by ssh.
    with tempfile.TemporaryDirectory(prefix=".nmf-", dir=".") as folder:
        dask.config.set(keys(os.path.abspath(folder)))
        with SSHCluster(
            hosts,
            remote_python=sys.executable,
            # a free port, as others may run Dask there; no password, so the loopback (ssh -L)
            scheduler_options={**network, "port": 0, "dashboard_address": "127.0.0.1:0"},
            worker_options={**network, "nthreads": THREADS, "memory_limit": MEMORY},
        ) as cluster:
            main(["fit", *options, "--scheduler", cluster.scheduler_address, "--wait", "600"])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    with open(sys.argv[1]) as lines:
        named = [line.split("#")[0].strip() for line in lines]
    fit([name for name in named if name], sys.argv[2:])
