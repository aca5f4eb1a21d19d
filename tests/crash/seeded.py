"""Ten bugs for the real store, put in on purpose, and the programs that run with one of them.

Owns the bugs: each replaces a function of the package in the process that calls `seed_bug`, which is
always one that ends soon (a run under the shim, a forked checker). Nothing is known here of how a bug is
found. Invariant: without a bug the programs run the store as it is.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

import perdure.recovery
from perdure.store import (
    OpenOptions,
    PerdureError,
    SessionStore,
    files,
    frame,
    open_store,
    promise,
    state,
    tail,
)
from perdure.store.cursor import list_segments
from perdure.store.errors import Indeterminate
from perdure.store.event import decode_events
from perdure.store.flush import Flusher
from perdure.store.frame import Frame, Verdict
from perdure.store.log import EventLog
from perdure.store.names import log_path
from perdure.store.segment import read_header
from perdure.store.state import StateMarker, StateVerdict
from perdure.store.tail import Judgement, Witnesses
from perdure.store.view import View
from tests.crash import store_program
from tests.crash.store_program import KnownIds, open_for_test, operation_id
from tests.recovery.nodes import DirectoryVoters, make_node, make_primary, replicate
from tests.support.faults.ledger import Item, Ledger
from tests.support.faults.shim import take_role

NODES = ("a", "b", "c")
NO_BUG = "none"


@cache
def seed_bug(name: str) -> None:
    """Put a bug into this process, for as long as it lives; NO_BUG leaves all as it is."""
    if name != NO_BUG:
        BUGS[name]()


def _replace(function: Callable[..., Any], by: Callable[..., Any]) -> None:
    """Wherever a module of the package knows the function by a name."""
    for module in [m for name, m in sys.modules.items() if name.startswith("perdure.")]:
        for name in [name for name, value in vars(module).items() if value is function]:
            setattr(module, name, by)


# -- the bugs ----------------------------------------------------------------------------------------


def _acknowledge_before_fsync() -> None:
    flush = Flusher.flush
    waiting = 0

    def flush_behind(
        self: Flusher, lsn: int, when_synced: Callable[[], object] | None = None, *, is_writer: bool = False
    ) -> None:
        nonlocal waiting
        waiting += 1
        if waiting % 4 == 0:  # the fourth syncs for the three that were answered already
            flush(self, lsn, when_synced, is_writer=is_writer)

    Flusher.flush = flush_behind  # type: ignore[method-assign]


def _no_directory_fsync() -> None:
    _replace(files.sync_directory, lambda path: None)


def _state_ahead_of_log() -> None:
    append = EventLog.append

    def fold_and_append(self: EventLog, payload: bytes, event_count: int, *more: int) -> object:
        view = getattr(self.on_run, "__self__", None)
        if isinstance(view, View):
            entries = view._entries(decode_events(payload, event_count), self.cursor.at.lsn + 1)
            changes = sorted((key, entry[1]) for key, entry in entries.items())
            view.backend.fold(changes, [], [], view.state)
        return append(self, payload, event_count, *more)

    EventLog.append = fold_and_append  # type: ignore[method-assign, assignment]


def _retry_after_fsync_error() -> None:
    def sync_again(self: Flusher, sync: Callable[[], None]) -> None:
        try:
            sync()
        except OSError:
            sync()

    Flusher._guarded = sync_again  # type: ignore[method-assign]


def _chain_not_checked() -> None:
    decode = frame.decode_frame

    def decode_unchecked(data: bytes | memoryview, offset: int, key: int) -> tuple[Verdict, Frame | None]:
        verdict, found = decode(data, offset, key)
        if verdict is not Verdict.BAD:
            return verdict, found
        fields = frame.unpack_header(data, offset)
        body = bytes(data[offset + frame.CHAIN_BYTES : offset + frame.HEADER_BYTES + fields[5]])
        right = frame.pack_chain(frame.xxh3_64(body, fields[1] ^ key))
        verdict, found = decode(right + body, 0, key)
        return verdict, found and msgspec.structs.replace(found, chain=fields[0])

    _replace(decode, decode_unchecked)


def _tail_cut_in_the_same_boot() -> None:
    judge = tail.judge_tail

    def judge_by_the_mark_alone(seen: Witnesses) -> Judgement:
        return judge(msgspec.structs.replace(seen, follower_lsn=0, page_lsn=0))

    _replace(judge, judge_by_the_mark_alone)


def _rebuild_skipped_after_power_loss() -> None:
    judge = state.judge_state

    def judge_without_boot(
        marker: StateMarker | None, now: StateMarker, *, in_use: bool = False
    ) -> StateVerdict:
        if marker is not None:
            # An image is made anew for each check: as files it is a copy of what was marked.
            marker = msgspec.structs.replace(
                now, cluster_id=marker.cluster_id, backend=marker.backend, engine=marker.engine
            )
        return judge(marker, now, in_use=in_use)

    _replace(judge, judge_without_boot)


def _fence_missing() -> None:
    look = EventLog.look_again

    def look_past_the_promise(self: EventLog, seen: int | None = None) -> None:
        look(self, seen)
        header = self.cursor.header
        self.is_primary = self.may_append = header is not None and header.primary == self.identity.node

    EventLog.look_again = look_past_the_promise  # type: ignore[method-assign, assignment]


def _two_candidates_in_one_epoch() -> None:
    _replace(promise.decide_promise, lambda held, asked: True)


def _poison_ignored_by_others() -> None:
    poison, check = Flusher.poison, Flusher.check_poison
    mine: set[int] = set()

    def poison_here(self: Flusher, reason: str) -> None:
        mine.add(os.getpid())
        poison(self, reason)

    def check_own(self: Flusher) -> None:
        if os.getpid() in mine:
            check(self)

    Flusher.poison, Flusher.check_poison = poison_here, check_own  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {
    "acknowledge-before-fsync": _acknowledge_before_fsync,
    "no-directory-fsync": _no_directory_fsync,
    "state-ahead-of-log": _state_ahead_of_log,
    "retry-after-fsync-error": _retry_after_fsync_error,
    "chain-not-checked": _chain_not_checked,
    "tail-cut-in-the-same-boot": _tail_cut_in_the_same_boot,
    "rebuild-skipped-after-power-loss": _rebuild_skipped_after_power_loss,
    "fence-missing": _fence_missing,
    "two-candidates-in-one-epoch": _two_candidates_in_one_epoch,
    "poison-ignored-by-others": _poison_ignored_by_others,
}


# -- the programs ------------------------------------------------------------------------------------


def write(directory: Path, ledger: Path, bug: str, durability: str, count: str) -> int:
    """The crash tests' own workload."""
    seed_bug(bug)
    return store_program.write(directory, ledger, durability, count)


