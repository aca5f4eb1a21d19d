"""A cluster of nodes, each `perdure node` on a machine, with applications beside them.

Owns how the nodes are made, started and ended, and how their states are compared in the end. Invariant: a
node's files are opened here to be looked at only; what changes them are its own processes and the commands
that an operator has.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from ...recovery import Reach, ask_health
from ...shipping import HealthReply, open_node_log
from ...store import Config, PerdureError, SessionStore, StorageError
from ...store.options import find_option
from ...store.page import ControlPage, Word, read_boot_id
from ..init import make_node
from ..settings import Settings
from .caller import CallerTask
from .machines import SERVICES, Machines, python
from .reigns import Seen, Watch

READY_S = 180.0
PATIENCE_S = 300.0
LOOK_EVERY_S = 0.02
SECRET_BYTES = 24
LINES_SHOWN = 15
GOOD = ("alive", "late")
"""What a monitor says of a peer that it hears."""


class Standing(msgspec.Struct, frozen=True):
    """Where a node's log ends, and what its state then holds."""

    epoch: int
    lsn: int
    chain: int
    sessions: int
    digest: int


class NodeCluster:
    """Nodes by name, the first one the first primary, in a directory."""

    def __init__(
        self,
        folder: Path,
        machines: Machines,
        *,
        coordinator: str = "quorum",
        sync_replicas: int | None = None,
        options: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        """Make the nodes; none runs yet. `sync_replicas` is the majority's unless given; `options` stand in
        every node's configuration, by section."""
        self.folder = folder
        self.machines = machines
        self.names = machines.names
        self.coordinator = coordinator
        self.histories: list[Path] = []
        self._options = options or {}
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._callers: dict[str, list[subprocess.Popen[bytes]]] = {name: [] for name in self.names}
        self._lives = 0
        k = len(self.names) // 2 if sync_replicas is None else sync_replicas
        (folder / "secret").write_text(secrets.token_hex(SECRET_BYTES))
        identity = make_node(self.path(self.names[0]), self.names[0], None, "lmdb", Config(self.names, k))
        for name in self.names[1:]:
            make_node(self.path(name), name, identity.cluster_id, "lmdb", None)
        for name in self.names:
            self._configure(name)
        self.watch = Watch({name: self.path(name) for name in self.names})

    def path(self, name: str) -> Path:
        return self.folder / name

    def _configure(self, name: str) -> None:
        addresses = self.machines.addresses
        peers = ", ".join(f'{peer} = "{addresses(peer)[SERVICES[0]]}"' for peer in self.names)
        settings: dict[str, dict[str, object]] = {
            "node": {
                "name": name,
                **addresses(name),
                "secret_file": str(self.folder / "secret"),
                "allow_plain": True,
            },
            "failover": {"coordinator": self.coordinator},
        }
        for section, values in self._options.items():
            settings.setdefault(section, {}).update(values)
        lines: list[str] = []
        for section, values in settings.items():
            known = {key: value for key, value in values.items() if find_option(section, key) is not None}
            if not known:
                continue
            lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in known.items())]
            if section == "node":
                lines.append(f"peers = {{ {peers} }}")
        (self.path(name) / "perdure.toml").write_text("\n".join(lines) + "\n")

    # -- processes -------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start the nodes that do not run, all of them without names, and wait until they listen.

        Raises StorageError, with what the node said, if one does not.
        """
        started = [name for name in names or self.names if not self.is_running(name)]
        for name in started:
            words = python("perdure.cli.demo.leash", "node", self.path(name), "--json", "--verbose")
            with self._output(name) as output:
                self._nodes[name] = self.machines.start(name, *words, stdout=subprocess.PIPE, stderr=output)
        for name in started:
            said = _first_line(self._nodes[name].stdout)
            if not said or "error" in said:
                raise why_not_started(name, said, self.path(name), self.tail(name))

    def is_running(self, name: str) -> bool:
        return name in self._nodes and self._nodes[name].poll() is None

    def kill(self, name: str) -> int:
        """kill -9 of everything on the machine; answers how many processes that were."""
        killed = self.machines.kill(name)
        node = self._nodes.pop(name, None)
        if node is not None:
            node.wait(PATIENCE_S)
            if node.stdout is not None:
                node.stdout.close()
        return killed

    def command(self, name: str, *words: object) -> int:
        """Run a command of perdure on a machine; answers its exit code. What it says is in a
        file beside the node's own output."""
        with self._output(f"{name}.commands") as output:
            process = self.machines.start(name, *python("perdure.cli", *words), stdout=output, stderr=output)
        return process.wait(PATIENCE_S)

    def add_callers(self, task: CallerTask, *names: str, each: int = 1) -> None:
        """Start applications on machines (on all without names), and wait until they are at work.

        Store, history and name of the task are filled in. Raises StorageError if one ends before.
        """
        added = [(name, *self._add_caller(name, task)) for name in names or self.names for _ in range(each)]
        for name, process, history in added:
            until(lambda: history.exists() or process.poll() is not None, f"a caller on {name} opens")  # noqa: B023
            if process.poll() is not None:
                raise StorageError(f"a caller on {name} ended:\n{self._said_by_callers(name)}")

    def _add_caller(self, name: str, task: CallerTask) -> tuple[subprocess.Popen[bytes], Path]:
        self._lives += 1
        caller = f"{name}.{self._lives}"
        history = self.folder / f"{caller}.history"
        self.histories.append(history)
        told = msgspec.structs.replace(task, store=str(self.path(name)), history=str(history), caller=caller)
        file = self.folder / f"{caller}.task"
        file.write_bytes(msgspec.json.encode(told))
        with self._output(caller) as output:
            words = python("perdure.cli.demo.caller", file)
            process = self.machines.start(name, *words, stdout=output, stderr=output)
        self._callers[name].append(process)
        return process, history

    def stop_callers(self) -> None:
        """End all applications after their calls under way. Raises StorageError if one had failed."""
        running = [
            (name, process)
            for name, processes in self._callers.items()
            for process in processes
            if process.poll() != -signal.SIGKILL
        ]
        for _, process in running:
            process.terminate()
        for name, process in running:
            code = process.wait(PATIENCE_S)
            if code not in {0, -signal.SIGKILL}:
                said = self._said_by_callers(name)
                raise StorageError(f"a caller on {name} ended with code {code}:\n{said}")

    def close(self) -> None:
        """End everything. Idempotent."""
        self.watch.close()
        self.machines.close()

    # -- looking ---------------------------------------------------------------------------------

    @property
    def reign(self) -> Seen:
        """The newest reign. Raises StorageError while there was none."""
        found = self.watch.reign()
        if found is None:
            raise StorageError(f"nobody reigns\n{self.describe()}")
        return found

    def standing(self, name: str) -> Standing:
        """Where a node stands, from its files alone."""
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
        """Wait until every node follows one primary, is about as far as it, and hears all others.

        Raises StorageError.
        """
        until(self._is_whole, "all nodes follow one primary", timeout_s, self.describe)
        until(self._is_heard, "all nodes hear each other", timeout_s, self.describe)

    def _is_heard(self) -> bool:
        """The monitor of every node hears all others, and they still follow one primary."""
        return self._is_whole() and all(
            row.verdict in GOOD and not row.is_failing
            for name in self.names
            for row in self.health(name).nodes
        )

    def health(self, name: str) -> HealthReply:
        """How all nodes are, as the monitor of one sees them. Raises WireError."""
        settings = Settings(self.path(name))
        reach = Reach(secret=settings.secret(None))
        return self.machines.within(name, lambda: ask_health(self.path(name), settings.monitor_host(), reach))

    def _is_whole(self) -> bool:
        if self.watch.reign() is None:
            return False
        ends = [self._end_of(name) for name in self.names]
        lsns = [lsn for _, lsn in ends]
        behind = max(lsns) - min(lsns)
        return len({epoch for epoch, _ in ends}) == 1 and behind < max(64, max(lsns) // 100)

    def wait_equal(self, timeout_s: float = PATIENCE_S) -> Standing:
        """Wait until all nodes have the same log to its end, as they have once nobody writes any more.

        Raises StorageError.
        """
        until(lambda: len(set(self._standings())) == 1, "all logs are equal", timeout_s, self.describe)
        return self.standing(self.names[0])

    def _standings(self) -> list[Standing]:
        return [self.standing(name) for name in self.names]

    def _end_of(self, name: str) -> tuple[int, int]:
        """(epoch, LSN on disk) as the control page says; (0, 0) while there is none."""
        file = self.path(name) / "control"
        if not file.exists():
            return 0, 0
        page = ControlPage(file, read_boot_id())
        try:
            return page.words[Word.EPOCH], page.words[Word.FLUSHED]
        finally:
            page.close()

    def describe(self) -> str:
        """What is known of each node, for the message of an error."""
        return "\n".join(f"{name}: {self._end_of(name)}\n{self.tail(name)}" for name in self.names)

    def tail(self, name: str) -> str:
        """The last lines that a node, or a caller, said."""
        file = self.folder / f"{name}.output"
        if not file.exists():
            return ""
        return "\n".join(file.read_text(errors="replace").splitlines()[-LINES_SHOWN:])

    def _said_by_callers(self, name: str) -> str:
        return "\n".join(self.tail(file.stem) for file in sorted(self.folder.glob(f"{name}.[0-9]*.output")))

    @contextlib.contextmanager
    def _output(self, name: str) -> Iterator[IO[bytes]]:
        with (self.folder / f"{name}.output").open("ab") as output:
            yield output


def until(
    is_true: Callable[[], object], what: str, timeout_s: float = PATIENCE_S, describe: Callable[[], str] = str
) -> None:
    """Wait until something holds. Raises StorageError with `what` past the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        failed = ""
        try:
            if is_true():
                return
        except PerdureError as error:  # a node's files may change while they are looked at
            failed = f" ({error})"
        if time.monotonic() > deadline_s:
            raise StorageError(f"not within {timeout_s:.0f} s: {what}{failed}\n{describe()}")
        time.sleep(LOOK_EVERY_S)


def why_not_started(name: str, said: dict[str, object], path: Path, tail: str) -> StorageError:
    """The error of a node that said this instead of where it listens; its log's `tail` if it said nothing."""
    error = said.get("error")
    if not isinstance(error, dict):
        return StorageError(f"{name} did not start: {tail}", path=path)
    told = msgspec.convert(error, dict[str, Any])
    return StorageError(f"{name} did not start: {told.get('message')}", path=path, hint=told.get("hint", ""))


def _first_line(stdout: IO[bytes] | None) -> dict[str, object]:
    """What a command says first, as JSON; empty if it says nothing in time."""
    if stdout is None or not select.select([stdout], [], [], READY_S)[0]:
        return {}
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(stdout.readline(), type=dict[str, object])
    return {}


def _toml(value: object) -> str:
    """A value as TOML has it; texts here hold no quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(one) for one in value)}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
