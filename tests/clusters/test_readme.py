"""The table of cluster_configs names every file, and no other."""

from __future__ import annotations

import re

from .conftest import CONFIGS


def test_the_readme_names_every_file_and_no_other():
    text = (CONFIGS / "README.md").read_text()
    files = {str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*") if p.is_file()} - {"README.md"}
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    named = set(
        re.findall(
            r"`([\w./]+(?:\.(?:sbatch|pbs|lsf|sge|ya?ml|py|txt)|/Containerfile))`", "\n".join(rows)
        )
    )
    folders = {path.split("/")[0] for path in files}
    assert files == {n if n.split("/")[0] in folders else f"jobqueue/{n}" for n in named}
    assert all(re.search(r"\| 20\d\d-\d\d-\d\d \|$", row) for row in rows)
