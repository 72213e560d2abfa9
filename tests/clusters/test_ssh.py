"""Machines reached by ssh: an sshd of our own on the loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dasknmf

from .batch_slurm import PATH, free_ports
from .conftest import CONFIGS, OPTIONS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(200)]


@pytest.fixture(scope="module")
def home(tmp_path_factory, shell):
    """A home folder from which `ssh node1` and `ssh node2` reach this machine."""
    sshd = shutil.which("sshd", path=PATH)
    if sshd is None or os.geteuid():
        pytest.skip("sshd is not installed (Debian: openssh-server), or this is not root")
    folder = tmp_path_factory.mktemp("home") / ".ssh"
    folder.mkdir(mode=0o700)
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (port,) = free_ports(1)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/user.pub\nPasswordAuthentication no\nPidFile none\n"
        f"PermitRootLogin prohibit-password\nSetEnv PYTHONPATH={shell['PYTHONPATH']}\n"
    )
    (folder / "config").write_text(
        f"Host node1 node2\n  HostName 127.0.0.1\n  Port {port}\n  User root\n"
        f"  IdentityFile {folder}/user\n  UserKnownHostsFile {folder}/known_hosts\n"
    )
    public = (folder / "host.pub").read_text()
    names = f"[127.0.0.1]:{port},[node1]:{port},[node2]:{port},node1,node2"
    (folder / "known_hosts").write_text(f"{names} {public}")
    with subprocess.Popen(
        [sshd, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL
    ) as daemon:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 30).close()
                break
            except ConnectionRefusedError:
                assert daemon.poll() is None, "sshd ended"
        yield folder.parent
        daemon.terminate()


def assert_fitted(done, model, local):
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = dasknmf.load(str(model))
    np.testing.assert_array_equal(found.components_, local[1])
    np.testing.assert_array_equal(found.W_, local[0])


def test_machines_reached_by_ssh_give_the_bits_of_threads(home, shell, pines, local, tmp_path):
    script = CONFIGS / "ssh" / "fit_over_ssh.py"
    hosts = CONFIGS / "ssh" / "hosts.txt"
    done = subprocess.run(
        [sys.executable, script, hosts, pines, "-o", tmp_path / "nmf.zarr", *OPTIONS],
        env={**os.environ, **shell, "HOME": str(home), "THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert_fitted(done, tmp_path / "nmf.zarr", local)
    assert [path.name for path in tmp_path.iterdir()] == ["nmf.zarr"], "no key is left behind"


def test_the_ssh_script_says_how_it_is_used():
    script = CONFIGS / "ssh" / "fit_over_ssh.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "python fit_over_ssh.py hosts.txt V.zarr" in done.stderr
