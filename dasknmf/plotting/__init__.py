"""Pictures of a factorisation. Functions take plain arrays and give the axes they drew on.

Needs matplotlib: ``pip install 'dasknmf[viz]'``.
"""

try:
    import matplotlib  # noqa: F401
except ImportError as error:  # pragma: no cover
    raise ImportError("dasknmf.plotting needs matplotlib: pip install 'dasknmf[viz]'") from error

from dasknmf.plotting.components import (
    plot_components,
    plot_heatmap,
    plot_images,
    plot_maps,
    plot_residuals,
    plot_top_features,
    shares,
)
from dasknmf.plotting.loss import plot_loss
from dasknmf.plotting.study import plot_consensus, plot_path, plot_ranks

__all__ = [
    "plot_components",
    "plot_consensus",
    "plot_heatmap",
    "plot_images",
    "plot_loss",
    "plot_maps",
    "plot_path",
    "plot_ranks",
    "plot_residuals",
    "plot_top_features",
    "shares",
]
