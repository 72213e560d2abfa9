"""Dask's settings: every key is one of distributed's, and every line has a reason."""

from __future__ import annotations

import asyncio
from pathlib import Path

import dask
import distributed
import pytest
import yaml

from dasknmf.numerics import memory

from .conftest import CONFIGS

PATH = CONFIGS / "dask" / "nmf.yaml"
GIVEN = yaml.safe_load(PATH.read_text())
DEFAULTS = yaml.safe_load((Path(distributed.__file__).parent / "distributed.yaml").read_text())


def leaves(tree, above=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


@pytest.mark.parametrize(("path", "value"), list(leaves(GIVEN)), ids=lambda part: str(part))
def test_a_setting_is_one_of_distributed(path, value):
    default = DEFAULTS
    for key in path:
        assert key in default, f"{'.'.join(path)}: distributed has {sorted(default)} there"
        default = default[key]
    if isinstance(value, str) and path[-1] != "worker-ttl":
        dask.utils.parse_timedelta(value)  # raises
    if isinstance(default, bool):
        assert isinstance(value, bool)


def test_the_line_to_change_is_a_setting_of_dask():
    commented = PATH.read_text().splitlines()[-1].removeprefix("# ")
    (key,) = yaml.safe_load(commented)
    assert key in yaml.safe_load((Path(dask.__file__).parent / "dask.yaml").read_text())


def test_every_line_has_a_reason():
    for line in PATH.read_text().splitlines():
        setting = not line.startswith("#") and not line.rstrip().endswith(":")
        assert not setting or "  # " in line, f"no reason: {line}"


def test_no_line_repeats_what_dask_takes_anyway_but_what_the_plan_relies_on():
    """The plan's own thresholds are written down: another default would break its promise."""
    relied_on = {"target", "spill", "pause", "terminate"}
    for path, value in leaves(GIVEN):
        default = DEFAULTS
        for key in path:
            default = default[key]
        assert value != default or path[-1] in relied_on or "THREAD" in path[-1], path
    thresholds = GIVEN["distributed"]["worker"]["memory"]
    assert (thresholds["pause"], thresholds["terminate"]) == (memory.PAUSE, memory.USABLE)


def test_no_process_listens_in_plain_text():
    with dask.config.set(dask.config.merge(dask.config.config, GIVEN)):
        from distributed import Scheduler

        async def listen():
            async with Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0"):
                raise AssertionError("it listens")

        with pytest.raises(RuntimeError) as caught:
            asyncio.run(listen())
    assert "encryption required" in str(caught.value.__cause__)
