"""Faults, real and modelled: a part runs with all tests, the rest with ``pytest -m faults``."""
