"""A SLURM cluster of two nodes on this machine: its daemons, started by hand, with no systemd."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
CORES = 4  # of each node; more than there are may be promised

# cred_expire: a requeued job starts only after the credentials of its first start have expired
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
OverTimeLimit=0
SchedulerParameters=bf_interval=1,sched_interval=1,requeue_delay=0
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs={cores} RealMemory=16384
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs={cores} RealMemory=16384
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no SLURM cluster can be started here."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: munge slurmctld slurmd slurm-client)"
    return None if os.geteuid() == 0 else "the daemons of SLURM need root"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody has, for daemons that can't choose one themselves."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Slurm:
    """munged, slurmctld and two slurmd; ``environment`` makes SLURM's commands talk to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "PATH": PATH,
            "SLURM_CONF": str(folder / "slurm.conf"),
        }

    def __enter__(self) -> Slurm:
        (self.folder / "munge").mkdir(mode=0o755)
        for name in ("state", "n1", "n2"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(64))
        key.chmod(0o600)
        controller, first, second = free_ports(3)
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname(),
                folder=self.folder,
                controller=controller,
                first=first,
                second=second,
                cores=CORES,
            )
        )
        munge = self.folder / "munge"
        # --force: pytest's temporary folders are not as closed as munged wants its own to be
        self._start(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/socket",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self.until((munge / "socket").exists, "munged")
        self._start("slurmctld", "-D")
        self.until(lambda: "UP" in self.call("scontrol", "ping"), "slurmctld")
        for node in ("n1", "n2"):
            self._start("slurmd", "-D", "-N", node)
        self.until(lambda: "2" in self.call("sinfo", "-h", "-t", "idle", "-o", "%D"), "the nodes")
        return self

    def _start(self, program: str, *arguments: str) -> None:
        log = (self.folder / f"daemon{len(self.daemons)}.log").open("wb")
        self.daemons.append(
            subprocess.Popen(
                [shutil.which(program, path=PATH) or program, *arguments],
                env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )
        )  # fmt: skip
        log.close()

    def __exit__(self, *error: object) -> None:
        try:
            if len(self.daemons) > 1:
                self._end_jobs()
        finally:
            self._end_daemons()

    def _end_jobs(self) -> None:
        """Or what they run would outlive the daemons that can end it."""
        jobs = self.call("squeue", "-h", "-o", "%i", check=False).split()
        if jobs:
            self.call("scancel", "--signal=KILL", "--full", *jobs, check=False)
            self.call("scancel", *jobs, check=False)
            self.until(lambda: not self.call("squeue", "-h").strip(), "the end of all jobs")

    def _end_daemons(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def call(self, *command: str, check: bool = True, **more: str) -> str:
        """Run one of SLURM's commands and give what it says."""
        done = subprocess.run(
            command, env={**self.environment, **more}, capture_output=True, text=True, timeout=60,
            cwd=self.folder,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def until(self, condition, what: str, seconds: float = 60) -> None:
        """Wait for a state that SLURM has no command to wait for."""
        end = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except RuntimeError:
                pass
            if time.monotonic() > end:
                logs = [p.read_text(errors="replace")[-800:] for p in self.folder.glob("*.log")]
                raise TimeoutError(f"{what}: not so after {seconds} s\n" + "\n".join(logs))
            time.sleep(0.05)

    def submit(self, script: Path, *options: str, **environment: str) -> str:
        """Submit from the script's folder; give the job's number."""
        command = ["sbatch", "--parsable", *options, f"--chdir={script.parent}", str(script)]
        done = subprocess.run(
            command, env={**self.environment, **environment}, capture_output=True, text=True,
            cwd=script.parent, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job."""
        words = self.call("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, states=("COMPLETED",), seconds: float = 250) -> dict[str, str]:
        """Wait until a job has one of these states; any other end is an error."""
        ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
        self.until(
            lambda: self.job(number)["JobState"] in {*states, *ends}, f"job {number}", seconds
        )
        return self.job(number)

    def running(self, number: str) -> bool:
        """Whether anything of a job is still in the queue, or being ended."""
        return bool(self.call("squeue", "-h", "-j", number, "-o", "%T").strip())
