"""Two hosts on this machine: network namespaces, and between them a link that delays and counts.

The link is a TUN device in each namespace. What one host sends, this process hands to the other
after the delay (kernels without the netem discipline have no other way), and counts what TCP
carries in it; the kernel's token bucket (tbf) holds each host to the rate.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

DELAY = 0.02  # seconds, each way
RATE = "100mbit"
MTU = 9000  # bytes
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def missing() -> str | None:
    """Why no such hosts can be made here."""
    if os.geteuid():
        return "network namespaces need root"
    absent = [name for name in ("ip", "tc") if not shutil.which(name)]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: iproute2)"
    if not Path("/dev/net/tun").exists():
        return "this kernel has no TUN devices"
    tried = f"dasknmf-try-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", tried], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespaces here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", tried], check=True)
    return None


def payload(packet: bytes) -> int:
    """Bytes that TCP carries in a packet of IPv4; 0 for anything else."""
    if packet[0] >> 4 != 4 or packet[9] != 6:
        return 0
    head = 4 * (packet[0] & 15)
    return int.from_bytes(packet[2:4]) - head - 4 * (packet[head + 12] >> 4)


def relay(ends: tuple[int, int], asks: int) -> None:
    """Pass packets on until ``asks`` is closed; each byte that comes there asks for the counts."""
    underway: deque[tuple[float, int, bytes]] = deque()
    carried = 0
    while True:
        wait = max(0.0, underway[0][0] - time.monotonic()) if underway else None
        ready, _, _ = select.select([*ends, asks], [], [], wait)
        now = time.monotonic()
        while underway and underway[0][0] <= now:
            _, to, packet = underway.popleft()
            os.write(to, packet)
        for end in ready:
            if end == asks:
                if not os.read(asks, 1):
                    return
                print(json.dumps(carried), flush=True)
                continue
            packet = os.read(end, 1 << 16)
            carried += payload(packet)
            underway.append((now + DELAY, ends[1 - ends.index(end)], packet))


class TwoHosts:
    """Hosts 0 and 1, at ``ADDRESSES``; a context manager that leaves nothing behind."""

    def __init__(self) -> None:
        self.names = [f"dasknmf-{os.getpid()}-{i}" for i in (0, 1)]
        self.processes: list[subprocess.Popen[str]] = []
        self.made: list[str] = []
        self.ends: list[int] = []

    def __enter__(self) -> TwoHosts:
        try:
            for i, name in enumerate(self.names):
                self._host(i, name)
            ends = [str(end) for end in self.ends]
            command = [sys.executable, __file__, *ends]
            self.relay = subprocess.Popen(
                command, pass_fds=self.ends, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def _host(self, i: int, name: str) -> None:
        device = f"tun{i}-{os.getpid() % 10**6}"
        end = os.open("/dev/net/tun", os.O_RDWR)
        self.ends.append(end)
        request = struct.pack("16sH22s", device.encode(), IFF_TUN | IFF_NO_PI, b"")
        fcntl.ioctl(end, TUNSETIFF, request)
        _call("ip", "netns", "add", name)
        self.made.append(name)
        _call("ip", "link", "set", device, "netns", name)
        inside = ("ip", "netns", "exec", name)
        _call(*inside, "ip", "link", "set", "lo", "up")
        _call(*inside, "ip", "link", "set", device, "mtu", str(MTU), "up")
        own, other = ADDRESSES[i], ADDRESSES[1 - i]
        _call(*inside, "ip", "address", "add", own, "peer", other, "dev", device)
        shape = ("tbf", "rate", RATE, "burst", "64kb", "latency", "1s")
        _call(*inside, "tc", "qdisc", "add", "dev", device, "root", *shape)

    def start(self, host: int, *command: object, **more: object) -> subprocess.Popen[str]:
        """A process on a host."""
        words = ["ip", "netns", "exec", self.names[host], *map(str, command)]
        started = subprocess.Popen(words, text=True, **more)  # type: ignore[call-overload]
        self.processes.append(started)
        return started

    def carried(self) -> int:
        """Bytes that TCP has carried so far, between the hosts."""
        self.relay.stdin.write(b"?")
        self.relay.stdin.flush()
        return int(self.relay.stdout.readline())

    def within(self) -> int:
        """Bytes that went from process to process on one host so far (packets of the loopback)."""
        sent = 0
        for name in self.names:
            text = _call("ip", "netns", "exec", name, "cat", "/proc/net/dev")
            (line,) = [line for line in text.splitlines() if line.strip().startswith("lo:")]
            sent += int(line.split()[1])
        return sent

    def __exit__(self, *error: object) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        if hasattr(self, "relay"):
            self.relay.stdin.close()
            self.relay.wait(10)
            self.relay.stdout.close()
        for end in self.ends:
            os.close(end)
        for name in self.made:
            _call("ip", "netns", "del", name)


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    relay((int(sys.argv[1]), int(sys.argv[2])), 0)
