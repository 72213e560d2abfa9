"""Every file of ``cluster_configs``, run or checked (batch systems: ``pytest -m cluster -n 0``)."""
