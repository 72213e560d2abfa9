"""Runs tests in a process forked from one that holds the imports, but not the package itself."""

import os
import sys

PASSED, FAILED, ANOTHER_COPY = 100, 101, 99  # other codes: the run itself went wrong


def run(folder, command, log):
    """Run pytest with ``folder`` first on the path, output to ``log``; exit with 100 + its code."""
    with open(log, "w", encoding="utf8") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(folder)
    sys.path.insert(0, folder)
    import pytest

    code = 100 + pytest.main(command)
    import dasknmf

    if not dasknmf.__file__.startswith(folder):
        code = ANOTHER_COPY
    sys.stdout.flush()
    os._exit(code)
