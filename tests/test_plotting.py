"""Pictures draw what they claim and leave no state behind; the example runs from end to end."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import zarr  # noqa: E402
from PIL import Image  # noqa: E402

import dasknmf  # noqa: E402
from dasknmf import ParameterError, plotting  # noqa: E402

EXAMPLE = Path(__file__).parent.parent / "examples" / "indian_pines.py"


@pytest.fixture(autouse=True)
def no_state():
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


def drawn(ax):
    ax.figure.canvas.draw()  # whatever can go wrong goes wrong here
    return ax


def history(values, loss=None):
    reads = np.arange(1, len(values) + 1)
    return {
        "reads": reads,
        "relative_error": np.array(values, float),
        "loss": np.array(values if loss is None else loss, float),
    }


def test_loss_is_drawn_against_reads():
    ax = drawn(plotting.plot_loss(history([0.3, 0.2, 0.15]), floor=0.1))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 0.3], [2, 0.2], [3, 0.15]])
    assert set(ax.lines[1].get_ydata()) == {0.1}
    assert "SVD: 0.1" in ax.texts[0].get_text()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("reads of the data", "‖X − WH‖ / ‖X‖")
    low, high = ax.get_ylim()
    assert low < 0.1 < 0.3 < high


def test_where_no_relative_error_is_known_the_loss_is_drawn():
    ax = drawn(plotting.plot_loss(history([np.nan] * 3, loss=[30, 20, 10])))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [30, 20, 10])
    assert ax.get_ylabel() == "loss"


@pytest.mark.parametrize(
    "values",
    [[0.5, 0.0], [0.0], [0.0, 0.0, 0.0], [0.3], [0.5, 0.5, 0.5], [1, 1e-3, 1e-9], [9, 1, 1, 1]],
)
@pytest.mark.parametrize("floor", [None, 0.0, 0.01])
def test_every_history_can_be_drawn(values, floor):
    ax = drawn(plotting.plot_loss(history(values), floor))
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), values)
    assert np.isfinite(ax.get_ylim()).all()


def test_a_random_start_does_not_flatten_the_curve():
    ax = drawn(plotting.plot_loss(history([0.52, 0.027, 0.022, 0.02]), floor=0.0196))
    low, high = ax.get_ylim()
    assert 0.018 < low < 0.0196
    assert 0.027 < high < 0.03
    assert any("read 1: 0.52" in text.get_text() for text in ax.texts)
    np.testing.assert_array_equal(ax.lines[0].get_ydata()[0], 0.52)  # still in the data


@pytest.mark.parametrize("values", [[0.0268, 0.0214, 0.0197], [0.9, 0.6, 0.01, 0.001]])
def test_ticks_are_plain_numbers(values):
    ax = drawn(plotting.plot_loss(history(values)))
    low, high = ax.get_ylim()
    labels = [
        label.get_text()
        for tick, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
        if low <= tick <= high
    ]
    assert len(labels) >= 3
    assert [f"{float(label):g}" for label in labels] == labels


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7, 10, 17])
def test_components_and_maps_get_a_panel_each(rng, k):
    H, W = rng.random((k, 6)), rng.random((12, k))
    panels = plotting.plot_components(H, np.arange(10, 16), label="band")
    assert len(panels) == k
    for ax, row in zip(panels, H, strict=True):
        np.testing.assert_array_equal(ax.lines[0].get_xydata(), np.c_[np.arange(10, 16), row])
        assert ax.get_ylim()[0] == 0
    assert panels[-1].get_xlabel() == "band"
    assert sum(ax.get_visible() for ax in panels[0].figure.axes) == k
    maps = plotting.plot_maps(W, (3, 4))
    assert len(maps) == k
    for ax, column in zip(maps, W.T, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), column.reshape(3, 4))
        assert ax.images[0].get_clim() == (0, np.quantile(column, 0.995))
    for panel in (panels[0], maps[0]) if k in (1, 3, 17) else ():
        drawn(panel)


def test_zero_components_can_be_drawn():
    for ax in plotting.plot_components(np.zeros((3, 5))):
        assert ax.get_ylim()[0] == 0
    maps = plotting.plot_maps(np.zeros((6, 3), np.float32), (2, 3))
    assert {ax.images[0].get_clim() for ax in maps} == {(0, 1)}
    drawn(maps[0])
    np.testing.assert_array_equal(plotting.shares(np.zeros((6, 3)), np.zeros((3, 5))), [0, 0, 0])


def test_given_axes_are_drawn_on_and_nothing_else_is_made(rng):
    figure, axes = plt.subplots(2, 3)
    other = plt.figure()
    assert plotting.plot_components(rng.random((4, 5)), axes=axes) == list(axes.ravel()[:4])
    assert plotting.plot_maps(rng.random((6, 5)), (2, 3), axes=axes) == list(axes.ravel()[:5])
    assert plotting.plot_loss(history([0.2, 0.1]), ax=axes[1, 2]) is axes[1, 2]
    assert plt.get_fignums() == [figure.number, other.number]
    assert plt.gcf() is other
    assert all(ax.get_visible() for ax in axes.ravel())
    with pytest.raises(ValueError, match="6 axes for 7 components"):
        plotting.plot_components(rng.random((7, 5)), axes=axes)


def test_titles_and_shares_say_which_component_it_is(rng):
    W, H = rng.random((8, 3)), rng.random((3, 5))
    expected = [(W[:, [i]] @ H[[i]]).sum() / (W @ H).sum() for i in range(3)]
    np.testing.assert_allclose(plotting.shares(W, H), expected)
    titles = ["a", "b", "c"]
    for axes in (
        plotting.plot_components(H, titles=titles),
        plotting.plot_maps(W, (2, 4), titles=titles),
    ):
        assert [ax.get_title() for ax in axes] == titles


@pytest.mark.parametrize(
    ("x", "label"),
    [("reads", "reads of the data"), ("pass", "passes"), ("seconds", "seconds since the start")],
)
def test_loss_is_drawn_by_reads_passes_or_seconds(x, label):
    columns = {
        **history([0.9, 0.2, 0.1]),
        "pass": np.array([1, 2, 3]),
        "seconds": np.array([0.25, 0.5, 4]),
    }
    ax = drawn(plotting.plot_loss(columns, x=x))
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), columns[x])
    assert ax.get_xlabel() == label
    where = {"reads": "read 1", "pass": "pass 1", "seconds": "0.25 s"}[x]
    assert ax.texts[0].get_text() == f"{where}: 0.9, off the scale"
    with pytest.raises(ValueError, match="x='time'; expected one of 'reads', 'pass', 'seconds'"):
        plotting.plot_loss(columns, x="time")


def test_a_heat_map_shows_every_component_with_maximum_one_and_its_names(rng):
    H = rng.random((4, 7)) * [[1], [10], [0], [1e-9]]
    names = [f"word {j}" for j in range(6)] + ["a very long name of a feature with $ in it"]
    ax = drawn(plotting.plot_heatmap(H, names, "word"))
    shown = ax.images[0].get_array()
    np.testing.assert_allclose(shown.max(axis=1), [1, 1, 0, 1])
    np.testing.assert_allclose(shown[1], H[1] / H[1].max())
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels[:6] == names[:6]
    assert labels[6] == "a very long name of a…"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("word", "component")
    many = drawn(plotting.plot_heatmap(rng.random((2, 500)), list(range(500))))
    assert len(many.get_xticks()) <= 60
    with pytest.raises(ValueError, match="names has 7 entries; expected 6"):
        plotting.plot_heatmap(H[:, 1:], names)


def test_top_features_are_bars_from_the_top_down():
    H = np.array([[1.0, 3, 0, 2], [0, 0, 0, 0]])
    names = ["a", "b", "c", "$d_{"]
    first, second = plotting.plot_top_features(H, names, 3)
    drawn(first)
    assert [bar.get_width() for bar in first.patches] == [3, 2, 1]
    assert [label.get_text() for label in first.get_yticklabels()] == ["b", r"\$d_{", "a"]
    assert first.get_ylim()[0] > first.get_ylim()[1]
    assert len(second.patches) == 0
    assert second.get_xlabel() == "weight"
    plain = plotting.plot_top_features(H)[0]
    assert [label.get_text() for label in plain.get_yticklabels()] == ["1", "3", "0"]


def test_components_are_images_and_sizes_must_fit(rng):
    H = rng.random((3, 12))
    for ax, row in zip(plotting.plot_images(H, (3, 4)), H, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), row.reshape(3, 4))
    with pytest.raises(ValueError, match="12 values don't fill a picture of 3 × 5"):
        plotting.plot_images(H, (3, 5))


def test_residuals_with_a_sign_are_symmetric_about_white(rng):
    size = rng.random(12)
    ax = drawn(plotting.plot_residuals(size, (3, 4)))
    np.testing.assert_array_equal(ax.images[0].get_array(), size.reshape(3, 4))
    assert ax.images[0].get_clim()[0] == 0
    ax = drawn(plotting.plot_residuals(size - 0.9, (3, 4), "counts"))
    low, high = ax.images[0].get_clim()
    assert low == -high < 0
    white = ax.images[0].cmap(ax.images[0].norm(0.0))
    np.testing.assert_allclose(white[:3], 1, atol=0.04)
    assert ax.figure.axes[1].get_ylabel() == "counts"
    drawn(plotting.plot_residuals(np.zeros(12), (3, 4)))


def test_a_consensus_is_drawn_in_blocks():
    labels = np.array([0, 1, 0, 1, 2, 0])
    C = (labels[:, None] == labels).astype(float)
    ax = drawn(plotting.plot_consensus(C, list("abcdef")))
    shown = np.asarray(ax.images[0].get_array())
    np.testing.assert_array_equal(shown, shown.T)
    edges = np.flatnonzero(np.diff(shown, axis=0).any(axis=1))
    assert len(edges) == 2  # three blocks
    names = [label.get_text() for label in ax.get_yticklabels()]
    order = ["abcdef".index(name) for name in names]
    np.testing.assert_array_equal(shown, C[np.ix_(order, order)])
    given = plotting.plot_consensus(C, order=np.arange(6)[::-1])
    np.testing.assert_array_equal(given.images[0].get_array(), C[::-1, ::-1])
    with pytest.raises(ValueError, match="names has 2 entries; expected 6"):
        plotting.plot_consensus(C, ["a", "b"])


@pytest.mark.parametrize("kind", ["mapping", "structured", "frame"])
def test_ranks_have_a_panel_for_every_known_column_and_the_chosen_one_marked(kind):
    columns = {
        "rank": np.array([2, 3, 4]),
        "loss": np.array([3.0, 2.0, 1.5]),
        "cophenetic": np.array([np.nan, 0.9, 0.8]),
        "stability": np.full(3, np.nan),  # of one restart
        "seconds": np.array([1.0, 2, 3]),
    }
    table = columns
    if kind == "structured":
        table = np.rec.fromarrays(list(columns.values()), names=list(columns))
    if kind == "frame":
        table = pytest.importorskip("pandas").DataFrame(columns)
    axes = plotting.plot_ranks(table, chosen=3)
    assert [ax.get_title() for ax in axes] == ["loss", "cophenetic correlation"]
    np.testing.assert_array_equal(axes[0].lines[0].get_xydata(), [[2, 3], [3, 2], [4, 1.5]])
    np.testing.assert_array_equal(axes[1].lines[0].get_xydata(), [[3, 0.9], [4, 0.8]])
    for ax in axes:
        assert list(ax.lines[1].get_xdata()) == [3, 3]
        assert list(ax.lines[2].get_xdata()) == [3]
        assert ax.get_xlabel() == "rank (chosen: 3)"
        drawn(ax)
    assert len(plotting.plot_ranks(table)[0].lines) == 1
    with pytest.raises(ValueError, match="expected one named 'rank'"):
        plotting.plot_ranks({"loss": [1.0]})
    with pytest.raises(ValueError, match="expected some of"):
        plotting.plot_ranks({"rank": [1], "stability": [np.nan]})


def test_the_topics_example_prints_topics_and_never_replaces_its_files(tmp_path, capsys):
    topics = load(EXAMPLE.with_name("topics.py"))
    topics.main(["--out", str(tmp_path), "--topics", "4"])
    printed = capsys.readouterr().out
    assert "395 stories × 4258 words, 84010 in all" in printed
    assert printed.count("NPMI") == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["topics.html", "topics.png"]
    with pytest.raises(SystemExit, match=r"topics.html exist; use --overwrite"):
        topics.main(["--out", str(tmp_path)])
    assert plt.get_fignums() == []


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("tensorly", reason="the example's data is in that package")
    return load(EXAMPLE)


def test_the_example_writes_matrix_model_and_picture_and_never_replaces_them(
    example, tmp_path, capsys, indian_pines
):
    arguments = ["--out", str(tmp_path / "new"), "--passes", "2"]
    with pytest.warns(ConvergenceWarning):
        example.main(arguments)
    folder = tmp_path / "new"
    names = ["indian_pines.png", "indian_pines.zarr", "indian_pines_model.zarr"]
    assert sorted(p.name for p in folder.iterdir()) == names
    np.testing.assert_array_equal(zarr.open_array(folder / names[1])[...], indian_pines)
    model = dasknmf.load(folder / names[2])
    assert model.components_.shape == (16, 200)
    assert model.history_["relative_error"][-1] < 0.025
    assert f"{model.history_['relative_error'][-1]:.5f} in 2 passes" in capsys.readouterr().out
    with Image.open(folder / names[0]) as picture:
        picture.verify()
        assert picture.format == "PNG"
        assert min(picture.size) > 1000
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with pytest.raises(SystemExit, match=r"indian_pines.png exist; use --overwrite"):
        example.main(arguments)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert plt.get_fignums() == []


def test_the_example_s_floor_is_the_error_of_the_truncated_svd(example, rng):
    X = rng.random((30, 9)).astype(np.float32)
    values = np.linalg.svd(X.astype(float), compute_uv=False)
    expected = np.sqrt((values[4:] ** 2).sum() / (values**2).sum())
    np.testing.assert_allclose(example.svd_error(X, 4), expected, rtol=1e-6)


def test_the_history_of_a_run_that_has_just_begun_is_refused_with_what_to_do():
    empty = {name: np.empty(0) for name in ("reads", "loss", "relative_error")}
    with pytest.raises(ParameterError, match="no pass yet"):
        plotting.plot_loss(empty)
