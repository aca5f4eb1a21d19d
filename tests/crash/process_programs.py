"""What nodes do besides writing, as programs under the fault shim: roll, seal, fold, snapshots, rebuilding
a state, promotion, and going on after a refused call. Receiving is receive_program's.

Owns the programs and what they find when they start. Each works in the watched directory and keeps a
ledger. What a program itself finds wrong
goes into a file `verdict` there; `outcome` says that it came to its end. Judging is process_checks'.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from perdure.recovery import drop_previous, migrate, migrate_back, promote, repair, take_snapshot
from perdure.store import (
    Indeterminate,
    OpenOptions,
    PerdureError,
    PoisonedError,
    SessionStore,
    open_store,
)
from perdure.store.commit import parse_durability
from perdure.store.errors import StorageFullError
from tests.crash.store_program import KnownIds, operation_id
from tests.recovery.nodes import DirectoryVoters, make_node, make_primary, replicate
from tests.recovery.nodes import write as write_frames
from tests.recovery.stores import seal
from tests.support.faults.ledger import Item, Ledger
from tests.support.faults.shim import take_role

SEGMENT_BYTES = 2_500
"""About ten sessions: a short run rolls several times."""
CATCH_UP_S = 20.0
TRIES = 5


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


def fork_as(role: str, run: Callable[[], object]) -> int:
    """Run something in a forked child with a role of its own; answers its pid."""
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
    taker = fork_as("taker", lambda: _take_some(directory))
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


def migration(directory: Path, ledger: Path, other: str) -> int:
    """One process writes while another one migrates there and back, and there again for good."""
    migrator = fork_as("migrator", lambda: _migrate_there(directory, other))
    take_role("writer")
    with open_small(directory, durability="os") as store:
        hand = Hand(store, Ledger(ledger, "w"), "w")
        deadline = time.monotonic() + CATCH_UP_S
        while os.waitpid(migrator, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
            hand.put()
            time.sleep(0.001)
    say(directory, "outcome", "done")
    return 0


def _migrate_there(directory: Path, other: str) -> None:
    take_snapshot(directory)
    migrate(directory, to_backend=other)
    migrate_back(directory)
    migrate_back(directory)
    drop_previous(directory)
    repair(directory, unchecked=True)


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
