"""A study of ranks: what its fits share, what they find, what it says and refuses."""

import re

import dask.array as da
import numpy as np
import pytest
from click.testing import CliRunner

from dasknmf import NMF, ParameterError, RankStudy, StoreError, cli, load
from dasknmf.criteria import COLUMNS, measured
from dasknmf.numerics.choosing import choose
from dasknmf.numerics.consensus import consensus
from dasknmf.numerics.labelling import labels_of, some_samples
from dasknmf.numerics.stopping import Outcome
from dasknmf.studying import Restart
from tests.conftest import planted, sparse_counts

RANKS = (2, 3, 4, 5)


@pytest.fixture(scope="module")
def X():
    return planted(np.random.default_rng(5), 160, 30, 3, noise=0.2)


@pytest.fixture(scope="module")
def study(X):
    return RankStudy(RANKS, n_init=4, random_state=0).fit(X)


def test_the_planted_rank_is_chosen_with_its_rule_and_a_runner_up(study):
    assert study.best_rank_ == 3
    assert study.runner_up_ in (2, 4, 5)
    assert study.rule_.startswith("rank 3: ")
    assert f"runner-up {study.runner_up_}" in study.rule_


def test_the_table_has_a_row_a_rank_and_every_criterion(study):
    table = study.table()
    assert table.dtype.names == ("rank", *COLUMNS)
    assert table["rank"].tolist() == list(RANKS)
    assert np.isfinite([table[name] for name in COLUMNS]).all()
    assert (np.diff(table["loss"]) < 0).all()
    table["loss"] = 0  # it is the caller's
    assert (study.table()["loss"] > 0).all()


def test_all_fits_share_the_reads_of_about_one(X, study):
    single = NMF(RANKS[-1], random_state=0, holdout=0.05).fit(X)
    assert study.reads_ <= 2 * single.history_["reads"][-1]


@pytest.mark.parametrize("kind", ["tall", "wide", "sparse", "in chunks"])
def test_each_rank_is_as_good_as_a_fit_of_its_own(X, rng, kind):
    given = {
        "tall": X, "wide": np.ascontiguousarray(X.T), "sparse": sparse_counts(rng),
        "in chunks": da.from_array(X, chunks=(40, -1)),
    }[kind]  # fmt: skip
    found = RankStudy((2, 3), n_init=4, holdout=0, random_state=0).fit(given).table()
    for k, loss in zip((2, 3), found["loss"], strict=True):
        single = NMF(k, random_state=0).fit(given)
        assert loss <= 1.005 * single.history_["loss"][-1]


def test_the_same_study_has_the_same_bits(X, study):
    again = RankStudy(RANKS, n_init=4, random_state=0).fit(X)
    assert again.table().tobytes() == study.table().tobytes()
    for k in RANKS:
        np.testing.assert_array_equal(again.model(k).components_, study.model(k).components_)


def test_ranks_in_any_order_are_the_same_study(X, study):
    again = RankStudy([5, 2, 4, 3], n_init=4, random_state=0).fit(X)
    assert again.ranks_ == RANKS
    assert again.table().tobytes() == study.table().tobytes()


@pytest.mark.parametrize("wide", [False, True])
def test_a_model_is_a_fitted_nmf(X, wide):
    given = X.T.copy() if wide else X
    study = RankStudy((2, 3), n_init=2, holdout=0, random_state=0).fit(given)
    model = study.model(3)
    W = model.transform(given)
    loss = 0.5 * np.sum((given - W @ model.components_) ** 2)
    assert W.shape == (len(given), 3)
    assert loss == pytest.approx(study.table()["loss"][1], rel=1e-3)
    assert loss == pytest.approx(model.history_["loss"][-1], rel=1e-3)
    assert model.reconstruction_err_ == pytest.approx(np.sqrt(2 * loss), rel=1e-3)
    explained = 1 - 2 * loss / np.sum(given**2)
    assert study.table()["explained_variance"][1] == pytest.approx(explained, abs=1e-6)


@pytest.mark.parametrize("wide", [False, True])
def test_the_consensus_is_that_of_the_restarts_own_rows(X, wide, monkeypatch):
    given = X.T.copy() if wide else X
    seen = {}

    def spied(labels):
        seen["labels"] = labels
        return consensus(labels)

    monkeypatch.setattr("dasknmf.criteria.consensus.consensus", spied)
    study = RankStudy((3,), n_init=3, holdout=0, random_state=0).fit(given)
    model = study.model(3)
    own = labels_of(model.transform(given), model.components_.T)
    assert study.consensus_[3].shape == (len(given),) * 2
    assert max(np.mean(labels == own) for labels in seen["labels"]) > 0.97


def test_samples_of_the_consensus_are_all_or_a_seeded_choice():
    np.testing.assert_array_equal(some_samples(0, 7, 10), np.arange(7))
    found = some_samples(0, 5000, 100)
    assert found.size == np.unique(found).size == 100
    assert (np.diff(found) > 0).all()
    assert not np.array_equal(found, some_samples(1, 5000, 100))


def test_one_restart_leaves_stability_undefined_and_says_so(X):
    study = RankStudy((2, 3, 4), n_init=1, random_state=0).fit(X)
    table = study.table()
    for name in ("stability", "silhouette", "cophenetic", "dispersion"):
        assert np.isnan(table[name]).all()
    assert "stability is undefined" in study.rule_
    assert study.best_rank_ == 3
    assert study.consensus_ == {}


