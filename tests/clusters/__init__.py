"""Every file of ``cluster_configs``, run or checked (``pytest -m cluster -n 0`` for the batch systems)."""
