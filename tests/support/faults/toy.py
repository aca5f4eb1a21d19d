"""A toy of a durable store, with bugs to switch on; it exists to prove that the harness sees them.

Owns its own file formats. `log-N` holds records (length, crc32, LSN, then a JSON head and the payload);
`state` a checked JSON of key -> digest with the LSN that it stands for. Several processes may write, each
commit under flock. BUGS:

    early_ack      acknowledges before the sync
    no_sync        never syncs the log
    no_dir_sync    does not sync the directory after it made or renamed a file
    retry_sync     after a failed sync, tries again and goes on
    no_checksum    reads records without checking them
    state_ahead    publishes the state before the log has what is in it
    keeps_deleted  a recovered state still has what was deleted since it was published
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from .checks import Event, Recovered
from .ledger import Item, Ledger
from .shim import take_role

BUGS = ("early_ack", "no_sync", "no_dir_sync", "retry_sync", "no_checksum", "state_ahead", "keeps_deleted")
_HEAD = struct.Struct("<IIQ")
_RECORDS_PER_SEGMENT = 8
_COMMITS_PER_STATE = 5


class ToyCorruptError(Exception):
    """A record that others follow does not check."""


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def digest_of(payload: bytes) -> str:
    return hashlib.blake2b(payload, digest_size=6).hexdigest()


@dataclass
class Contents:
    """What the files hold: the fold of the log on top of the state file."""

    state: dict[str, str] = field(default_factory=dict[str, str])
    events: list[Event] = field(default_factory=list[Event])
    state_lsn: int = 0
    tail: Path | None = None
    tail_bytes: int = 0
    tail_records: int = 0

    @property
    def lsn(self) -> int:
        return self.events[-1].lsn if self.events else 0


def read(directory: Path, bugs: frozenset[str]) -> Contents:
    """Read everything, changing nothing. Raises ToyCorruptError."""
    contents = Contents()
    found = directory / "state"
    if found.exists():
        blob = found.read_bytes()
        if zlib.crc32(blob[4:]).to_bytes(4, "little") != blob[:4]:
            raise ToyCorruptError("state")
        contents.state_lsn, contents.state = json.loads(blob[4:])
    segments = sorted(directory.glob("log-*"))
    for index, path in enumerate(segments):
        _read_segment(path, contents, bugs)
        if contents.tail_bytes < path.stat().st_size and index + 1 < len(segments):
            raise ToyCorruptError(path.name)
    return contents


def _read_segment(path: Path, contents: Contents, bugs: frozenset[str]) -> None:
    blob = path.read_bytes()
    contents.tail, contents.tail_bytes, contents.tail_records = path, 0, 0
    while contents.tail_bytes + _HEAD.size <= len(blob):
        size, check, lsn = _HEAD.unpack_from(blob, contents.tail_bytes)
        start = contents.tail_bytes + _HEAD.size
        body = blob[start : start + size]
        if size == 0 or len(body) < size:
            return
        if "no_checksum" not in bugs and zlib.crc32(body, lsn) != check:
            return
        head, _, payload = body.partition(b"\n")
        op, kind, key = json.loads(head)
        contents.events.append(Event(lsn, op, kind, key, "" if kind == "delete" else digest_of(payload)))
        if lsn > contents.state_lsn:
            _fold(contents.state, contents.events[-1], bugs)
        contents.tail_bytes += _HEAD.size + size
        contents.tail_records += 1


def _fold(state: dict[str, str], event: Event, bugs: frozenset[str]) -> None:
    if event.kind != "delete":
        state[event.key] = event.digest
    elif "keeps_deleted" not in bugs:
        state.pop(event.key, None)


def recover(directory: Path, bugs: frozenset[str] = frozenset()) -> Recovered:
    """Open after a crash: cut the torn tail, and say what is there."""
    began = time.monotonic()
    try:
        contents = read(directory, bugs)
        if contents.tail is not None and contents.tail_bytes < contents.tail.stat().st_size:
            descriptor = os.open(contents.tail, os.O_RDWR)
            os.ftruncate(descriptor, contents.tail_bytes)
            os.fsync(descriptor)
            os.close(descriptor)
    except ToyCorruptError as error:
        return Recovered(error=type(error).__name__, seconds=time.monotonic() - began)
    return Recovered(contents.state, contents.events, seconds=time.monotonic() - began)


class Toy:
    """One writer's hold on a toy store. Other processes may have theirs."""

    def __init__(self, directory: Path, bugs: frozenset[str]) -> None:
        self.directory = directory
        self.bugs = bugs
        directory.mkdir(exist_ok=True)
        self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)

    def commit(self, op: str, item: Item, payload: bytes, ledger: Ledger) -> None:
        """Append, make durable, acknowledge. Raises OSError if the disk refused."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._commit(op, item, payload, ledger)
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _commit(self, op: str, item: Item, payload: bytes, ledger: Ledger) -> None:
        contents = read(self.directory, self.bugs)
        lsn = contents.lsn + 1
        event = Event(lsn, op, item.kind, item.key, item.digest)
        publishes = lsn % _COMMITS_PER_STATE == 0
        _fold(contents.state, event, frozenset())
        if publishes and "state_ahead" in self.bugs:
            self._publish(lsn, contents.state)
        body = json.dumps([op, item.kind, item.key]).encode() + b"\n" + payload
        descriptor = self._tail(contents, lsn)
        try:
            write_all(descriptor, _HEAD.pack(len(body), zlib.crc32(body, lsn), lsn) + body)
            if "early_ack" in self.bugs:
                ledger.acknowledge(op, lsn)
            if "no_sync" not in self.bugs:
                self._sync(descriptor)
        finally:
            os.close(descriptor)
        if publishes and "state_ahead" not in self.bugs:
            self._publish(lsn, contents.state)
        if "early_ack" not in self.bugs:
            ledger.acknowledge(op, lsn)

    def _tail(self, contents: Contents, lsn: int) -> int:
        if contents.tail is not None and contents.tail_records < _RECORDS_PER_SEGMENT:
            descriptor = os.open(contents.tail, os.O_WRONLY)
            os.ftruncate(descriptor, contents.tail_bytes)
            os.lseek(descriptor, 0, os.SEEK_END)
            return descriptor
        path = self.directory / f"log-{lsn:08d}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._sync_names()
        return descriptor

    def _publish(self, lsn: int, state: dict[str, str]) -> None:
        body = json.dumps([lsn, state]).encode()
        temporary = self.directory / "state.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        write_all(descriptor, zlib.crc32(body).to_bytes(4, "little") + body)
        self._sync(descriptor)
        os.close(descriptor)
        temporary.rename(self.directory / "state")
        self._sync_names()

    def _sync(self, descriptor: int) -> None:
        try:
            os.fdatasync(descriptor)
        except OSError:
            if "retry_sync" not in self.bugs:
                raise
            os.fdatasync(descriptor)

    def _sync_names(self) -> None:
        if "no_dir_sync" not in self.bugs:
            descriptor = os.open(self.directory, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def write_some(directory: Path, ledger_path: Path, writer: str, count: int, bugs: frozenset[str]) -> int:
    """The workload of one writer; returns its exit code."""
    toy = Toy(directory, bugs)
    ledger = Ledger(ledger_path, writer)
    for number in range(1, count + 1):
        op = f"{writer}-{number}"
        payload = f"{op}:".encode() * (3000 if number % 6 == 0 else 20)
        kind = "delete" if number % 7 == 0 else "put"
        digest = "" if kind == "delete" else digest_of(payload)
        item = Item(kind, f"key-{number % 3}", digest)
        ledger.attempt(op, [item])
        try:
            toy.commit(op, item, b"" if kind == "delete" else payload, ledger)
        except OSError:
            ledger.unknown(op)
            return 5
    return 0


def work(directory: Path, ledger: Path, count: str, writers: str, *bugs: str) -> int:
    """The workload: each of several writers is a forked child with a role and a ledger of its own."""
    if writers == "1":
        return write_some(directory, ledger, "w0", int(count), frozenset(bugs))
    children: list[int] = []
    for number in range(int(writers)):
        pid = os.fork()
        if pid == 0:
            name = f"w{number}"
            take_role(name)
            own = ledger.with_name(f"{ledger.name}.{name}")
            os._exit(write_some(directory, own, name, int(count), frozenset(bugs)))
        children.append(pid)
    return max(abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) for pid in children)
