"""Every kind of input gives the factors of the numpy run, and V is read as often as it says."""

from itertools import product

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import sparse_counts
from hypothesis import given, settings
from hypothesis import strategies as st

from dasknmf import NMF
from dasknmf.numerics import planning

ROWS, COLUMNS, K = 60, 13, 3
SHAPES = ("tall", "wide")


@pytest.fixture(autouse=True)
def many_slabs(monkeypatch):
    """Small matrices are cut into several slabs, and chunks of a few rows are merged."""
    monkeypatch.setattr(planning, "SMALLEST", 1000)
    monkeypatch.setattr(planning, "SHORTEST", 1)


def matrix(shape):
    V = sparse_counts(np.random.default_rng(7), ROWS, COLUMNS, density=0.5).toarray()
    return V if shape == "tall" else np.ascontiguousarray(V.T)


def model(**parameters):
    same = {"tol": 0, "max_iter": 3, "random_state": 0}
    if parameters.get("solver", "als") == "als":  # rows and waves of a sample depend on the slabs
        same |= {"init": "random", "waves": 1}
    return NMF(K, **{**same, **parameters})


def in_memory(W):
    return W.compute() if isinstance(W, da.Array) else np.asarray(W)


_expected = {}


def expected(shape, solver="als"):
    """W, H and the transform of the numpy run."""
    if (shape, solver) not in _expected:
        estimator = model(solver=solver)
        W = estimator.fit_transform(matrix(shape))
        error = np.linalg.norm(matrix(shape) - W @ estimator.components_)
        assert error == pytest.approx(estimator.reconstruction_err_, rel=1e-6)
        _expected[shape, solver] = W, estimator.components_, estimator.transform(matrix(shape))
    return _expected[shape, solver]


def assert_same(estimator, W, shape, solver="als"):
    expected_W, expected_H, _ = expected(shape, solver)
    np.testing.assert_allclose(in_memory(W), expected_W, rtol=1e-8, atol=1e-8 * expected_W.max())
    H = estimator.components_
    np.testing.assert_allclose(H, expected_H, rtol=1e-8, atol=1e-8 * expected_H.max())


def rows_of(V, chunks):
    """Cut the long side by ``chunks``."""
    return da.from_array(V, chunks=(chunks, -1) if len(V) == ROWS else (-1, chunks))


def columns_of(V, chunks):
    """Cut the short side by ``chunks``."""
    return da.from_array(V, chunks=(-1, chunks) if len(V) == ROWS else (chunks, -1))


def sparse_chunks(X, kind):
    return X.map_blocks(kind, dtype=X.dtype, meta=kind((0, 0), dtype=X.dtype))


IRREGULAR = (1, 17, 3, 22, 2, 15)

CHUNKINGS = {
    "one chunk": lambda V: da.from_array(V, chunks=-1),
    "long side": lambda V: rows_of(V, 11),
    "short side": lambda V: columns_of(V, 5),
    "both sides": lambda V: da.from_array(V, chunks=7),
    "irregular": lambda V: rows_of(V, IRREGULAR),
    "tiny": lambda V: rows_of(V, 1),
    "tiny both": lambda V: da.from_array(V, chunks=2),
}
SPARSE = {
    f"{form}_{kind}": getattr(sp, f"{form}_{kind}")
    for form in ("csr", "csc", "coo", "bsr", "lil", "dok")
    for kind in ("array", "matrix")
}


def xarray_of(V, chunks=None):
    xarray = pytest.importorskip("xarray")
    X = xarray.DataArray(V, dims=("pixel", "band"))
    return X if chunks is None else X.chunk(dict(zip(X.dims, chunks, strict=True)))


def anndata_of(X):
    return pytest.importorskip("anndata").AnnData(X)


def zarr_of(V):
    zarr = pytest.importorskip("zarr")
    return zarr.create_array(zarr.storage.MemoryStore(), data=V, chunks=(9, 4))


