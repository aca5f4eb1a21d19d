"""Writers of a real store under the fault shim, and how its recovery is read for the seven checks.

Owns the workload's mix of calls and its operation ids: each call takes the id that its ledger names, so
that an event in the log says which call it came from. Every session is written with the operation in its
metadata, and that is the digest of its value.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
import uuid
from pathlib import Path

from perdure.store import CorruptError, Indeterminate, OpenOptions, PerdureError, SessionStore, open_store
from perdure.store.commit import parse_durability
from perdure.store.cursor import LogCursor
from perdure.store.event import Kind, Reason
from perdure.store.frame import cluster_key
from perdure.store.identity import read_identity
from perdure.store.names import log_path
from perdure.store.session import Session
from tests.support.faults.checks import Event, Recovered, Violation, check_all
from tests.support.faults.ledger import ERASING, History, Item, Ledger
from tests.support.faults.shim import take_role

KEYS = 12
BLIND = ("control", "state/lmdb/*.mdb")
"""What the store writes through mappings, which no trace sees."""
SEGMENT_BYTES = 6_000
"""Small, so that a short run rolls and seals several times."""


class KnownIds:
    """In place of a store's random ids: what the ledger says comes next."""

    def __init__(self) -> None:
        self.next = b""

    def take(self) -> bytes:
        return self.next


def operation_id(op: str) -> bytes:
    """The 16 bytes that stand for a ledger's operation."""
    return hashlib.blake2b(op.encode(), digest_size=16).digest()


def open_for_test(directory: Path, durability: str = "os", boot: str = "") -> SessionStore:
    """A store with small segments. boot: a boot id of its own, "" for the machine's."""
    options = OpenOptions(durability=parse_durability(durability), segment_bytes=SEGMENT_BYTES)
    if boot:
        options = OpenOptions(
            durability=options.durability, segment_bytes=SEGMENT_BYTES, boot_id=lambda: boot
        )
    return SessionStore(open_store(directory, options), options, None)


def write(directory: Path, ledger: Path, durability: str, count: str, writers: str = "1") -> int:
    """The workload: puts, updates, deletes and batches by one or more processes, each with a role."""
    if writers == "1":
        return _write_some(directory, Ledger(ledger, "w0"), "w0", durability, int(count))
    children: list[int] = []
    for number in range(int(writers)):
        name = f"w{number}"
        if (pid := os.fork()) == 0:
            take_role(name)
            own = Ledger(ledger.with_name(f"{ledger.name}.{name}"), name)
            os._exit(_write_some(directory, own, name, durability, int(count)))
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    return max(map(abs, codes))


def _write_some(directory: Path, ledger: Ledger, writer: str, durability: str, count: int) -> int:
    rng = random.Random(writer)
    ids = KnownIds()
    code = 0
    store = open_for_test(directory, durability)
    store._ids = ids  # type: ignore[assignment]
    for number in range(1, count + 1):
        op = f"{writer}-{number}"
        ids.next = operation_id(op)
        try:
            if number % 10 == 0:
                _batch(store, ledger, op, writer, rng)
            else:
                _single(store, ledger, op, f"{writer}-key-{rng.randrange(KEYS)}", rng)
        except Indeterminate:
            ledger.unknown(op)
            code = 6
            break
        except PerdureError as error:
            print(type(error).__name__, error)
            ledger.refuse(op)
            code = 5
            break
    store.close()
    return code


def _single(store: SessionStore, ledger: Ledger, op: str, key: str, rng: random.Random) -> None:
    # Keys are one writer's own, so what is there now is there when the call comes.
    is_there = store.peek(key) is not None
    if is_there and rng.random() < 0.2:
        ledger.attempt(op, [Item("delete", key)])
        store.delete(key)
    elif is_there and rng.random() < 0.4:
        ledger.attempt(op, [Item("update", key, op)])
        store.update(key, lambda session: session.merge({"op": op}))
    else:
        ledger.attempt(op, [Item("put", key, op)])
        store.put(key, {"op": op, "pad": "x" * rng.choice((10, 200, 5000))}, None)
    ledger.acknowledge(op)


def _batch(store: SessionStore, ledger: Ledger, op: str, writer: str, rng: random.Random) -> None:
    keys = [f"{writer}-key-{number}" for number in rng.sample(range(KEYS), 3)]
    ledger.attempt(op, [Item("put", key, op) for key in keys])
    with store.batch() as batch:
        for key in keys:
            batch.put(key, {"op": op}, None)
    ledger.acknowledge(op)


def recover(directory: Path, boot: str = "", *, known: dict[bytes, str] | None = None) -> Recovered:
    """Open the store, read its log and its state. known: operation id -> operation, for the events.

    boot: a boot id that stands for the time after a power cut, "" for the same boot as before.
    """
    began = time.monotonic()
    try:
        store = open_for_test(directory, boot=boot)
    except PerdureError as error:
        return Recovered(error=type(error).__name__, seconds=time.monotonic() - began)
    seconds = time.monotonic() - began
    try:
        events = _events(directory, known or {})
        state = {id: _digest(store.peek(id)) for id in store.ids()}
    except CorruptError as error:
        return Recovered(error=type(error).__name__, seconds=seconds)
    finally:
        store.close()
    return Recovered(state, events, seconds=seconds)


def _digest(session: Session | None) -> str:
    return "missing" if session is None else str(session.metadata["op"])


def _events(directory: Path, known: dict[bytes, str]) -> list[Event]:
    identity = read_identity(directory)
    cursor = LogCursor(
        log_path(directory),
        identity.cluster_id,
        cluster_key(identity.cluster_id),
        identity.shard,
        is_writable=False,
    )
    found: list[Event] = []
    cursor.seek(0)
    for run in cursor.runs():
        for offset, frame in run.frames:
            for kind, reason, operation, key, value in run.events(offset, frame):
                found.append(_event(len(found) + 1, kind, reason, operation, key, value, known))
    cursor.close()
    return found


def _event(
    lsn: int, kind: int, reason: int, operation: bytes, key: bytes, value: bytes, known: dict[bytes, str]
) -> Event:
    if kind in (Kind.EPOCH_START, Kind.CONFIG):
        return Event(lsn, "", "control", "")
    name = "update" if reason == Reason.UPDATED else Kind(kind).name.lower()
    op = known.get(operation, operation.hex())
    id = key.decode()
    return Event(lsn, op, name, id, "" if name in ERASING else _digest(Session(id, value)))


def check_after_kill(directory: Path, lines: list[bytes]) -> list[Violation]:
    """All seven checks, in the boot in which the writers died; the page cache was kept."""
    return _check(directory, lines, "", "")


def check_after_power_cut(directory: Path, lines: list[bytes]) -> list[Violation]:
    """All seven checks, in a new boot, and after one more power cut right behind the recovery."""
    return _check(directory, lines, str(uuid.uuid4()), str(uuid.uuid4()))


def _check(directory: Path, lines: list[bytes], boot: str, later_boot: str) -> list[Violation]:
    history = History.of(lines)
    known = {operation_id(op): op for op in history.attempts}
    first = recover(directory, boot, known=known)
    again = recover(directory, later_boot, known=known)
    return check_all(history, first, again=again)
