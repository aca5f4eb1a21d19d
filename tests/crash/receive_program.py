"""A replica under the fault shim: its receiver and folder, while the primary beside it writes and ships.

Owns the processes of such a run, and starts again whoever is killed. The watched directory is the
replica's. What was confirmed is looked for before anybody can send it again; a process that ends by
itself is a finding.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from perdure.recovery import take_snapshot
from perdure.shipping import open_gate, open_node_log, run_folder, run_shipper, serve_receiver
from perdure.store import (
    Config,
    OpenOptions,
    PerdureError,
    SessionStore,
    begin_cluster,
    init_store,
    open_store,
)
from perdure.store.commit import parse_durability
from perdure.store.cursor import list_segments
from perdure.store.page import ControlPage, Word, read_boot_id
from tests.crash.process_programs import SEGMENT_BYTES, Hand, fork_as, open_small, say
from tests.support.faults.ledger import History, Ledger

CLUSTER = bytes(range(16))
SECRET = b"a secret of the tests, 32 bytes."
HOST = "127.0.0.1"
NOW_MS = 1_700_000_000_000
CATCH_UP_S = 20.0
OTHER = "n1"
"""Directory of the primary, beside the replica's."""


def prepare_pair(folder: Path) -> None:
    """A primary whose writes need the replica, and the replica, which is watched."""
    _init_pair(folder, sync_replicas=1)


def prepare_bootstrap(folder: Path) -> None:
    """The same, but the beginning of the primary's log is gone, and a snapshot stands for it."""
    _init_pair(folder, sync_replicas=0)
    primary = folder / OTHER
    with open_small(primary, durability="os") as store:
        hand = Hand(store, Ledger(folder / "ACK.before", "before"), "before")
        for _ in range(30):
            hand.put()
        store.fold()
        at = take_snapshot(primary).lsn
        for _ in range(8):
            hand.put()
    files = list_segments(primary / "log")
    keep = [file for file in files if file.first_lsn <= at + 1][-1]
    for file in files[: files.index(keep)]:
        file.path.unlink()


def _init_pair(folder: Path, sync_replicas: int) -> None:
    for name, path in (("n1", folder / OTHER), ("n2", folder / "store")):
        init_store(path, node=name, cluster_id=CLUSTER, now_ms=NOW_MS)
    node = open_node_log(folder / OTHER, [])
    node.log.lock_any()
    begin_cluster(node.log, Config(("n1", "n2"), sync_replicas))
    node.log.unlock()
    node.close()


def receive(directory: Path, ledger: Path, count: str, mode: str) -> int:
    """Receiver and folder of the replica, while the primary writes and ships; who is killed is started
    again. Ends once the replica has everything. mode: "confirmed" if each write waits for the replica."""
    primary, port = directory.parent / OTHER, _free_port()
    family = Family(directory, ledger, port, is_confirmed=mode == "confirmed")
    family.start("receiver")
    family.start("folder")
    family.start("shipper")
    writer = fork_as("writer", lambda: _write_primary(primary, ledger, int(count)))
    deadline = time.monotonic() + CATCH_UP_S
    is_writing = True
    while time.monotonic() < deadline:
        family.attend()
        if is_writing:
            done, status = os.waitpid(writer, os.WNOHANG)
            is_writing = not done
            if done and status:
                say(directory, "verdict", f"(7) the writer ended with status {status}")
        elif _word(directory, Word.FOLDED) >= _word(primary, Word.APPENDED):
            say(directory, "outcome", "done")
            return 0
        time.sleep(0.002)
    say(directory, "verdict", f"(7) the replica has not caught up within {CATCH_UP_S:g} s")
    return 1


class Family:
    """The processes of one run. The faults strike `receiver` and `folder`, not those that follow them."""

    def __init__(self, directory: Path, ledger: Path, port: int, *, is_confirmed: bool) -> None:
        self._directory = directory
        self._ledger = ledger
        self._is_confirmed = is_confirmed
        self._running: dict[int, str] = {}
        self._tasks: dict[str, Callable[[], None]] = {
            "receiver": lambda: serve_receiver(directory, HOST, port, secret=SECRET),
            "folder": lambda: run_folder(directory),
            "shipper": lambda: run_shipper(directory.parent / OTHER, {"n2": (HOST, port)}, secret=SECRET),
        }

    def start(self, role: str) -> None:
        self._running[fork_as(role, self._tasks[role.removesuffix("-again")])] = role

    def attend(self) -> None:
        """Start again who was killed; whoever ended otherwise is a finding."""
        for pid, role in list(self._running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            del self._running[pid]
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                self._look(role)
            else:
                say(self._directory, "verdict", f"(7) the {role} ended with status {status}")
            self.start(f"{role.removesuffix('-again')}-again")

    def _look(self, role: str) -> None:
        """What the replica confirmed must be there before anybody sends it again."""
        if role != "receiver" or not self._is_confirmed or not self._ledger.exists():
            return
        history = History.read([self._ledger])
        acknowledged = [a.lsn or 0 for a in history.attempts.values() if a.is_acknowledged]
        node = open_node_log(self._directory, [])
        end = node.log.cursor.at.lsn
        node.close()
        if end < max(acknowledged, default=0):
            text = f"(1) LSN {max(acknowledged)} was confirmed, the killed replica ends at {end}"
            say(self._directory, "verdict", text)


def _write_primary(primary: Path, ledger: Path, count: int) -> None:
    options = OpenOptions(durability=parse_durability("disk"), segment_bytes=SEGMENT_BYTES)
    deadline = time.monotonic() + CATCH_UP_S
    with SessionStore(open_store(primary, options), options, open_gate(primary)) as store:
        hand = Hand(store, Ledger(ledger, "w"), "w")
        done = 0
        while done < count and time.monotonic() < deadline:
            try:
                hand.put()
                done += 1
            except PerdureError:
                time.sleep(0.005)  # its replica is away; the ledger has it


def _free_port() -> int:
    """A port below those that the system gives to connections: a client cannot meet itself on it."""
    for number in range(1000):
        port = 10_000 + (os.getpid() * 7 + number) % 20_000
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
                return port
            except OSError:
                continue
    raise AssertionError("no free port")


def _word(directory: Path, word: Word) -> int:
    page = ControlPage(directory / "control", read_boot_id())
    try:
        return int(page.words[word])
    finally:
        page.close()
