"""Models on Zarr: exact, all-or-nothing, and refused where something is wrong."""

from __future__ import annotations

import warnings
import zipfile

import dask.array as da
import numpy as np
import pytest
import zarr
from conftest import planted
from sklearn.exceptions import NotFittedError

import dasknmf
from dasknmf import NMF, DataError, StoreError
from dasknmf.storage import arrays

SAME = ("reconstruction_err_", "n_iter_", "outcome_", "n_components_", "n_features_in_")


def fitted(X, **changed):
    settings = {"n_components": 3, "tol": 0, "max_iter": 3, "random_state": 0, **changed}
    model = NMF(**settings)
    model.fit_transform(X)
    return model


@pytest.fixture(scope="module")
def model():
    return fitted(planted(np.random.default_rng(1), rows=50, columns=9))


def assert_same(loaded, model):
    assert loaded.get_params() == model.get_params()
    np.testing.assert_array_equal(loaded.components_, model.components_, strict=True)
    assert list(loaded.history_) == list(model.history_)
    for name, column in model.history_.items():
        np.testing.assert_array_equal(loaded.history_[name], column, strict=True)
    for name in (*SAME, "fingerprint_"):
        assert getattr(loaded, name) == getattr(model, name), name
    if not hasattr(model, "W_"):
        assert not hasattr(loaded, "W_")
        return
    assert isinstance(loaded.W_, da.Array)
    np.testing.assert_array_equal(loaded.W_.compute(), np.asarray(model.W_), strict=True)


def listing(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunks", [None, (13, 9), ((1, 30, 2, 17), (4, 5))])
def test_a_round_trip_keeps_every_bit(rng, tmp_path, monkeypatch, dtype, chunks):
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 200)  # several chunks of W, across those of X
    X = planted(rng, rows=50, columns=9, dtype=dtype)
    model = fitted(X if chunks is None else da.from_array(X, chunks), alpha_W=0.01, alpha_H=0.02)
    model.save(tmp_path / "m.zarr")
    loaded = dasknmf.load(tmp_path / "m.zarr")
    assert_same(loaded, model)
    assert len(loaded.W_.chunks[0]) > 3
    assert model.components_.dtype == dtype
    new = planted(rng, rows=20, columns=9, dtype=dtype)
    np.testing.assert_array_equal(loaded.transform(new), model.transform(new), strict=True)
    np.testing.assert_array_equal(
        loaded.inverse_transform(loaded.W_), model.inverse_transform(np.asarray(model.W_))
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"beta_loss": "kullback-leibler"},
        {"beta_loss": 1.5, "solver": "mu", "init": "random"},
        {"random_state": np.int64(7), "n_components": np.int32(2)},
        {"tol": 1e-3, "max_iter": 50},
    ],
)
def test_parameters_come_back_as_they_were(rng, tmp_path, changed):
    model = fitted(planted(rng, rows=40, columns=8), **changed)
    model.save(tmp_path / "m")
    assert_same(dasknmf.load(tmp_path / "m"), model)


def test_feature_names_come_back(rng, tmp_path):
    pandas = pytest.importorskip("pandas")
    names = ["a", "Ω", "c d", "e"]
    frame = pandas.DataFrame(planted(rng, rows=20, columns=4), columns=names)
    model = fitted(frame, n_components=2)
    model.save(tmp_path / "m")
    loaded = dasknmf.load(tmp_path / "m")
    assert loaded.feature_names_in_.tolist() == names
    np.testing.assert_array_equal(loaded.transform(frame), model.transform(frame))


def test_w_is_written_if_there_is_one_or_it_is_given(rng, tmp_path):
    X = planted(rng, rows=20, columns=6)
    model = NMF(2, tol=0, max_iter=2, random_state=0).fit(X)
    model.save(tmp_path / "without")
    assert not hasattr(dasknmf.load(tmp_path / "without"), "W_")
    W = model.transform(X)
    model.save(tmp_path / "with", W=W)
    np.testing.assert_array_equal(dasknmf.load(tmp_path / "with").W_.compute(), W)


@pytest.mark.parametrize("shape", [(49, 3), (50, 2), (50,), (3, 50)])
@pytest.mark.parametrize("make", [np.ones, da.ones])
def test_a_w_of_another_shape_is_refused(model, tmp_path, shape, make):
    with pytest.raises(DataError, match=r"expected \(50, 3\)"):
        model.save(tmp_path / "m", W=make(shape))
    assert listing(tmp_path) == []


def test_saving_before_fit_is_refused(tmp_path):
    with pytest.raises(NotFittedError):
        NMF().save(tmp_path / "m")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("options", [{}, {"consolidated": False}])