def write_and_die(directory: Path, ledger: Path, count: str) -> int:
    """Puts that are in the page cache alone, in one segment, and then kill -9."""
    options = OpenOptions()
    store = SessionStore(open_store(directory, options), options, None)
    _put_some(store, Ledger(ledger, "w"), "w", int(count))
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


def write_on_beside_a_failed_sync(directory: Path, ledger: Path, bug: str, count: str) -> int:
    """Process `first` writes until it is refused, then process `second`, which had opened before."""
    seed_bug(bug)
    says_open, may_write = os.pipe(), os.pipe()
    children: list[int] = []
    for name, waits, tells in (("second", may_write[0], says_open[1]), ("first", says_open[0], may_write[1])):
        if (pid := os.fork()) == 0:
            take_role(name)
            os._exit(_take_a_turn(directory, ledger, name, int(count), waits, tells))
        children.append(pid)
    return max(abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) for pid in children)


def _take_a_turn(directory: Path, ledger: Path, name: str, count: int, waits: int, tells: int) -> int:
    own = Ledger(ledger.with_name(f"{ledger.name}.{name}"), name)
    if name == "second":
        store = open_for_test(directory, "disk")
        os.write(tells, b"!")
        os.read(waits, 1)
        _put_some(store, own, name, count)
    else:
        os.read(waits, 1)
        store = open_for_test(directory, "disk")
        _put_some(store, own, name, count)
        os.write(tells, b"!")
    store.close()
    return 0


def write_on_after_a_promotion(directory: Path, ledger: Path, bug: str) -> int:
    """Node a is primary and has its store open; b is promoted; a's application writes on."""
    _make_cluster(directory)
    seed_bug(bug)
    own = Ledger(ledger, "w")
    store = open_for_test(directory / "a")
    _put_some(store, own, "before", 5)
    for node in ("b", "c"):
        replicate(directory / "a", directory / node)
    voters = DirectoryVoters({node: directory / node for node in ("a", "c")})
    perdure.recovery.promote(directory / "b", voters, accept_data_loss=True)
    _put_some(store, own, "after", 5)
    store.close()
    return 0


def promote_two_at_once(directory: Path, ledger: Path, bug: str) -> int:
    """While b is being promoted, after it chose its epoch, c is promoted; then both write.

    The network is split between b and c: a is the only one that both can ask.
    """
    _make_cluster(directory)
    seed_bug(bug)
    own = Ledger(ledger, "w")
    with open_for_test(directory / "a") as store:
        _put_some(store, own, "before", 5)
    for node in ("b", "c"):
        replicate(directory / "a", directory / node)

    def come_between(step: str) -> None:
        if step == "promise":
            perdure.recovery.promote(directory / "c", voters, accept_data_loss=True)

    voters = DirectoryVoters({"a": directory / "a"})
    try:
        perdure.recovery.promote(directory / "b", voters, accept_data_loss=True, on_step=come_between)
    except PerdureError as error:
        print(type(error).__name__, error)
    for node in ("b", "c"):
        with open_for_test(directory / node) as store:
            _put_some(store, own, f"on-{node}", 3)
    return 0


def judge_one_history(directory: Path) -> list[str]:
    """What breaks it: an epoch with two primaries, or an LSN with two frames, among the nodes' logs."""
    found: list[str] = []
    primaries: dict[int, str] = {}
    for node in NODES:
        for file in list_segments(log_path(directory / node)):
            descriptor = os.open(file.path, os.O_RDONLY)
            header = read_header(descriptor, path=str(file.path))
            os.close(descriptor)
            first = primaries.setdefault(header.epoch, header.primary)
            if first != header.primary:
                found.append(f"one history: epoch {header.epoch} of {first} is {header.primary}'s on {node}")
    return found


def _make_cluster(directory: Path) -> None:
    directory.mkdir()
    make_primary(directory / "a", "a", NODES, 0)
    for node in ("b", "c"):
        make_node(directory / node, node)


def _put_some(store: SessionStore, ledger: Ledger, name: str, count: int) -> None:
    ids = KnownIds()
    store._ids = ids  # type: ignore[assignment]
    for number in range(1, count + 1):
        op = f"{name}-{number}"
        ids.next = operation_id(op)
        ledger.attempt(op, [Item("put", f"{name}-key-{number}", op)])
        try:
            store.put(f"{name}-key-{number}", {"op": op}, None)
        except Indeterminate as error:
            print(type(error).__name__, error)
            ledger.unknown(op)
            return
        except PerdureError as error:
            print(type(error).__name__, error)
            ledger.refuse(op)
            return
        ledger.acknowledge(op)
