"""Machines of a test: network namespaces on one bridge, and what goes wrong between and inside them.

Owns the namespaces, the links, the packets that are dropped, and the processes inside. The namespaces have no
names: each lives as long as its holder, a process that ends when its standard input does, so that nothing
stays however a test ends, and tests side by side do not meet. Nothing touches the machine's own network.

Invariant: what is signalled runs in a namespace that this object made.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TypeVar

from perdure.cli.demo.machines import SERVICES, process_state
from perdure.shipping.launching import package_environment

TOOLS = ("ip", "nft", "nsenter", "setpriv", "unshare")
SUBNET = "10.99.0"
PORT = 7001
_FILTER = "table inet f { chain in { type filter hook input priority 0; }; }"
_GONE_WITHIN_S = 10.0
_LIBC = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def why_not() -> str:
    """Why there can be no such network here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=_path()) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


class Network:
    """Machines by name, each with an address of its own."""

    def __init__(self, names: Iterable[str], *, others: Iterable[str] = ()) -> None:
        """`names` are the machines of nodes; `others` run something else."""
        self.names = tuple(names)
        self._all = (*self.names, *others)
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._started: list[tuple[str, subprocess.Popen[bytes]]] = []
        try:
            switch = self._hold("")
            _run(switch, "ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0", "stp_state", "0")
            _run(switch, "ip", "link", "set", "br0", "up")
            for number, name in enumerate(self._all, 1):
                self._add(name, number, switch)
        except BaseException:
            self.close()
            raise

    def address(self, name: str) -> str:
        return f"{SUBNET}.{self._all.index(name) + 1}"

    def addresses(self, name: str) -> dict[str, str]:
        """As the cluster of nodes wants them: every machine has the same ports."""
        return {service: f"{self.address(name)}:{PORT + place}" for place, service in enumerate(SERVICES)}

    def start(
        self,
        name: str,
        *words: object,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command on a machine. It dies with the thread that starts it, and with the network."""
        pid = self._holders[name].pid
        inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "--"]
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *inside, *(str(word) for word in words)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=_environment(),
        )
        self._started.append((name, process))
        return process

    def within(self, name: str, call: Callable[[], T]) -> T:
        """Call something in a thread of this process that has entered a machine's network."""

        def inside() -> T:
            with open(f"/proc/{self._holders[name].pid}/ns/net", "rb") as namespace:
                if _LIBC.setns(namespace.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "setns")
            return call()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(inside).result()

    # -- links -----------------------------------------------------------------------------------

    def cut(self, from_name: str, to_name: str) -> None:
        """Drop all packets of one direction."""
        rule = f"add rule inet f in ip saddr {self.address(from_name)} drop"
        _run(self._holders[to_name].pid, "nft", rule)

    def isolate(self, name: str, *, hears: bool = False, is_heard: bool = False) -> None:
        """Part a machine from all others, wholly or in one direction."""
        for other in self._all:
            if other != name and not hears:
                self.cut(other, name)
            if other != name and not is_heard:
                self.cut(name, other)

    def heal(self) -> None:
        """Let everything through again."""
        for name in self._all:
            _run(self._holders[name].pid, "nft", "flush chain inet f in")

    # -- processes -------------------------------------------------------------------------------

    def pids(self, name: str) -> list[int]:
        """All processes that run on a machine, also those that are on their way into it."""
        holder = self._holders[name]
        inside = os.readlink(f"/proc/{holder.pid}/ns/net")
        found = [process.pid for at, process in self._started if at == name and process.poll() is None]
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) not in {holder.pid, *found}:
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{entry}/ns/net") == inside and not _is_dead(int(entry)):
                        found.append(int(entry))
        return found

    def kill(self, name: str) -> int:
        """kill -9 of all processes of a machine, as if its power was cut; answers how many those were."""
        killed: set[int] = set()
        deadline_s = time.monotonic() + _GONE_WITHIN_S
        while pids := self.pids(name):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed.update(pids)
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"processes of {name} do not die: {pids}")
        return len(killed)

    def pause(self, name: str) -> set[int]:
        """SIGSTOP of all processes of a machine; answers which those are."""
        stopped: set[int] = set()
        while new := set(self.pids(name)) - stopped:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= new
        while any(process_state(pid) == "R" for pid in stopped):  # the signal has not arrived yet
            time.sleep(0.0005)
        return stopped

    def resume(self, name: str) -> None:
        for pid in self.pids(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End everything that still runs on the machines, and the machines. Idempotent."""
        for name, holder in self._holders.items():
            if holder.poll() is None:
                self.kill(name)
        for holder in self._holders.values():
            if holder.stdin is not None:
                holder.stdin.close()
            holder.wait()
            if holder.stdout is not None:
                holder.stdout.close()
        for _, process in self._started:
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self._holders.clear()

    # -- making ----------------------------------------------------------------------------------

    def _hold(self, name: str) -> int:
        """Make a namespace; answers the pid of its holder."""
        script = "ip link set lo up && echo ready && exec cat"
        holder = subprocess.Popen(
            ["unshare", "--net", "--", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
        )
        self._holders[name] = holder
        assert holder.stdout is not None
        if holder.stdout.readline() != b"ready\n":
            raise OSError(f"no network namespace for {name or 'the switch'}")
        return holder.pid

    def _add(self, name: str, number: int, switch: int) -> None:
        pid = self._hold(name)
        port = f"p{number}"
        _run(pid, "ip", "link", "add", "v0", "type", "veth", "peer", "name", port, "netns", str(switch))
        _run(switch, "ip", "link", "set", port, "master", "br0", "up")
        _run(pid, "ip", "addr", "add", f"{self.address(name)}/24", "dev", "v0")
        _run(pid, "ip", "link", "set", "v0", "up")
        _run(pid, "nft", _FILTER)


@contextlib.contextmanager
def network_of(*names: str) -> Iterator[Network]:
    network = Network(names)
    try:
        yield network
    finally:
        network.close()


def _run(holder_pid: int, *words: str) -> None:
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{holder_pid}/ns/net", "--", *words],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


def _is_dead(pid: int) -> bool:
    return process_state(pid) in {"Z", "X"}


def _path() -> str:
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"


def _environment() -> dict[str, str]:
    return {**package_environment(), "PATH": _path()}
