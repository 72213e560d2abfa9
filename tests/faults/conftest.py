"""Counts the cases: a test says how many it has checked, and the sums stand at the end."""

from __future__ import annotations

from collections import Counter

import pytest


@pytest.fixture
def cases(request):
    """Call with a kind and a count once the cases are checked."""

    def count(kind, number):
        request.node.user_properties.append(("cases", (kind, number)))

    return count


def pytest_terminal_summary(terminalreporter):
    total = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "cases" and report.when == "call":
                    total[value[0]] += value[1]
    if total:
        terminalreporter.section("fault cases")
        for kind, number in sorted(total.items()):
            terminalreporter.write_line(f"{number:8,d}  {kind}")
        terminalreporter.write_line(f"{sum(total.values()):8,d}  in all")
