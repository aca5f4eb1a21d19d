"""A cluster of real machines: `perdure node` on each, applications beside it, and every fault there is.

Owns how a test makes nodes, starts and ends them, and how their states are compared in the end. Invariant: a
node's files are opened here to be looked at only; what changes them are its own processes and the commands
that an operator has.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec
import pytest

from perdure.cli.init import make_node
from perdure.shipping import open_node_log
from perdure.store import Config, SessionStore
from perdure.store.options import find_option
from perdure.store.page import ControlPage, Word, read_boot_id
from tests.cluster_real.client import Task
from tests.cluster_real.network import Network
from tests.cluster_real.watching import Seen, Watch

PORT = 7001
SECRET = "a secret of the tests, 32 bytes."
READY_S = 30.0
PATIENCE_S = 60.0
CLIENT = Path(__file__).with_name("client.py")


class Standing(msgspec.Struct, frozen=True):
    """Where a node's log ends, and what its state then holds."""

    epoch: int
    lsn: int
    chain: int
    sessions: int
    digest: int


class RealCluster:
    """Nodes n1 (the first primary), n2, ... each on a machine of its own."""

    def __init__(
        self, folder: Path, network: Network, *, coordinator: str = "quorum", sync_replicas: int | None = None
    ) -> None:
        self.folder = folder
        self.network = network
        self.names = network.names
        self.coordinator = coordinator
        self.histories: list[Path] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._clients: dict[str, list[subprocess.Popen[bytes]]] = {name: [] for name in self.names}
        self._lives = 0
        k = len(self.names) // 2 if sync_replicas is None else sync_replicas
        (folder / "secret").write_text(SECRET)
        identity = make_node(self.path(self.names[0]), self.names[0], None, "lmdb", Config(self.names, k))
        for name in self.names[1:]:
            make_node(self.path(name), name, identity.cluster_id, "lmdb", None)
        for name in self.names:
            self._configure(name)
        self.watch = Watch({name: self.path(name) for name in self.names})

    def path(self, name: str) -> Path:
        return self.folder / name

    def _configure(self, name: str) -> None:
        peers = ", ".join(f'{peer} = "{self.network.address(peer)}:{PORT}"' for peer in self.names)
        lines = [
            "[node]",
            f'name = "{name}"',
            f'listen = "{self.network.address(name)}:{PORT}"',
            f"peers = {{ {peers} }}",
            f'secret_file = "{self.folder / "secret"}"',
        ]
        if find_option("node", "allow_plain") is not None:
            lines.append("allow_plain = true")
        if find_option("failover", "coordinator") is not None:
            lines += ["[failover]", f'coordinator = "{self.coordinator}"']
        (self.path(name) / "perdure.toml").write_text("\n".join(lines) + "\n")

    # -- processes -------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start the nodes that do not run, all of them without names, and wait until they listen."""
        started = [name for name in names or self.names if not self.is_running(name)]
        for name in started:
            with self._log(name) as log:
                self._nodes[name] = self.network.start(
                    name,
                    *(sys.executable, "-m", "perdure.cli", "node", self.path(name), "--json", "--verbose"),
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
        for name in started:
            stdout = self._nodes[name].stdout
            assert stdout is not None
            if not stdout.readline():
                pytest.fail(f"{name} did not start:\n{self.tail(name)}")

    def is_running(self, name: str) -> bool:
        return name in self._nodes and self._nodes[name].poll() is None

    def kill(self, name: str) -> int:
        """kill -9 of everything on the machine; answers how many processes that were."""
        return self.network.kill(name)

    def command(self, name: str, *words: object) -> int:
        """Run a command of perdure on a machine; answers its exit code. What it says is in the node's log."""
        with self._log(name) as log:
            process = self.network.start(
                name, sys.executable, "-m", "perdure.cli", *words, stdout=log, stderr=log
            )
        return process.wait(PATIENCE_S)

    def add_clients(self, task: Task, *names: str, each: int = 1) -> None:
        """Start applications on machines (on all without names), and wait until they are at work.

        Store, history and name of the task are filled in.
        """
        added = [(name, *self._add_client(name, task)) for name in names or self.names for _ in range(each)]
        for name, process, history in added:
            until(lambda: history.exists() or process.poll() is not None, f"a client on {name} opens")  # noqa: B023
            if process.poll() is not None:
                pytest.fail(f"a client on {name} ended:\n{self._said_by_clients(name)}")

    def _add_client(self, name: str, task: Task) -> tuple[subprocess.Popen[bytes], Path]:
        self._lives += 1
        client = f"{name}.{self._lives}"
        history = self.folder / f"{client}.history"
        self.histories.append(history)
        told = msgspec.structs.replace(task, store=str(self.path(name)), history=str(history), client=client)
        file = self.folder / f"{client}.task"
        file.write_bytes(msgspec.json.encode(told))
        with self._log(client) as log:
            process = self.network.start(name, sys.executable, CLIENT, file, stdout=log, stderr=log)
        self._clients[name].append(process)
        return process, history

    def stop_clients(self) -> None:
        """End all applications after their calls under way. Fails the test if one had failed."""
        running = [
            (name, process)
            for name, processes in self._clients.items()
            for process in processes
            if process.poll() != -signal.SIGKILL
        ]
        for _, process in running:
            process.terminate()
        for name, process in running:
            code = process.wait(PATIENCE_S)
            if code not in {0, -signal.SIGKILL}:
                pytest.fail(f"a client on {name} ended with code {code}:\n{self._said_by_clients(name)}")

    def close(self) -> None:
        self.watch.close()
        self.network.close()

    # -- looking ---------------------------------------------------------------------------------

    @property
    def reign(self) -> Seen:
        """The newest reign."""
        found = self.watch.reign()
        if found is None:
            pytest.fail("nobody reigns")
        return found

    def standing(self, name: str) -> Standing:
        node = open_node_log(self.path(name), [])
        try:
            end = node.log.cursor.at.position
        finally:
            node.close()
        with SessionStore.open(self.path(name), create=False, sweep_interval_ms=0) as store:
            store.count()
            visible = store._view.visible
            return Standing(end.epoch, end.lsn, end.chain, visible.session_count, visible.digest)

    def sessions(self, name: str) -> dict[str, tuple[str, int]]:
        """All sessions of a node: (value, version) by id."""
        with SessionStore.open(self.path(name), create=False, sweep_interval_ms=0) as store:
            found = ((id, store.peek(id)) for id in list(store.ids()))
            return {id: (session.metadata["v"], session.version) for id, session in found if session}

    def wait_whole(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until every node runs, follows one primary, and is as far as it."""
        until(self._is_whole, "all nodes follow one primary", timeout_s, self.describe)

    def _is_whole(self) -> bool:
        reign = self.watch.reign()
        if reign is None:
            return False
        ends = [self._page_of(name) for name in self.names]
        return len({epoch for epoch, _ in ends}) == 1 and max(lsn for _, lsn in ends) - min(
            lsn for _, lsn in ends
        ) < max(64, ends[0][1] // 100)

    def wait_equal(self, timeout_s: float = PATIENCE_S) -> Standing:
        """Wait until all nodes have the same log to its end; nobody writes any more."""
        until(lambda: len(set(self._standings())) == 1, "all logs are equal", timeout_s, self.describe)
        return self.standing(self.names[0])

    def _standings(self) -> list[Standing]:
        return [self.standing(name) for name in self.names]

    def _page_of(self, name: str) -> tuple[int, int]:
        """(epoch, LSN on disk) as the control page says."""
        page = ControlPage(self.path(name) / "control", read_boot_id())
        try:
            return page.words[Word.EPOCH], page.words[Word.FLUSHED]
        finally:
            page.close()

    def describe(self) -> str:
        """What is known of each node, for the message of a failed test."""
        lines = [f"{name}: {self._page_of(name)}\n{self.tail(name)}" for name in self.names]
        return "\n".join(lines)

    def tail(self, name: str, lines: int = 15) -> str:
        file = self.folder / f"{name}.log"
        return "\n".join(file.read_text(errors="replace").splitlines()[-lines:]) if file.exists() else ""

    def _said_by_clients(self, name: str) -> str:
        return "\n".join(self.tail(file.stem, 5) for file in sorted(self.folder.glob(f"{name}.*.log")))

    @contextlib.contextmanager
    def _log(self, name: str) -> Iterator[IO[bytes]]:
        with (self.folder / f"{name}.log").open("ab") as log:
            yield log


def until(
    is_true: Callable[[], object], what: str, timeout_s: float = PATIENCE_S, describe: Callable[[], str] = str
) -> None:
    """Wait until something holds; fails with `what` past the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline_s:
            pytest.fail(f"not within {timeout_s:.0f} s: {what}\n{describe()}")
        time.sleep(0.02)


@contextlib.contextmanager
def real_cluster(
    folder: Path, nodes: int = 3, *, coordinator: str = "quorum", sync_replicas: int | None = None
) -> Iterator[RealCluster]:
    folder.mkdir(parents=True, exist_ok=True)
    network = Network(f"n{number}" for number in range(1, nodes + 1))
    try:
        cluster = RealCluster(folder, network, coordinator=coordinator, sync_replicas=sync_replicas)
    except BaseException:
        network.close()
        raise
    try:
        yield cluster
    finally:
        cluster.close()