IN_MEMORY = {
    "numpy F": np.asfortranarray,
    "numpy strided": lambda V: np.repeat(np.repeat(V, 2, axis=0), 3, axis=1)[::2, ::3],
    "numpy negative stride": lambda V: V[::-1].copy()[::-1],
    "list": lambda V: V.tolist(),
    "tuple of rows": lambda V: tuple(V),
    "data frame": lambda V: pytest.importorskip("pandas").DataFrame(V),
    "sparse data frame": lambda V: pytest.importorskip("pandas").DataFrame.sparse.from_spmatrix(
        sp.csr_matrix(V)
    ),
    "xarray numpy": xarray_of,
    "anndata": anndata_of,
    "anndata csr": lambda V: anndata_of(sp.csr_matrix(V)),
    **SPARSE,
}
ON_DASK = {
    **CHUNKINGS,
    "xarray dask": lambda V: xarray_of(V, (7, 13)),
    "anndata dask": lambda V: anndata_of(rows_of(V, 11)),
    "zarr": zarr_of,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", IN_MEMORY)
def test_an_input_in_memory_gives_the_factors_of_numpy(shape, kind):
    X = IN_MEMORY[kind](matrix(shape))
    estimator = model()
    W = estimator.fit_transform(X)
    assert type(W) is np.ndarray
    assert type(estimator.components_) is np.ndarray
    assert estimator.n_features_in_ == matrix(shape).shape[1]
    assert_same(estimator, W, shape)
    W = estimator.transform(X)
    assert type(W) is np.ndarray
    np.testing.assert_allclose(W, expected(shape)[2], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ON_DASK)
@pytest.mark.parametrize("solver", ["als", "mu"])
def test_a_chunked_input_gives_the_factors_of_numpy_and_w_as_dask(shape, kind, solver):
    X = ON_DASK[kind](matrix(shape))
    estimator = model(solver=solver)
    W = estimator.fit_transform(X)
    assert isinstance(W, da.Array)
    assert estimator.n_features_in_ == matrix(shape).shape[1]
    assert_same(estimator, W, shape, solver)
    W = estimator.transform(X)
    assert isinstance(W, da.Array)
    np.testing.assert_allclose(W.compute(), expected(shape, solver)[2], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("chunks", "kind"),
    [
        *product(
            ("long side", "short side", "both sides", "irregular"),
            [name for name in SPARSE if name[:3] in ("csr", "csc", "coo")],
        ),
        *product(("short side",), [name for name in SPARSE if name[:3] in ("bsr", "lil", "dok")]),
    ],
)
def test_dask_with_sparse_chunks_gives_the_factors_of_numpy(shape, chunks, kind):
    X = sparse_chunks(CHUNKINGS[chunks](matrix(shape)), SPARSE[kind])
    estimator = model()
    assert_same(estimator, estimator.fit_transform(X), shape)
    if chunks != "long side":
        np.testing.assert_allclose(estimator.transform(X), expected(shape)[2], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunks", CHUNKINGS)
@pytest.mark.parametrize("sparse", [False, True])
def test_w_of_a_dask_array_has_its_row_chunks(shape, chunks, sparse):
    X = CHUNKINGS[chunks](matrix(shape))
    X = sparse_chunks(X, sp.csr_array) if sparse else X
    estimator = model(max_iter=1)
    for W in (estimator.fit_transform(X), estimator.W_, estimator.transform(X)):
        assert W.chunks == (X.chunks[0], (K,))
        blocks = dask.compute(*W.to_delayed().ravel())
        assert tuple(len(block) for block in blocks) == X.chunks[0]


def test_tiny_chunks_are_merged_into_slabs():
    from dasknmf.parallel.slabs import cut

    X = rows_of(matrix("tall"), 1)
    slabs = cut(X)
    assert len(slabs) <= 20
    assert slabs.edges[-1] == ROWS
    assert len(cut(rows_of(matrix("tall"), 20))) == 3


@given(
    cuts=st.sets(st.integers(1, ROWS - 1), max_size=12),
    across=st.sets(st.integers(1, COLUMNS - 1), max_size=2),
    sparse=st.booleans(),
    shape=st.sampled_from(SHAPES),
)
@settings(max_examples=25, deadline=None)
def test_any_chunking_gives_the_factors_of_the_whole(cuts, across, sparse, shape):
    V = matrix(shape)
    long, short = (
        tuple(np.diff([0, *sorted(edges), size]).tolist())
        for edges, size in ((cuts, ROWS), (across, COLUMNS))
    )
    X = da.from_array(V, chunks=(long, short) if shape == "tall" else (short, long))
    X = sparse_chunks(X, sp.csr_array) if sparse else X
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "SMALLEST", 1000)
        patch.setattr(planning, "SHORTEST", 1)
        estimator = model()
        assert_same(estimator, estimator.fit_transform(X), shape)


# ---- names and containers -----------------------------------------------------------------------


def test_a_data_frame_gives_feature_names_and_later_fits_forget_them():
    pd = pytest.importorskip("pandas")
    V = matrix("tall")
    names = [f"band{i}" for i in range(COLUMNS)]
    estimator = model().fit(pd.DataFrame(V, columns=names))
    assert estimator.feature_names_in_.tolist() == names
    with pytest.raises(ValueError, match="feature names"):
        estimator.transform(pd.DataFrame(V, columns=names[::-1]))
    assert not hasattr(estimator.fit(rows_of(V, 11)), "feature_names_in_")


def test_set_output_gives_a_data_frame_with_the_index_and_the_names_of_components():
    pd = pytest.importorskip("pandas")
    V = matrix("tall")
    estimator = model().set_output(transform="pandas")
    W = estimator.fit_transform(V)
    assert isinstance(W, pd.DataFrame)
    assert W.columns.tolist() == ["nmf0", "nmf1", "nmf2"]
    np.testing.assert_allclose(W.to_numpy(), expected("tall")[0], rtol=1e-8, atol=1e-8)
    index = [f"pixel{i}" for i in range(ROWS)]
    W = estimator.transform(pd.DataFrame(V, index=index))
    assert W.index.tolist() == index
    np.testing.assert_allclose(W.to_numpy(), expected("tall")[2], rtol=1e-8, atol=1e-8)


def test_a_wide_zarr_array_is_not_read_before_it_is_asked_for():
    W = model().fit(matrix("wide")).transform(zarr_of(matrix("wide")))
    assert isinstance(W, da.Array)


# ---- dtype --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["numpy F", "csr_array", "data frame", "anndata csr", "both", "z"])
@pytest.mark.parametrize("solver", ["als", "mu"])
def test_the_dtype_of_the_data_is_the_dtype_of_the_factors(shape, dtype, kind, solver):
    makers = {**IN_MEMORY, "both": CHUNKINGS["both sides"], "z": zarr_of}
    X = makers[kind](matrix(shape).astype(dtype))
    estimator = model(max_iter=1, solver=solver)
    rows = [estimator.fit_transform(X), estimator.transform(X)]
    assert estimator.components_.dtype == dtype
    for W in rows:
        assert W.dtype == in_memory(W).dtype == dtype
    assert estimator.inverse_transform(rows[0]).dtype == dtype


# ---- reads --------------------------------------------------------------------------------------


class Loads:
    """A Dask array that counts how often each of its chunks is loaded."""

    def __init__(self, V, chunks, sparse=False):
        self.seen = []
        source = da.from_array(V, chunks=chunks)
        meta = sp.csr_array((0, 0)) if sparse else np.empty((0, 0))
        self.X = source.map_blocks(self._load, sparse, dtype=V.dtype, meta=meta, token="load")

    def _load(self, block, sparse, block_id=None):
        self.seen.append(block_id)  # atomic: tasks run in threads
        return sp.csr_array(block) if sparse else block

    def take(self):
        """Give how often each chunk was loaded since the last call."""
        counts = [self.seen.count(b) for b in np.ndindex(self.X.numblocks)]
        self.seen.clear()
        return counts


CASES = [
    ("als", "frobenius", "random"),
    ("als", "frobenius", "nndsvda"),
    ("hals", "frobenius", "random"),
    ("mu", "frobenius", "nndsvda"),
    ("mu", "kullback-leibler", "random"),
]
CUTS = {"long": (11, 13), "both": (11, 5)}


def loads_of(shape, cut, sparse=False):
    chunks = CUTS[cut] if shape == "tall" else CUTS[cut][::-1]
    return Loads(matrix(shape), chunks, sparse)


@pytest.fixture
def no_room(monkeypatch):
    """No slab fits in memory beyond its task."""
    monkeypatch.setattr("dasknmf.parallel.planned.room_here", lambda: 0)


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("solver", "loss", "init"), CASES)
def test_history_counts_the_loads_of_slabs_that_do_not_fit(shape, cut, sparse, solver, loss, init):
    loads = loads_of(shape, cut, sparse)
    estimator = model(solver=solver, beta_loss=loss, init=init)
    assert loads.take() == [0] * loads.X.npartitions
    estimator.fit(loads.X)
    reads = estimator.history_["reads"]
    assert loads.take() == [reads[-1]] * loads.X.npartitions
    assert np.all(np.diff(reads) == 1)
    started = {"random": int(solver != "als"), "nndsvda": 2}[init]  # what the start reads
    final = int(solver == "als")  # the read that solves the final rows
    assert reads[0] == started + 1
    assert reads[-1] == started + estimator.n_iter_ + final


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("start", ["W", "H", "WH"])
@pytest.mark.parametrize("solver", ["als", "mu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_history_counts_the_loads_of_a_custom_start(shape, solver, start, rng):
    loads = loads_of(shape, "long")
    m, n = loads.X.shape
    factors = {"W": rng.random((m, K)), "H": rng.random((K, n))}
    estimator = model(solver=solver, init="custom")
    estimator.fit(loads.X, **{name: factors[name] for name in start})
    reads = estimator.history_["reads"][-1]
    assert loads.take() == [reads] * loads.X.npartitions
    assert reads <= estimator.n_iter_ + 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("solver", "loss", "init"), CASES)
def test_slabs_that_fit_in_memory_are_loaded_once(shape, cut, sparse, solver, loss, init):
    loads = loads_of(shape, cut, sparse)
    estimator = model(solver=solver, beta_loss=loss, init=init)
    W = estimator.fit_transform(loads.X)
    assert loads.take() == [1] * loads.X.npartitions
    W.compute()
    assert loads.take() == [0] * loads.X.npartitions
    assert estimator.history_["reads"][-1] > 1


def test_slabs_that_fit_in_part_are_kept_in_part(monkeypatch):
    monkeypatch.setattr("dasknmf.parallel.planned.room_here", lambda: 2 * 20 * COLUMNS * 8)
    loads = Loads(matrix("tall"), (20, -1))
    reads = model().fit(loads.X).history_["reads"][-1]
    assert sorted(loads.take()) == [1, 1, reads]


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("solver", ["als", "mu"])
def test_w_of_a_fit_is_there_without_another_read(shape, solver):
    loads = loads_of(shape, "long")
    W = model(solver=solver).fit_transform(loads.X)
    loads.take()
    W.compute()
    assert loads.take() == [0] * loads.X.npartitions


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("loss", ["frobenius", "kullback-leibler"])
def test_transform_of_dask_reads_nothing_until_computed_and_then_once(shape, cut, sparse, loss):
    estimator = model(beta_loss=loss).fit(matrix(shape))
    loads = loads_of(shape, cut, sparse)
    W = estimator.transform(loads.X)
    assert loads.take() == [0] * loads.X.npartitions
    W.compute()
    assert loads.take() == [1] * loads.X.npartitions
    approximation = estimator.inverse_transform(W)
    assert loads.take() == [0] * loads.X.npartitions
    assert approximation.shape == loads.X.shape


@pytest.mark.parametrize("sparse", [False, True])
def test_a_block_of_a_lazy_transform_reads_its_own_chunks_only(sparse):
    estimator = model().fit(matrix("tall"))
    loads = loads_of("tall", "both", sparse)
    estimator.transform(loads.X).blocks[1].compute()
    assert loads.take() == [1 * (row == 1) for row, _ in np.ndindex(loads.X.numblocks)]


@pytest.mark.parametrize("cut", CUTS)
def test_a_refused_matrix_was_read_at_most_once(cut):
    V = matrix("tall")
    V[30, 4] = np.nan
    loads = Loads(V, CUTS[cut])
    with pytest.raises(ValueError, match="row 30, column 4"):
        model().fit(loads.X)
    assert loads.take() == [1] * loads.X.npartitions


def test_bad_parameters_and_shapes_are_refused_before_anything_is_read():
    loads = loads_of("tall", "long")
    with pytest.raises(ValueError, match="max_iter"):
        model(max_iter=0).fit(loads.X)
    with pytest.raises(ValueError, match="custom H has shape"):
        model(init="custom").fit(loads.X, H=np.ones((K, COLUMNS + 1)))
    with pytest.raises(ValueError, match="2D"):
        model().fit(loads.X.reshape(-1))
    assert loads.take() == [0] * loads.X.npartitions