def test_kullback_leibler_counts(rng):
    X = rng.poisson(3 * planted(rng, 100, 20, 2, noise=0)).astype(float)
    found = RankStudy((1, 2), beta_loss="kullback-leibler", n_init=2, random_state=0).fit(X)
    single = NMF(2, beta_loss="kullback-leibler", holdout=0.05, random_state=0).fit(X)
    assert found.best_rank_ == 2
    assert found.table()["loss"][1] <= 1.005 * single.history_["loss"][-1]


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([0, 2], "has 0;"),
        ([2, 2, 3], "has [2] more than once"),
        ([2.5], "has 2.5;"),
        ([True], "has True;"),
        ([], "has no rank"),
        (5, "ranks=5;"),
        ("2:5", "ranks='2:5';"),
        ([2, 31], "ranks up to 31 are larger than min(n_samples, n_features)=30"),
    ],
)
def test_ranks_that_can_not_be_are_refused(X, ranks, message):
    study = RankStudy(ranks, random_state=0)
    with pytest.raises(ParameterError, match=re.escape(message)):
        study.fit(X)
    assert not hasattr(study, "n_features_in_")


def test_solvers_that_carry_rows_and_ranks_not_studied_are_refused(X, study):
    with pytest.raises(ParameterError, match=r"solver='hals'.*Use solver='als'"):
        RankStudy((2,), solver="hals", holdout=0).fit(X)
    with pytest.raises(ParameterError, match=r"rank=9 was not studied; expected one of \(2, 3"):
        study.model(9)


def test_the_rule_takes_what_foresees_best_among_the_stable():
    nan = np.nan
    ranks = np.array([2, 3, 4, 5])
    errors = np.array([9.0, 1.0, 0.99, 0.5])
    assert choose(ranks, errors, np.array([1, 1, 1, 0.2]))[:2] == (4, 3)
    assert choose(ranks, errors, np.full(4, nan))[:2] == (5, 3)
    assert choose(ranks, np.full(4, nan), np.array([1, 0.95, 0.9, 0.2]))[:2] == (4, 3)
    largest = choose(ranks, errors, np.full(4, 0.1))
    assert largest.rank == 5
    assert largest.rule.endswith("; no larger rank was tried, which might do better")
    assert "larger" not in choose(ranks, errors, np.array([1, 1, 1, 0.2])).rule
    alone = choose(ranks[:1], errors[:1], np.array([nan]))
    assert alone[:2] == (2, None)
    assert "no ground" in choose(ranks, np.full(4, nan), np.full(4, nan)).rule


def test_of_ranks_that_foresee_alike_the_most_stable_is_chosen():
    ranks, errors = np.array([9, 10, 11, 12]), np.array([1.01, 1.0, 1.015, 1.2])
    assert choose(ranks, errors, np.array([0.87, 0.95, 0.8, 0.99]))[:2] == (10, 9)
    assert choose(ranks, errors, np.array([0.96, 0.95, 0.8, 0.99])).rank == 10
    assert choose(ranks, errors, np.array([1.0, 0.93, 0.8, 0.99])).rank == 9
    assert choose(ranks, errors, np.array([0.6, np.nan, 0.8, 0.99])).rank == 11
    down = np.array([9.0, 1.04, 1.0, 1.02])  # the second step is 0.5 % of the way
    assert choose(ranks, down, np.array([1.0, 0.99, 0.92, 0.5])).rank == 10
    assert choose(ranks, down / [4, 1, 1, 1], np.array([1.0, 0.99, 0.92, 0.5])).rank == 11
    alone = choose(np.array([1, 2]), np.array([1.0, 1.0]), np.array([np.nan, 0.7]))
    assert alone.rank == 1


def test_the_hold_out_error_is_that_of_the_best_restart(rng):
    def restart(objective, held):
        H, history = rng.random((2, 6)), {"objective": np.array([9.0, objective])}
        none = np.zeros(0, np.int64)
        return Restart(H, objective, 1.0, held, 2, Outcome.CONVERGED, history, none)

    row, _, _ = measured([restart(3.0, 0.1), restart(2.0, 0.7), restart(4.0, 0.2)])
    assert (row["loss"], row["holdout_error"]) == (2.0, 0.7)


def test_a_saved_study_gives_its_models_back(study, tmp_path):
    study.save(tmp_path / "study.zarr")
    model = load(tmp_path / "study.zarr" / "rank_4")
    np.testing.assert_array_equal(model.components_, study.model(4).components_)
    with pytest.raises(StoreError, match="exists"):
        study.save(tmp_path / "study.zarr")


def test_the_report_says_the_choice_and_the_pictures_mark_it(study, tmp_path):
    pytest.importorskip("matplotlib")
    text = study.report(tmp_path / "study.html").read_text(encoding="utf8")
    assert "chosen rank" in text
    assert study.rule_[:40] in text
    assert "RankStudy(" in text
    assert len(study.plot()) == len(COLUMNS)


def test_the_command_line_writes_models_and_a_report(X, tmp_path):
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "V.npy", X)
    paths = [str(tmp_path / name) for name in ("V.npy", "study.zarr", "study.html")]
    call = ["ranks", paths[0], "--ranks", "2:4", "--n-init", "2", "-o", paths[1]]
    done = CliRunner().invoke(cli.main, [*call, "--report", paths[2]])
    assert done.exit_code == 0, done.output
    assert "*    3 " in done.output
    assert load(f"{paths[1]}/rank_2").n_components_ == 2
    assert (tmp_path / "study.html").exists()
    assert CliRunner().invoke(cli.main, [*call, "--ranks", "4:2"]).exit_code == 2
    assert CliRunner().invoke(cli.main, call).exit_code == 1  # the output exists
