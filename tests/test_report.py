"""A report is one file that needs nothing else, and says what the model says."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from conftest import planted

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

import dask.array as da  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402

from dasknmf import NMF, DataError, ParameterError, StoreError, report  # noqa: E402
from dasknmf.report import Code, Picture, Section, Table, Text  # noqa: E402

VOID = {"meta", "img", "br", "hr", "link"}
NASTY = '<script>alert("x")</script>&$_^{'


class Page(HTMLParser):
    """Text, tags, sources and table cells of a page; fails where tags are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.sources, self.rows = [], [], [], []
        self.tags, self.classes, self.captions = set(), [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            assert not name.startswith("on"), name
            if name in ("src", "href"):
                self.sources.append(value)
            if name == "alt":
                self.captions.append(value)
            if name == "class":
                self.classes.append((tag, value))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def read(path):
    page = Page(path.read_text(encoding="utf8"))
    assert "script" not in page.tags
    assert not {"link", "iframe", "object"} & page.tags
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    return page


def pictures(page):
    for source in page.sources:
        if not source.startswith("#"):
            kind, data = source.split(";base64,")
            yield kind.removeprefix("data:image/"), base64.b64decode(data)


@pytest.fixture(scope="module")
def fitted():
    X = planted(np.random.default_rng(3), rows=60, columns=12, k=3)
    model = NMF(3, random_state=0)
    model.fit_transform(X)
    return model


@pytest.fixture
def figure():
    drawn = Figure(figsize=(3, 2), layout="constrained")
    drawn.subplots().plot([1, 2], [3, 5])
    return drawn


def test_the_report_of_a_fit_tells_what_the_model_knows(fitted, tmp_path):
    before, figures = dict(matplotlib.rcParams), plt.get_fignums()
    path = fitted.report(tmp_path / "fit.html", shape=(6, 10))
    assert path == tmp_path / "fit.html"
    page = read(path)
    rows = {}
    for row in filter(None, page.rows):
        rows.setdefault(row[0], row[1:])
    assert rows["data"] == ["60 samples × 12 features"]
    assert rows["fingerprint of the data"] == [fitted.fingerprint_]
    error = float(fitted.history_["relative_error"][-1])
    assert rows["relative error ‖X − WH‖ / ‖X‖"] == [f"{error:.5g}"]
    assert rows["explained variance"] == [f"{1 - error**2:.5g}"]
    assert rows["random_state"] == ["0"]
    assert rows["numpy"] == [np.__version__]
    table = np.array([[i, *map(float, rows[i][:4])] for i in ("0", "1", "2")], float)
    np.testing.assert_allclose(sorted(-table[:, 1]), -fitted.separated().d, rtol=1e-4)
    np.testing.assert_array_equal(table[:, 2], np.bincount(fitted.hard_clusters(), minlength=3))
    np.testing.assert_allclose(table[:, 3], fitted.sparseness().W, rtol=1e-4)
    np.testing.assert_allclose(table[:, 4], fitted.sparseness().H, rtol=1e-4)
    passes = [row for row in page.rows if len(row) == len(fitted.history_)][1:]
    assert [float(row[0]) for row in passes] == fitted.history_["pass"].tolist()
    kinds = [kind for kind, _ in pictures(page)]
    assert kinds == ["svg+xml", "png", "svg+xml"]
    for kind, data in pictures(page):
        if kind == "png":
            with Image.open(BytesIO(data)) as image:
                image.verify()
        else:
            assert ElementTree.fromstring(data).tag.endswith("svg")
    assert plt.get_fignums() == figures
    assert dict(matplotlib.rcParams) == before


def test_what_the_report_says_to_run_gives_the_same_model(tmp_path):
    X = planted(np.random.default_rng(3), rows=60, columns=12, k=3)
    model = NMF(3, random_state=4, tol=0, max_iter=3, beta_loss="kullback-leibler")
    model.fit(X)
    text = model.report(tmp_path / "fit.html").read_text(encoding="utf8")
    page = Page(text)
    code = next(t for t in page.text if t.startswith("import dasknmf"))
    assert "max_iter=3" in code
    assert "solver" not in code  # a default
    found = {"X": X}
    exec(code, found)
    np.testing.assert_array_equal(found["model"].components_, model.components_)
    assert "explained variance" not in "".join(page.text)  # not known for this loss
    assert not any("nan" in row for row in page.rows if len(row) < 6)


def test_names_from_data_are_escaped_and_no_formulas(fitted, tmp_path):
    names = [f"{NASTY}{j}" for j in range(12)]
    path = fitted.report(tmp_path / "a.html", pd.DataFrame(np.zeros((60, 12)), columns=names))
    page = read(path)
    assert any(NASTY in cell for row in page.rows for cell in row)
    again = fitted.report(tmp_path / "b.html", names=names)
    assert list(pictures(read(again))) == list(pictures(page))  # the same bytes
    with pytest.raises(DataError, match="one name for each feature"):
        fitted.report(tmp_path / "c.html", names=names[1:])
    assert not (tmp_path / "c.html").exists()


@pytest.mark.parametrize("rows", ["none", "lazy"])
def test_a_report_needs_no_w_and_takes_a_lazy_one(rows, fitted, tmp_path):
    model = NMF(3)
    model.__dict__.update({k: v for k, v in vars(fitted).items() if k != "W_"})
    if rows == "lazy":
        model.W_ = da.from_array(fitted.W_, chunks=(25, 3))
    page = read(model.report(tmp_path / "fit.html"))
    assert any("samples it leads" in row for row in page.rows) == (rows == "lazy")
    if rows == "none":
        with pytest.raises(ParameterError, match="has no W_"):
            model.report(tmp_path / "maps.html", shape=(6, 10))
        with pytest.raises(DataError, match="don't fill a picture of 6 × 9"):
            fitted.report(tmp_path / "maps.html", shape=(6, 9))


def test_nothing_is_replaced_unasked_and_nothing_is_left_half_written(fitted, tmp_path):
    path = fitted.report(tmp_path / "fit.html")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"fit.html exists; nothing was written. Pass overwrite"):
        fitted.report(path)
    with pytest.raises(StoreError, match="in a folder that does not exist"):
        fitted.report(tmp_path / "no" / "fit.html")
    with pytest.raises(StoreError, match="is a folder"):
        fitted.report(tmp_path, overwrite=True)

    class Broken:
        title, blocks = "broken", [Text("\ud800")]  # can't be encoded

    with pytest.raises(UnicodeEncodeError):
        report.write_report(path, "t", [Broken], overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["fit.html"]
    fitted.report(path, overwrite=True)


def test_others_write_reports_of_the_same_blocks(figure, tmp_path):
    table = Table.of_columns(
        {NASTY: ["2" + NASTY, 3], "loss": [12.3456789, np.nan], "rule": ["a", None]},
        NASTY,
        chosen=1,
    )
    sections = [
        Section(NASTY, [table, Picture(figure, NASTY)]),
        Section("More", [Text(NASTY), Code(NASTY), Table(["a", "b"], [])]),
    ]
    page = read(report.write_report(tmp_path / "study.html", NASTY, sections))
    assert page.rows[0] == [NASTY, "loss", "rule"]
    assert page.rows[1:3] == [["2" + NASTY, "12.346", "a"], ["3", "–", "–"]]
    assert page.captions == [NASTY]
    assert ("tr", "chosen") in page.classes
    assert len(re.findall(re.escape(NASTY), "".join(page.text))) >= 6
    assert [kind for kind, _ in pictures(page)] == ["svg+xml"]


def test_values_are_shown_as_a_reader_wants_them():
    values = [None, float("nan"), 3, np.int64(12345678), 1 / 3, 1e-9, True, "x", np.float32(0.5)]
    assert [report.shown(v) for v in values] == [
        "–", "–", "3", "12345678", "0.33333", "1e-09", "True", "x", "0.5",
    ]  # fmt: skip
