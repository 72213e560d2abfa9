"""Matrices on disk: opened without being read, read by parts, refused where there is none."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections import Counter

import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from cloudpickle import dumps
from conftest import planted, sparse_counts

import dasknmf
from dasknmf import NMF, DataError, StoreError, open_matrix
from dasknmf.numerics import planning
from dasknmf.storage import arrays
from dasknmf.storage.matrices import save_matrix


def fit(X, **options):
    model = NMF(3, init="random", waves=1, tol=0, max_iter=3, random_state=0)
    W = model.fit_transform(X, **options)
    return np.asarray(W), model.components_


def write_zarr(path, V, zarr_format=3, chunks=(17, 11)):
    zarr.create_array(path, data=V, chunks=chunks, zarr_format=zarr_format)


def write_group(path, V):
    group = zarr.create_group(path)
    group.create_array("matrix", data=V, chunks=(50, 7))
    group.create_array("totals", data=V.sum(axis=1))


def write_layers(path, V):
    group = zarr.create_group(path).create_group("layers")
    group.create_array("a", data=V + 1)
    group.create_array("b", data=V)


def write_sparse(path, V, kind=sp.csr_array, zarr_format=3, chunk=100):
    matrix = kind(V)
    attributes = {
        "encoding-type": f"{matrix.format}_matrix",
        "encoding-version": "0.1.0",
        "shape": list(matrix.shape),
    }
    group = zarr.create_group(path, attributes=attributes, zarr_format=zarr_format)
    for name in ("data", "indices", "indptr"):
        group.create_array(name, data=getattr(matrix, name), chunks=(chunk,))
    return group


def write_anndata(path, X, zarr_format=3, **layers):
    anndata = pytest.importorskip("anndata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata, on its own future
        with anndata.settings.override(zarr_write_format=zarr_format):
            anndata.AnnData(X=X, layers=layers).write_zarr(path)


def write_npz(path, V):
    np.savez_compressed(path, V)


FORMS = {
    "zarr 3": ("x.zarr", write_zarr),
    "zarr 2": ("x.zarr", lambda p, V: write_zarr(p, V, zarr_format=2)),
    "one row a chunk": ("x.zarr", lambda p, V: write_zarr(p, V, chunks=(1, 30))),
    "group of one matrix": ("x.zarr", write_group),
    "csr group": ("x.zarr", write_sparse),
    "csr group, zarr 2": ("x.zarr", lambda p, V: write_sparse(p, V, zarr_format=2)),
    "csc group": ("x.zarr", lambda p, V: write_sparse(p, V, sp.csc_array)),
    "anndata csr": ("x.zarr", lambda p, V: write_anndata(p, sp.csr_matrix(V))),
    "anndata csc": ("x.zarr", lambda p, V: write_anndata(p, sp.csc_matrix(V))),
    "anndata dense": ("x.zarr", write_anndata),
    "anndata csr, zarr 2": ("x.zarr", lambda p, V: write_anndata(p, sp.csr_matrix(V), 2)),
    "npy": ("x.npy", np.save),
    "npy, Fortran": ("x.npy", lambda p, V: np.save(p, np.asfortranarray(V))),
    "npz": ("x.npz", write_npz),
    "npz of scipy csr": ("x.npz", lambda p, V: sp.save_npz(p, sp.csr_array(V))),
    "npz of scipy coo": ("x.npz", lambda p, V: sp.save_npz(p, sp.coo_array(V))),
}


@pytest.fixture(scope="module")
def V():
    return sparse_counts(np.random.default_rng(2)).toarray()


@pytest.fixture(params=list(FORMS))
def form(request, tmp_path, V, monkeypatch):
    monkeypatch.setattr(planning, "SMALLEST", 2000)  # several slabs for a small matrix
    monkeypatch.setattr(planning, "SHORTEST", 1)
    name, write = FORMS[request.param]
    write(tmp_path / name, V)
    return tmp_path / name


@pytest.mark.parametrize("as_given", [str, lambda path: path, lambda path: f"file://{path}"])
def test_every_form_opens_to_the_same_values(form, V, as_given):
    X = open_matrix(as_given(form))
    assert X.shape == V.shape
    values = X.compute() if isinstance(X, da.Array) else X
    np.testing.assert_array_equal(values.toarray() if sp.issparse(values) else values, V)


def test_a_fit_on_every_form_is_the_fit_on_the_array(form, V):
    X = open_matrix(form)
    W, H = fit(X)
    expected_W, expected_H = fit(sp.csr_array(V) if sp.issparse(getattr(X, "_meta", X)) else V)
    np.testing.assert_allclose(W, expected_W, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(H, expected_H, rtol=1e-9, atol=1e-12)


def test_opening_reads_no_values(form, monkeypatch):
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda *_: pytest.fail("read"))
    X = open_matrix(form)
    assert isinstance(X, da.Array) == (form.suffix != ".npz")


def counted(monkeypatch):
    """Count the values read of each Zarr array."""
    reads = Counter()
    get = zarr.Array.__getitem__

    def counting(self, index):
        found = get(self, index)
        reads[self.basename] += np.size(found)
        return found

    monkeypatch.setattr(zarr.Array, "__getitem__", counting)
    return reads


@pytest.mark.parametrize("kind", [sp.csr_array, sp.csc_array])
def test_a_sparse_group_is_read_by_ranges_each_value_once_a_pass(tmp_path, V, monkeypatch, kind):
    write_sparse(tmp_path / "x", V, kind)
    monkeypatch.setattr(planning, "SMALLEST", 2000)
    monkeypatch.setattr(planning, "SHORTEST", 1)
    X = open_matrix(tmp_path / "x")
    slabs = X.npartitions
    assert slabs >= 4
    reads = counted(monkeypatch)
    first = X.blocks[(slice(0, 1),) if kind is sp.csr_array else (slice(None), slice(0, 1))]
    first.compute(scheduler="sync")
    assert 0 < reads["data"] < 2 * np.count_nonzero(V) / slabs
    reads.clear()
    X.persist(scheduler="sync")
    lines = V.shape[0 if kind is sp.csr_array else 1]
    nonzero = np.count_nonzero(V)
    assert reads == {"data": nonzero, "indices": nonzero, "indptr": lines + slabs}


def test_the_graph_of_a_sparse_group_carries_no_data(tmp_path):
    group = write_sparse(tmp_path / "x", sp.eye_array(50_000, 3, format="csr"), chunk=10_000)
    X = open_matrix(group)
    assert len(dumps(dict(X.__dask_graph__()))) < 20_000


@pytest.mark.parametrize("component", ["layers/b", "layers/a"])
def test_a_component_of_a_group_is_found_by_name_or_path(tmp_path, V, component):
    write_layers(tmp_path / "x", V)
    expected = V + (component[-1] == "a")
    np.testing.assert_array_equal(open_matrix(tmp_path / "x", component), expected)
    np.testing.assert_array_equal(open_matrix(f"{tmp_path}/x/{component}"), expected)
    np.testing.assert_array_equal(open_matrix(zarr.open_group(tmp_path / "x"), component), expected)


def test_layers_of_anndata_are_components(tmp_path, V):
    write_anndata(tmp_path / "x", sp.csr_matrix(V), counts=sp.csr_matrix(V * 2))
    X = open_matrix(tmp_path / "x", "layers/counts")
    np.testing.assert_array_equal(X.compute().toarray(), V * 2)


def test_a_factor_of_a_saved_model_is_a_matrix(tmp_path, V):
    model = NMF(3, tol=0, max_iter=2, random_state=0)
    model.fit_transform(V)
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(open_matrix(tmp_path / "m" / "H"), model.components_)


def test_zarr_objects_stores_and_urls_open_too(tmp_path, V):
    write_zarr(tmp_path / "x", V)
    memory = zarr.storage.MemoryStore()
    write_zarr(memory, V)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for file in (tmp_path / "x").rglob("*"):
            archive.write(file, file.relative_to(tmp_path / "x"))
    for store in (memory, zarr.open_array(memory), tmp_path / "x.zip"):
        np.testing.assert_array_equal(open_matrix(store), V)
    pytest.importorskip("fsspec")
    write_zarr("memory://matrices/x.zarr", V)
    np.testing.assert_array_equal(open_matrix("memory://matrices/x.zarr"), V)


def test_a_relative_path_means_the_same_file_on_workers(form, V, client, monkeypatch):
    monkeypatch.chdir(form.parent)  # the workers stay where they are
    X = open_matrix(form.name)
    found = client.submit(lambda X: X, X).result() if not isinstance(X, da.Array) else X.compute()
    np.testing.assert_array_equal(found.toarray() if sp.issparse(found) else found, V)


@pytest.mark.parametrize("write", [write_zarr, write_sparse])
def test_a_matrix_that_workers_cannot_see_is_an_error_and_not_zeros(V, client, write):
    pytest.importorskip("fsspec")
    url = f"memory://unseen/{write.__name__}"
    write(url, V)
    with pytest.raises(StoreError, match="can't be seen by the worker"):
        fit(open_matrix(url), client=client)


def npz_of(**held):
    file = io.BytesIO()
    np.savez(file, **held)
    return file.getvalue()


def npy_of(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


OBJECTS = np.array([[{"a": 1}, "b"]], dtype=object)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", npy_of(OBJECTS), "no array of numbers"),
        ("x.npy", b"", "no array of numbers"),
        ("x.npy", npy_of(np.ones((9, 9)))[:-8], "no array of numbers"),
        ("x.npz", npz_of(x=OBJECTS), "can't be read"),
        ("x.npz", npz_of(format=b"csr", data=OBJECTS), "can't be read"),
        ("x.npz", npz_of(a=np.ones((2, 2)), b=np.ones((2, 2))), r"holds the arrays \['a', 'b'\]"),
        ("x.npz", b"PK\x03\x04 no zip", "can't be read"),
        ("x.npz", b"", "can't be read"),
        ("x.txt", b"1 2 3", "expected a Zarr array"),
    ],
)
def test_files_that_hold_no_matrix_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=message):
        open_matrix(tmp_path / name)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    import pickle

    for name, content in (("x.npy", npy_of(OBJECTS)), ("x.npz", npz_of(x=OBJECTS))):
        (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
        with pytest.raises(StoreError):
            open_matrix(tmp_path / name)


def make_model(path, V):
    model = NMF(2, tol=0, max_iter=1, random_state=0)
    model.fit_transform(V)
    model.save(path)


def make_torn(path, V):
    del write_sparse(path, V)["indices"]


def make_short(path, V):
    write_sparse(path, V).attrs["shape"] = [7, 30]


def make_no_x(path, V):
    zarr.create_group(path, attributes={"encoding-type": "anndata"}).create_group("obs")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path, V: None, "does not exist"),
        (lambda path, V: path.mkdir(), "nothing that Zarr can open"),
        (lambda path, V: zarr.create_group(path), r"group with \[\]"),
        (write_layers, r"group with \['layers'\]"),
        (lambda path, V: write_layers(path.parent, V), "does not exist"),
        (make_model, r"saved model.*dasknmf.load\(\)"),
        (make_torn, r"found \['data', 'indptr'\]"),
        (make_short, "no csr_array of shape"),
        (make_no_x, "without X"),
    ],
)
def test_stores_that_hold_no_single_matrix_are_refused(tmp_path, V, make, message):
    make(tmp_path / "x", V)
    with pytest.raises(StoreError, match=message):
        open_matrix(tmp_path / "x")


def test_a_group_of_several_matrices_names_one_to_choose(tmp_path, V):
    write_layers(tmp_path / "x", V)
    with pytest.raises(StoreError, match=r"Name one matrix in it: .*x/layers/a"):
        open_matrix(tmp_path / "x" / "layers")
    with pytest.raises(StoreError, match="layers/nope"):
        open_matrix(tmp_path / "x", "layers/nope")


@pytest.mark.parametrize("write", [write_zarr, np.save])
@pytest.mark.parametrize("shape", [(4, 5, 6), (20,)])
def test_other_than_two_dimensions_are_refused_by_the_fit(tmp_path, write, shape):
    options = {"chunks": shape} if write is write_zarr else {}
    write(tmp_path / "x.npy" if write is np.save else tmp_path / "x", np.ones(shape), **options)
    X = open_matrix(tmp_path / ("x.npy" if write is np.save else "x"))
    with pytest.raises(DataError, match=r"Expected 2D array.*Reshape your data"):
        fit(X)


@pytest.mark.parametrize(
    "write", [write_sparse, np.save, lambda p, V: zarr.create_array(p, data=V)]
)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_matrices_are_refused_by_the_fit(tmp_path, write, shape):
    path = tmp_path / ("x.npy" if write is np.save else "x")
    write(path, np.ones(shape))
    with pytest.raises(ValueError, match=r"0 (sample|feature)\(s\)"):
        fit(open_matrix(path))


@pytest.mark.parametrize("chunks", [None, (7, 2), (20, 5)])
def test_save_matrix_writes_what_open_matrix_opens(tmp_path, rng, monkeypatch, chunks):
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 200)
    V = planted(rng, rows=33, columns=5)
    V[:20] = 0  # chunks of zeros are written, too
    given = V if chunks is None else da.from_array(V, chunks)
    save_matrix(given, tmp_path / "x", overwrite=False)
    found = zarr.open_array(tmp_path / "x")
    assert found.nchunks_initialized == found.nchunks > 3
    assert found.metadata.dimension_names == ("row", "column")
    np.testing.assert_array_equal(open_matrix(tmp_path / "x"), V)
    with pytest.raises(StoreError, match="exists"):
        save_matrix(given, tmp_path / "x", overwrite=False)
    save_matrix(open_matrix(tmp_path / "x") * 2, tmp_path / "x", overwrite=True)
    np.testing.assert_array_equal(dasknmf.open_matrix(tmp_path / "x"), V * 2)
