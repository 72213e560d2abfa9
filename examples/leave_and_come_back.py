"""Start a fit on a running Dask cluster, leave, and come back to it by its checkpoint.

    python examples/leave_and_come_back.py start ADDRESS [--out DIR] [--passes N]
    python examples/leave_and_come_back.py watch [--out DIR]

`start` hands the whole fit to the cluster and ends: nothing of it is left on this machine. `watch`,
hours later and from any machine that sees the folder, redraws the loss until the fit has ended. A
cluster that was shut down meanwhile costs nothing either: the same `start` goes on from the last
commit.

ADDRESS is what `dask scheduler` says, and the folder has to be one that the workers see, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from indian_pines import load_cube, write_pixels

import dasknmf

INTERVAL = 2.0  # seconds between two looks


def fit(matrix: str, run: str, passes: int) -> int:
    """Fit on the cluster from within one of its tasks; give the number of passes.

    The task lends its thread to the slabs meanwhile. When its worker dies, the scheduler gives it
    to another one, which goes on from the last commit (``takeover``: the dead can't say goodbye).
    """
    from distributed import worker_client

    model = dasknmf.NMF(
        16, tol=0, max_iter=passes, random_state=0, checkpoint=run, takeover=True
    )  # a real fit has tol, and so ends by itself
    with worker_client() as client:
        model.fit(dasknmf.open_matrix(matrix), client=client)
    return model.n_iter_


def start(address: str, folder: Path, passes: int) -> None:
    """Write the data where there are none, hand the fit over, and leave."""
    from distributed import Client, fire_and_forget

    matrix, run = (folder / "cube.zarr").resolve(), (folder / "cube.run").resolve()
    if not matrix.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_pixels(load_cube(), matrix)
    with Client(address, timeout=30) as client:
        # the name of the run as the key: a second start while it goes on is the same task
        future = client.submit(fit, str(matrix), str(run), passes, key=f"fit-{run}")
        fire_and_forget(future)  # or the fit would end when nobody waits for it
        # What is sent is not yet received: gone before a worker has the task, it would be dropped.
        while not any(future.key in keys for keys in client.processing().values()):
            if future.done():
                future.result()  # or the error
                break
            time.sleep(0.2)
    print(f"started; it is called {run}")


def newest(run: Path) -> Any:
    """Give the model as last committed; None as long as there is none."""
    if not (run / "run.json").exists():
        return None
    try:
        return dasknmf.load(run)
    except dasknmf.MissingError:  # nothing is committed yet
        return None


def watch(folder: Path) -> None:
    """Redraw the loss after every commit until the fit has ended."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from dasknmf import plotting

    drawn, picture = 0, folder / "cube.png"
    while True:
        model = newest(folder / "cube.run")
        passes = 0 if model is None else len(model.history_["loss"])
        if passes > drawn:
            drawn = passes
            ax = plotting.plot_loss(model.history_, x="pass")
            ax.figure.savefig(picture, dpi=150)
            plt.close(ax.figure)
            reads, error = model.history_["reads"][-1], model.history_["relative_error"][-1]
            print(f"relative error {error:.5f} after {reads:.0f} reads of the data", flush=True)
        if model is not None and model.outcome_ is not dasknmf.Outcome.UNFINISHED:
            break
        time.sleep(INTERVAL)
    print(f"{model.outcome_.value}\npicture  {picture.resolve()}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("start", "watch"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, default=Path(), help="folder of data and run")
        if name == "start":
            command.add_argument("address", help="of the scheduler, such as tls://10.0.0.1:8786")
            command.add_argument("--passes", type=int, default=60, help="of the fit (60)")
    options = parser.parse_args(argv)
    if options.command == "start":
        start(options.address, options.out, options.passes)
    else:
        watch(options.out)


if __name__ == "__main__":
    main()
