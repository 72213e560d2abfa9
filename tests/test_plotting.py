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
from dasknmf import plotting  # noqa: E402

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


@pytest.mark.parametrize("k", range(1, 18))
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


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("tensorly", reason="the example's data is in that package")
    spec = importlib.util.spec_from_file_location("indian_pines", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