def test_xarray_opens_it_with_named_dimensions_and_no_warning(model, tmp_path, options):
    xarray = pytest.importorskip("xarray")
    model.save(tmp_path / "m.zarr")
    assert zarr.open_group(tmp_path / "m.zarr", mode="r").metadata.zarr_format == 3
    with xarray.open_zarr(tmp_path / "m.zarr", **options) as data:
        assert data.H.dims == ("component", "feature")
        assert data.W.dims == ("sample", "component")
        assert {data[name].dims for name in data if name.startswith("history")} == {("pass",)}
        np.testing.assert_array_equal(data.H, model.components_)
        np.testing.assert_array_equal(data.W, model.W_)


class Crash(BaseException):
    """Not even an Exception: a killed process, as far as a test can."""


def break_writing(monkeypatch, name):
    """Let the writing of one array fail after the others are there."""
    write = arrays.write

    def broken(place, which, array, dimensions):
        write(place, which, array, dimensions)
        if which == name:
            raise Crash

    monkeypatch.setattr(arrays, "write", broken)


@pytest.mark.parametrize("where", ["m.zarr", "deep/down/m.zarr", "m.zip"])
def test_a_failed_save_leaves_nothing(model, tmp_path, monkeypatch, where):
    break_writing(monkeypatch, "W")
    with pytest.raises(Crash):
        model.save(tmp_path / where)
    assert [p for p in tmp_path.rglob("*") if "m." in p.name] == []


@pytest.mark.parametrize("at", ["H", "history_loss", "mark", "swap"])
@pytest.mark.parametrize("name", ["m.zarr", "m.zip"])
def test_overwriting_is_all_or_nothing(model, rng, tmp_path, monkeypatch, at, name):
    path = tmp_path / name
    model.save(path)
    before = listing(tmp_path)
    other = fitted(planted(rng, rows=20, columns=5), n_components=2)
    with monkeypatch.context() as patched:
        if at == "swap":
            rename = type(path).rename

            def broken(self, target):
                if target == path and len(self.name.split(".")) == 4 and self not in renamed:
                    raise Crash
                renamed.add(target)
                return rename(self, target)

            renamed = set()
            patched.setattr(type(path), "rename", broken)
        elif at == "mark":
            patched.setattr(
                zarr, "consolidate_metadata", lambda place: (_ for _ in ()).throw(Crash)
            )
        else:
            break_writing(patched, at)
        with pytest.raises(Crash):
            other.save(path, overwrite=True)
    assert listing(tmp_path) == before
    assert_same(dasknmf.load(path), model)
    other.save(path, overwrite=True)
    assert_same(dasknmf.load(path), other)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["m.zarr", "m.zip"])
def test_an_existing_path_is_refused_and_left_as_it_is(model, tmp_path, name):
    model.save(tmp_path / name)
    before = listing(tmp_path)
    for store in (tmp_path / name, str(tmp_path / name), f"file://{tmp_path / name}"):
        with pytest.raises(StoreError, match=r"exists; nothing was written.*overwrite=True"):
            model.save(store)
    assert listing(tmp_path) == before
    assert_same(dasknmf.load(tmp_path / name), model)


def test_a_path_that_came_into_being_meanwhile_is_not_replaced(model, tmp_path, monkeypatch):
    write = arrays.write

    def slow(place, which, array, dimensions):
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / "zarr.json").touch()
        write(place, which, array, dimensions)

    monkeypatch.setattr(arrays, "write", slow)
    with pytest.raises(StoreError, match="exists"):
        model.save(tmp_path / "m")
    assert listing(tmp_path) == ["m", "m/zarr.json"]


