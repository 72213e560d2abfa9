"""One HTML file about a fit or a study: tables, pictures, parameters, versions, how to repeat it.

The file needs nothing else: no network, no scripts, no fonts; pictures are in it. What comes from
data is escaped. A report is a list of sections of blocks, so that others can write one, too:

    write_report("study.html", "Rank study", [Section("Ranks", [Table(...), Picture(figure, ...)])])
"""

from __future__ import annotations

import base64
import io
import numbers
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np

from dasknmf.numerics.errors import StoreError
from dasknmf.results import PACKAGES

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 0 auto;
  max-width: 66rem; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem;
  border-bottom: 1px solid #ccc; padding-bottom: .2rem; }
.when, figcaption, caption { color: #595959; font-size: .9rem; }
nav a { margin-right: 1.1rem; } a { color: #0060a0; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem; }
caption { caption-side: top; text-align: left; padding-bottom: .3rem; white-space: nowrap; }
th, td { padding: .22rem .8rem .22rem 0; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
thead ~ tbody td:last-child:not(.number) { min-width: 15rem; }
thead th { border-bottom: 2px solid #888; overflow-wrap: normal; }
tbody tr + tr > * { border-top: 1px solid #e4e4e4; }
tbody th { font-weight: 600; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.chosen > * { background: #fdf0e4; font-weight: 600; }
.wide { overflow-x: auto; } figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
pre { background: #f4f4f4; padding: .8rem 1rem; overflow-x: auto; font-size: .88rem; }
summary { cursor: pointer; color: #0060a0; }
@media print { body { max-width: none; } nav { display: none; } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing from outside


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def html(self) -> str:
        """As HTML."""
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str

    def html(self) -> str:
        """As HTML."""
        return f"<pre><code>{escape(self.text)}</code></pre>"


@dataclass(frozen=True)
class Table:
    """Rows under a header; numbers are rounded, what is nan or None is shown as undefined.

    ``chosen`` is the number of a row to mark; ``folded`` hides the table until it is asked for.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    chosen: int | None = None
    folded: bool = False

    @staticmethod
    def of_columns(columns: Mapping[str, Any], caption: str = "", **more: Any) -> Table:
        """From equally long columns by name."""
        rows = list(zip(*columns.values(), strict=True))
        return Table(list(columns), rows, caption, **more)

    @staticmethod
    def of_pairs(pairs: Mapping[str, Any], caption: str = "") -> Table:
        """Names and values, without a header."""
        return Table((), list(pairs.items()), caption)

    def html(self) -> str:
        """As HTML."""
        numeric = [
            all(_is_number(row[i]) or row[i] is None for row in self.rows)
            for i in range(len(self.rows[0]) if self.rows else len(self.header))
        ]
        if not self.header:
            numeric = [False] * len(numeric)
        head = "".join(
            f'<th scope="col"{_number(is_number)}>{escape(str(name))}</th>'
            for name, is_number in zip(self.header, numeric, strict=bool(self.header))
        )
        chosen = ' class="chosen"'
        body = "".join(
            f"<tr{chosen if i == self.chosen else ''}>{_cells(row, numeric)}</tr>"
            for i, row in enumerate(self.rows)
        )
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        head = f"<thead><tr>{head}</tr></thead>" if head else ""
        found = f'<div class="wide"><table>{caption}{head}<tbody>{body}</tbody></table></div>'
        if not self.folded:
            return found
        return f"<details><summary>Show {len(self.rows)} rows</summary>{found}</details>"


@dataclass(frozen=True)
class Picture:
    """A matplotlib figure; ``vector`` draws lines and letters, else pixels (for images).

    ``caption`` says what is seen, also to those who can't see it.
    """

    figure: Any
    caption: str
    vector: bool = True

    def html(self) -> str:
        """As HTML, the picture in it."""
        import matplotlib

        file = io.BytesIO()
        with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "dasknmf"}):
            if self.vector:
                self.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
            else:
                self.figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
        kind = "svg+xml" if self.vector else "png"
        data = base64.b64encode(file.getvalue()).decode("ascii")
        width = round(self.figure.get_figwidth() * 96)
        return (
            f'<figure><img width="{width}" src="data:image/{kind};base64,{data}" '
            f'alt="{escape(self.caption)}"><figcaption>{escape(self.caption)}</figcaption></figure>'
        )


Block = Text | Code | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    blocks: Sequence[Block]


def write_report(
    path: str | Path, title: str, sections: Sequence[Section], *, overwrite: bool = False
) -> Path:
    """Write a report; the path appears only when all of it is there.

    Parameters
    ----------
    path : str or path
        A file in a folder that exists.
    title : str
    sections : sequence of Section
    overwrite : bool
        Replace what is there.

    Returns
    -------
    path : Path
        Absolute.

    Raises
    ------
    StoreError
        The path exists, or its folder does not; nothing was written.
    """
    path = Path(path).expanduser().absolute()
    if path.exists() and not overwrite:
        raise StoreError(
            f"{path} exists; nothing was written. Pass overwrite=True, or another path."
        )
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise StoreError(f"{path} {what}; expected a path for a file, such as report.html.")
    text = render(title, sections)
    with NamedTemporaryFile("w", encoding="utf8", dir=path.parent, delete=False) as file:
        staged = Path(file.name)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            staged.chmod(0o644)
            staged.replace(path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
    return path


def render(title: str, sections: Sequence[Section]) -> str:
    """Give the HTML of a report."""
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    links = "".join(f'<a href="#s{i}">{escape(s.title)}</a>' for i, s in enumerate(sections))
    body = "\n".join(
        f'<section id="s{i}"><h2>{escape(s.title)}</h2>\n'
        + "\n".join(block.html() for block in s.blocks)
        + "\n</section>"
        for i, s in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n"
        f'<body><h1>{escape(title)}</h1>\n<p class="when">dasknmf, {escape(when)}</p>\n'
        f"<nav>{links}</nav>\n{body}\n</body></html>\n"
    )


def environment() -> Section:
    """Versions of what a result depends on."""
    versions = {name: _version(name) for name in PACKAGES}
    system = {"Python": platform.python_version(), "machine": platform.platform()}
    return Section("Versions", [Table.of_pairs({**system, **versions})])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a tree that was never installed
        return "not installed"


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Number) and not isinstance(value, bool | np.bool_)


def _number(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _cells(row: Sequence[Any], numeric: Sequence[bool]) -> str:
    first, *rest = row
    cells = [f'<th scope="row"{_number(numeric[0])}>{escape(shown(first))}</th>']
    cells += [
        f"<td{_number(is_number)}>{escape(shown(value))}</td>"
        for value, is_number in zip(rest, numeric[1:], strict=True)
    ]
    return "".join(cells)


def shown(value: Any) -> str:
    """A value as a reader wants it: five digits, and a dash for what is undefined."""
    if value is None:
        return "–"
    if _is_number(value) and not isinstance(value, int | np.integer):
        return "–" if np.isnan(value) else f"{value:.5g}"
    return f"{value}"
