"""What nodes do besides writing, as programs under the fault shim: roll, seal, fold, snapshots, rebuilding
a state, receiving, installing a snapshot, promotion, and going on after a refused call.

Owns the programs and what they find when they start. Each works in the watched directory (of the node
that is under test) and keeps a ledger; other nodes stand beside it. What a program itself finds wrong
goes into a file `verdict` there; `outcome` says that it came to its end. Judging is process_checks'.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from perdure.recovery import promote, take_snapshot
from perdure.shipping import open_gate, open_node_log, run_folder, run_shipper, serve_receiver
from perdure.store import (
    Config,
    Indeterminate,
    OpenOptions,
    PerdureError,
    PoisonedError,
    SessionStore,
    begin_cluster,
    init_store,
    open_store,
)
from perdure.store.commit import parse_durability
from perdure.store.cursor import list_segments
from perdure.store.errors import StorageFullError
from perdure.store.page import ControlPage, Word, read_boot_id
from tests.crash.store_program import KnownIds, operation_id
from tests.recovery.nodes import DirectoryVoters, make_node, make_primary, replicate
from tests.recovery.nodes import write as write_frames
from tests.recovery.stores import seal
from tests.support.faults.ledger import History, Item, Ledger
from tests.support.faults.shim import take_role

CLUSTER = bytes(range(16))
SECRET = b"a secret of the tests, 32 bytes."
HOST = "127.0.0.1"
NOW_MS = 1_700_000_000_000
SEGMENT_BYTES = 2_500
"""About ten sessions: a short run rolls several times."""
CATCH_UP_S = 20.0
TRIES = 5
OTHER = "n1"
"""Directory of the primary, beside the replica's."""


class Hand:
    """One writer: each call takes the operation id that its ledger names."""

    def __init__(self, store: SessionStore, ledger: Ledger, name: str) -> None:
        self.store = store
        self._ledger = ledger
        self._name = name
        self._number = 0
        self._ids = KnownIds()
        store._ids = self._ids  # type: ignore[assignment]

    def move_to(self, store: SessionStore) -> None:
        self.store = store
        store._ids = self._ids  # type: ignore[assignment]

    def put(self) -> None:
        """Write one session, now and then a batch of two or a delete. Raises what the store raises."""
        self._number += 1
        op = f"{self._name}-{self._number}"
        self._ids.next = operation_id(op)
        items = self._items(op)
        self._ledger.attempt(op, items)
        try:
            self._change(op, items)
        except Indeterminate:
            self._ledger.unknown(op)
            raise
        except PerdureError:
            self._ledger.refuse(op)
            raise
        self._ledger.acknowledge(op, self.store.position().lsn)

    def _items(self, op: str) -> list[Item]:
        key = f"{self._name}-key-{self._number % 7}"
        if self._number % 6 == 0:
            return [Item("put", key, op), Item("put", f"{key}-second", op)]
        if self._number % 9 == 0 and self.store.peek(key) is not None:
            return [Item("delete", key)]
        return [Item("put", key, op)]

    def _change(self, op: str, items: list[Item]) -> None:
        if len(items) == 2:
            with self.store.batch() as batch:
                for item in items:
                    batch.put(item.key, {"op": op}, None)
        elif items[0].kind == "delete":
            self.store.delete(items[0].key)
        else:
            self.store.put(items[0].key, {"op": op, "pad": "x" * 150}, None)


def open_small(directory: Path, backend: str | None = None, durability: str = "disk") -> SessionStore:
    """A store with segments of a few sessions."""
    options = OpenOptions(
        backend=backend, durability=parse_durability(durability), segment_bytes=SEGMENT_BYTES
    )
    return SessionStore(open_store(directory, options), options, None)


def say(directory: Path, name: str, text: str) -> None:
    """Leave a word for the check, outside the watched directory."""
    with (directory.parent / name).open("a", encoding="utf-8") as file:
        file.write(text + "\n")


# -- one node ------------------------------------------------------------------------------------


def roll(directory: Path, ledger: Path, backend: str, count: str) -> int:
    """Write, roll, seal and fold in turns."""
    with open_small(directory, backend) as store:
        hand = Hand(store, Ledger(ledger, "w"), "w")
        for number in range(1, int(count) + 1):
            hand.put()
            if number % 4 == 0:
                store.fold()
            if number % 12 == 0:
                seal(store)
    say(directory, "outcome", "done")
    return 0


def prepare_log(backend: str) -> Callable[[Path], None]:
    """A store with some sessions, whose ledger goes on in the run."""

    def prepare(folder: Path) -> None:
        with open_small(folder / "store", backend, "os") as store:
            hand = Hand(store, Ledger(folder / "ACK.before", "before"), "before")
            for _ in range(20):
                hand.put()

    return prepare