def test_overwrite_never_deletes_what_is_no_zarr_store(model, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("irreplaceable")
    (tmp_path / "file").write_text("irreplaceable")
    before = listing(tmp_path)
    for name in ("thesis", "file"):
        with pytest.raises(StoreError, match="would delete what it holds"):
            model.save(tmp_path / name, overwrite=True)
    assert listing(tmp_path) == before
    with pytest.raises(StoreError, match="is a file"):
        model.save(tmp_path / "file" / "m")


def test_overwrite_follows_a_link(model, tmp_path):
    model.save(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    model.save(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert_same(dasknmf.load(tmp_path / "real"), model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


def test_a_loaded_model_can_replace_itself(model, tmp_path):
    model.save(tmp_path / "m")
    dasknmf.load(tmp_path / "m").save(tmp_path / "m", overwrite=True)  # W is lazy on the old one
    assert_same(dasknmf.load(tmp_path / "m"), model)


def zip_of(path):
    return zipfile.ZipFile(path).namelist()


def test_a_path_ending_in_zip_is_one_file(model, tmp_path):
    model.save(tmp_path / "m.zip")
    assert "zarr.json" in zip_of(tmp_path / "m.zip")
    assert_same(dasknmf.load(tmp_path / "m.zip"), model)
    with pytest.raises(StoreError, match="Pass its path"):
        model.save(zarr.storage.ZipStore(tmp_path / "n.zip", mode="w"))


@pytest.fixture(params=["memory store", "memory url", "local store"])
def store(request, tmp_path):
    if request.param == "memory url":
        pytest.importorskip("fsspec")
        return f"memory://{tmp_path.name}/m.zarr"
    return (
        zarr.storage.MemoryStore()
        if "mem" in request.param
        else zarr.storage.LocalStore(tmp_path / "m")
    )


@pytest.mark.parametrize("chunks", [None, (7, 9)])
def test_other_stores_work_the_same(rng, store, chunks):
    X = planted(rng, rows=50, columns=9)
    model = fitted(X if chunks is None else da.from_array(X, chunks))
    model.save(store)
    assert_same(dasknmf.load(store), model)
    with pytest.raises(StoreError, match="exists"):
        model.save(store)
    loaded = dasknmf.load(store)
    loaded.save(store, overwrite=True)  # W is lazy on what is deleted first
    assert_same(dasknmf.load(store), model)


def test_a_store_in_memory_is_written_here_though_a_cluster_computes(rng, client):
    X = planted(rng, rows=60, columns=9)
    model = fitted(da.from_array(X, (20, 9)))
    for store in (zarr.storage.MemoryStore(), "memory://on-a-cluster/m.zarr"):
        model.save(store, overwrite=True)
        group = zarr.open_group(store, mode="r")
        np.testing.assert_array_equal(group["W"][...], model.W_.compute())


def test_workers_write_w_to_a_shared_disk(rng, client, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 400)
    monkeypatch.chdir(tmp_path)  # the workers stay where they are
    X = planted(rng, rows=60, columns=9)
    model = fitted(da.from_array(X, (20, 9)))
    model.save("relative.zarr")
    assert_same(dasknmf.load("relative.zarr"), model)
    assert listing(tmp_path)[0] == "relative.zarr"


def make_half(path, model):
    model.save(path)
    group = zarr.open_group(path, mode="r+")
    group.update_attributes({"dasknmf": {**dict(group.attrs)["dasknmf"], "complete": False}})


def make_newer(path, model):
    model.save(path)
    group = zarr.open_group(path, mode="r+")
    group.update_attributes({"dasknmf": {**dict(group.attrs)["dasknmf"], "version": 99}})


def make_array(path, model):
    zarr.create_array(path, data=np.ones((3, 3)))


def make_group(path, model):
    zarr.create_group(path, attributes={"encoding-type": "anndata"}).create_group("obs")


def make_broken_json(path, model):
    model.save(path)
    (path / "zarr.json").write_text("{")


def make_no_h(path, model):
    model.save(path)
    (path / "H" / "c" / "0" / "0").unlink()


def make_flipped(path, model):
    model.save(path)
    chunk = path / "H" / "c" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (None, "does not exist"),
        (lambda path, model: path.mkdir(), "expected a model"),
        (lambda path, model: path.write_text("text"), "expected a model"),
        (make_array, "open_matrix"),
        (make_group, r"group with \['obs'\], and no model"),
        (make_half, "interrupted. Save it again"),
        (make_newer, "version 99.*Update dasknmf"),
        (make_broken_json, "expected a model"),
        (make_no_h, "part of H is missing"),
        (make_flipped, "damaged"),
    ],
)
def test_what_is_no_sound_model_is_refused_with_advice(model, tmp_path, make, message):
    if make is not None:
        make(tmp_path / "m", model)
    before = listing(tmp_path)
    with pytest.raises(StoreError, match=message):
        dasknmf.load(tmp_path / "m")
    assert listing(tmp_path) == before


def test_damage_to_w_is_seen_when_it_is_read(model, tmp_path):
    model.save(tmp_path / "m")
    chunk = tmp_path / "m" / "W" / "c" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    with pytest.raises((ValueError, RuntimeError)):
        dasknmf.load(tmp_path / "m").W_.compute()
    chunk.unlink()
    assert np.isnan(dasknmf.load(tmp_path / "m").W_.compute()).all()


def test_a_model_without_sound_packages_metadata_still_saves(model, tmp_path, monkeypatch):
    def missing(name):
        raise dasknmf.results.PackageNotFoundError(name)

    monkeypatch.setattr(dasknmf.results, "version", missing)
    model.save(tmp_path / "m")
    assert_same(dasknmf.load(tmp_path / "m"), model)


def test_saving_is_silent(model, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.save(tmp_path / "m")
        dasknmf.load(tmp_path / "m").W_.compute()
    assert [str(w.message) for w in caught] == []
