"""Non-negative matrix factorisation of matrices too big for one machine, on Dask and Zarr."""

from dasknmf.estimator import NMF
from dasknmf.history import PassInfo
from dasknmf.numerics.errors import (
    ClusterError,
    DamagedError,
    DataError,
    FactorWarning,
    FencedError,
    MissingError,
    ParameterError,
    ProblemMismatchError,
    RunBusyError,
    StoppedError,
    StoreError,
    StoreWarning,
    TooLargeError,
)
from dasknmf.numerics.stopping import Outcome
from dasknmf.parallel.configuration import load_defaults
from dasknmf.path import AlphaPath
from dasknmf.results import load
from dasknmf.storage.matrices import open_matrix
from dasknmf.study import RankStudy

__version__ = "0.1.0"

load_defaults()

__all__ = [
    "AlphaPath",
    "NMF",
    "ClusterError",
    "DamagedError",
    "DataError",
    "FactorWarning",
    "FencedError",
    "MissingError",
    "Outcome",
    "ParameterError",
    "PassInfo",
    "ProblemMismatchError",
    "RankStudy",
    "RunBusyError",
    "StoppedError",
    "StoreError",
    "StoreWarning",
    "TooLargeError",
    "load",
    "open_matrix",
]
