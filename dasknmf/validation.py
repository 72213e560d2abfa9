"""X as the estimator takes it, whatever it was given as."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn.utils.validation import validate_data

from dasknmf.numerics.errors import DataError
from dasknmf.parallel import inputs
from dasknmf.storage import arrays

if TYPE_CHECKING:
    pass


def validated(model: Any, X: Any, *, reset: bool) -> Any:
    """Give X as numpy, scipy CSR/CSC or Dask; values are looked at while it is read."""
    X = arrays.opened(inputs.unwrap(X))
    inputs.refuse_early(X)
    if not inputs.is_dask(X):
        try:
            return validate_data(
                model,
                X,
                reset=reset,
                accept_sparse=("csr", "csc"),
                dtype=inputs.dtypes_in_memory(X),
                ensure_all_finite=False,
            )
        except (TypeError, ValueError) as error:
            inputs.explain(error)
            raise
    X = inputs.checked_dask(X)
    if reset:
        model.n_features_in_ = X.shape[1]
        model.__dict__.pop("feature_names_in_", None)
    elif X.shape[1] != model.n_features_in_:
        raise DataError(
            f"X has {X.shape[1]} features, but {type(model).__name__} is expecting "
            f"{model.n_features_in_} features as input."
        )
    return X