def snapshots(directory: Path, ledger: Path) -> int:
    """One process writes while another one takes snapshots and drops older ones."""
    taker = _fork("taker", lambda: _take_some(directory))
    take_role("writer")
    with open_small(directory, durability="os") as store:
        hand = Hand(store, Ledger(ledger, "w"), "w")
        deadline = time.monotonic() + CATCH_UP_S
        while os.waitpid(taker, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
            hand.put()
            time.sleep(0.001)
    say(directory, "outcome", "done")
    return 0


def _take_some(directory: Path) -> None:
    for keep in (None, 2, 1):
        take_snapshot(directory, keep=keep, compress=keep == 1)


def prepare_rebuild(backend: str, *, has_snapshot: bool) -> Callable[[Path], None]:
    """A store whose state is gone."""

    def prepare(folder: Path) -> None:
        prepare_log(backend)(folder)
        if has_snapshot:
            take_snapshot(folder / "store")
            with open_small(folder / "store", durability="os") as store:
                hand = Hand(store, Ledger(folder / "ACK.behind", "behind"), "behind")
                for _ in range(10):
                    hand.put()
        shutil.rmtree(folder / "store" / "state")

    return prepare


def rebuild(directory: Path, _ledger: Path) -> int:
    """Open the store: its state is made anew."""
    with open_small(directory) as store:
        assert store._opened.rebuilt
    say(directory, "outcome", "done")
    return 0


# -- refused calls -------------------------------------------------------------------------------


def go_on(directory: Path, ledger: Path, durability: str, count: str) -> int:
    """Write; what is refused is tried again, and a poisoned store is closed and opened anew."""
    written = Ledger(ledger, "w")
    hand = Hand(_opened_at_last(directory, durability), written, "w")
    for number in range(1, int(count) + 1):
        for _ in range(TRIES):
            try:
                hand.put()
                break
            except PoisonedError:
                _expect_poison(directory, hand)
                hand.store.close()
                hand.move_to(_opened_at_last(directory, durability))
            except (Indeterminate, StorageFullError) as error:
                say(directory, "refusals", type(error).__name__)
            except PerdureError as error:
                say(directory, "refusals", f"{type(error).__name__}: {error}")
        else:
            say(directory, "verdict", f"(7) write {number} is refused for good")
        if number % 5 == 0:
            _tolerate(hand.store.fold)
    hand.store.close()
    say(directory, "outcome", "done")
    return 0


def _opened_at_last(directory: Path, durability: str) -> SessionStore:
    for _ in range(TRIES):
        try:
            return open_small(directory, durability=durability)
        except PerdureError as error:
            say(directory, "refusals", f"open: {type(error).__name__}")
    raise AssertionError("the store cannot be opened any more")


def _expect_poison(directory: Path, hand: Hand) -> None:
    """Nobody may write a poisoned store before it was closed by all."""
    say(directory, "refusals", "PoisonedError")
    try:
        hand.put()
        say(directory, "verdict", "(1) a poisoned store takes writes")
    except PoisonedError:
        pass


def _tolerate(work: Callable[[], object]) -> None:
    try:
        work()
    except PerdureError:
        pass  # the fold is tried again later; that nothing of it is lost, the check sees


# -- receiving -----------------------------------------------------------------------------------


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
    writer = _fork("writer", lambda: _write_primary(primary, ledger, int(count)))
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
        self._running[_fork(role, self._tasks[role.removesuffix("-again")])] = role

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


def _fork(role: str, run: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        take_role(role)
        run()
        code = 0
    except Exception as error:  # noqa: BLE001  the parent sees the code, the sweep the words
        print(role, type(error).__name__, error, flush=True)
    finally:
        os._exit(code)


def _word(directory: Path, word: Word) -> int:
    page = ControlPage(directory / "control", read_boot_id())
    try:
        return int(page.words[word])
    finally:
        page.close()


# -- promotion -----------------------------------------------------------------------------------


def prepare_three(folder: Path) -> None:
    """A primary that is gone, and two replicas with its whole log: `a`, `b` and `c`."""
    place = folder / "store"
    place.mkdir()
    make_primary(place / "a", "a", "abc", 1)
    write_frames(place / "a", 6)
    for name in "bc":
        replicate(place / "a", make_node(place / name, name))


def promotion(directory: Path, _ledger: Path) -> int:
    """b becomes the primary by c's promise."""
    promote(directory / "b", DirectoryVoters({"c": directory / "c"}))
    say(directory, "outcome", "done")
    return 0


PROGRAMS: dict[str, Callable[..., int]] = {
    "roll": roll,
    "snapshots": snapshots,
    "rebuild": rebuild,
    "go_on": go_on,
    "receive": receive,
    "promotion": promotion,
}


def work(directory: Path, ledger: Path, program: str, *arguments: str) -> int:
    """One of the programs; all under one name, so that one process started ahead serves them all."""
    return PROGRAMS[program](directory, ledger, *arguments)
