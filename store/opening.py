"""Opening a store: identity, poison, state to be trusted or rebuilt, the log's end, a new epoch.

Owns the order in which these happen, all under the write lock, so that several processes that open one
store at once do it one after the other:

    1. the directory is a store, or becomes one (identity is published last)
    2. poison: refused while anyone has the store open, else the log is read and copied anew
    3. the state's marker says whether the state may be trusted (same boot, same directory)
    4. the log's end is settled: rolled forward, cut, or found corrupt
    5. a state that is not trusted is rebuilt from the newest good snapshot and the log
    6. a new store, or a standalone one whose log may have lost frames, begins an epoch
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import names
from .backends import DEFAULT_BACKEND, backend_kind
from .cache import SEGMENT_BYTES as CACHE_SEGMENT_BYTES
from .cache import check_cache, check_cache_backend, empty_if_lost
from .clock import GivenClock, SessionClock, last_time_ms, read_boottime_ms, read_wall_ms
from .commit import Durability
from .control import ALONE, Config, config_problem
from .cursor import LogCursor, list_segments
from .errors import (
    CorruptError,
    DivergedError,
    FormatError,
    PoisonedError,
    PositionGoneError,
    StorageError,
    StoreMissingError,
    UsageError,
)
from .event import VALUE_BYTES_MAX
from .files import make_directory, publish, remove_durably, translated
from .flush import is_poisoned
from .hot import HOT_BYTES, HOT_BYTES_MAX
from .identity import Identity, has_identity, new_cluster_id, read_identity, write_identity
from .ids import NOWHERE, Position, StatePosition
from .labels import HOME_NODE, checked_term
from .lock import FileLock, FoldLock
from .log import LOCK_TIMEOUT_MS, SEGMENT_BYTES, EventLog
from .own_state import Fill, open_own
from .page import ControlPage, Word, read_boot_id
from .placing import open_log, place
from .ports import Backend, Clock
from .promise import Promise, read_promise
from .rebuild import Progress, load_snapshot, replay
from .rejoining import wait_until_rejoined
from .sealer import PLAIN, SealOptions
from .session import DEFAULT_TIMEOUT_MS, check_timeout, check_window
from .snapshot import SnapshotReader, list_snapshots
from .state import StateVerdict, mark_state, open_state, set_aside
from .switch import StatePlace, StateWatch, finish_switch, lock_settled
from .view import View

STANDALONE_NODE = "local"


INTERVAL_MS_MAX = 86_400_000
SESSIONS_MAX = 1 << 40
SWEEP_INTERVAL_MS = 60_000


@dataclass(frozen=True)
class OpenOptions:
    """How a store is opened. Times in ms, sizes in bytes.

    `clock` is the session time if it is given; without it that is kept in the control page (see clock),
    from `wall_ms` and `boottime_ms`, which are ms since 1970 and since boot.
    """

    backend: str | None = None
    durability: Durability = Durability.OS
    interval_ms: int = 1000
    session_bytes_max: int = 65_536
    write_timeout_ms: int = LOCK_TIMEOUT_MS
    create: bool = True
    home_node: str = ""
    sessions_max: int | None = None
    segment_bytes: int = SEGMENT_BYTES
    clock: Clock | None = None
    wall_ms: Callable[[], int] = read_wall_ms
    boottime_ms: Callable[[], int] = read_boottime_ms
    refresh_window_ms: int | None = None
    sweep_interval_ms: int = SWEEP_INTERVAL_MS
    hot_bytes: int = HOT_BYTES
    default_timeout_ms: int | None = DEFAULT_TIMEOUT_MS
    boot_id: Callable[[], str] = read_boot_id
    progress: Progress | None = None
    seal: SealOptions = PLAIN

    def __post_init__(self) -> None:
        """Raises UsageError for a limit that the formats could not keep."""
        for name, value, least, most in (
            ("max_session_size_bytes", self.session_bytes_max, 1, VALUE_BYTES_MAX),
            ("interval_ms", self.interval_ms, 1, INTERVAL_MS_MAX),
            ("write_timeout_ms", self.write_timeout_ms, 0, INTERVAL_MS_MAX),
            ("sweep_interval_ms", self.sweep_interval_ms, 0, INTERVAL_MS_MAX),
            ("hot_bytes", self.hot_bytes, 0, HOT_BYTES_MAX),
        ):
            _check_limit(name, value, least, most)
        if self.sessions_max is not None:
            _check_limit("max_sessions", self.sessions_max, 1, SESSIONS_MAX)
        if self.home_node:
            checked_term(HOME_NODE, self.home_node, "a home node")
        check_window(self.refresh_window_ms)
        check_timeout(self.default_timeout_ms)


def _check_limit(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{name} is a whole number from {least} to {most}, not {value!r}")


@dataclass
class Opened:
    """The parts of an open store."""

    store: Path
    log: EventLog
    view: View
    watch: StateWatch
    users_lock: FileLock
    clock: SessionClock | GivenClock
    rebuilt: str
    """Why the state was rebuilt at this opening, empty if it was not."""

    @property
    def identity(self) -> Identity:
        """As of the last look: its back end changes where the state is switched."""
        return self.log.identity

    @property
    def backend(self) -> Backend:
        """The open state; after a switch another one, so take it under the view's mutex, anew each time."""
        return self.view.backend

    @property
    def state_path(self) -> Path:
        return names.state_path(self.store)

    def fold_lock(self) -> FileLock:
        """A new handle of the lock that is held to fold. Who takes it holds the view's fold_threads."""
        return FoldLock(self.store / names.FOLD_LOCK, lambda: self.view.make_own is not None)

    def close(self) -> None:
        with self.view.mutex:
            self.view.release()
            self.log.close()
            self.backend.close()
            self.watch.close()
        self.users_lock.close()


def open_store(store: Path, options: OpenOptions) -> Opened:
    """Open a store for reading and, where the node is primary, writing.

    Raises StoreMissingError, StoreReadOnlyError, ForeignError, FormatVersionError, CorruptError,
    PoisonedError or LockTimeoutError.
    """
    identity = _identity_of(store, options)
    users = FileLock(store / names.USERS_LOCK)
    try:
        _deal_with_poison(store, identity, users, options)
        in_use = not users.try_acquire()
        emptied = (
            empty_if_lost(store, identity, options.boot_id()) if identity.is_cache and not in_use else ""
        )
        users.acquire(options.write_timeout_ms, "a process that has the store to itself", shared=True)
        finish_switch(store, options.boot_id(), options.write_timeout_ms)
        wait_until_rejoined(store, options.write_timeout_ms)
        opened = _open_parts(store, identity, users, options, in_use=in_use)
        opened.rebuilt = emptied or opened.rebuilt
        return opened
    except BaseException:
        users.close()
        raise


def init_store(
    store: Path,
    *,
    node: str,
    cluster_id: bytes | None = None,
    backend: str = DEFAULT_BACKEND,
    now_ms: int,
    is_first: bool = False,
) -> Identity:
    """Make the directory of a node. It has no log yet: it becomes primary by an epoch, or a replica.
    `is_first`: the first primary of its cluster, which begin_cluster makes it then.

    Raises UsageError if there is a store already, or for a back end that there is not; ForeignError if there
    is something else.
    """
    if has_identity(store):
        raise UsageError(
            f"there is a store already, of node {read_identity(store).node}",
            path=store,
            hint="`perdure status DIR` tells of it. To start with nothing, give a directory that is empty or "
            "does not exist yet.",
        )
    backend_kind(backend)
    identity = Identity(cluster_id or new_cluster_id(), node, 0, now_ms, backend, is_first=is_first)
    write_identity(store, identity)
    return identity


def begin_cluster(log: EventLog, config: Config) -> Position:
    """Make a node the first primary of a new cluster. The caller holds the write lock.

    After a crash it can be called again. Raises UsageError unless the log is empty and nothing was ever
    promised to another node.
    """
    if log.cursor.at.lsn or log.promise.candidate not in ("", log.identity.node):
        raise UsageError(
            "only a store without a log can begin a cluster",
            hint="Use `perdure promote` to make another node the primary.",
        )
    node = log.identity.node
    problem = config_problem(config, node)
    if problem:
        raise UsageError(problem, node=node)
    return log.start_epoch(Promise(max(1, log.promise.epoch), node), config, "created")


def _identity_of(store: Path, options: OpenOptions) -> Identity:
    if has_identity(store):
        identity = read_identity(store)
    elif not options.create:
        raise StoreMissingError("there is no store here", path=store, hint="`perdure init DIR` makes one.")
    else:
        identity = _create(store, options)
    _check_backend(identity, store, options)
    check_cache(identity, options.durability, store)
    return identity


def _check_backend(identity: Identity, store: Path, options: OpenOptions) -> None:
    if options.backend is not None and options.backend != identity.backend:
        raise StorageError(
            f"the store keeps its state in {identity.backend}, not in {options.backend}",
            path=store,
            hint="Open it without naming a back end; `perdure migrate DIR --to-backend NAME` changes it.",
        )


def _create(store: Path, options: OpenOptions) -> Identity:
    backend_kind(options.backend or DEFAULT_BACKEND)  # nothing is made for one that there is not
    with translated("cannot make a store", store):
        store.mkdir(parents=True, exist_ok=True)
        strange = [name for name in os.listdir(store) if name not in (names.WRITE_LOCK, names.CONFIG_FILE)]
    lock = FileLock(store / names.WRITE_LOCK) if not strange or has_identity(store) else None
    if lock is None:
        lock = FileLock(store / names.WRITE_LOCK) if (store / names.LOG).is_dir() else None
    if lock is None:
        write_identity(store, _new_identity(options))  # raises ForeignError, naming what is there
        return read_identity(store)
    try:
        lock.acquire(options.write_timeout_ms)
        if not has_identity(store):
            write_identity(store, _new_identity(options))
        return read_identity(store)
    finally:
        lock.close()


def _new_identity(options: OpenOptions) -> Identity:
    backend = options.backend or DEFAULT_BACKEND
    is_cache = options.durability is Durability.CACHE
    if is_cache:
        check_cache_backend(backend)
    now_ms = options.clock.now_ms() if options.clock else options.wall_ms()
    return Identity(new_cluster_id(), STANDALONE_NODE, 0, now_ms, backend, is_cache)


def _open_parts(
    store: Path, identity: Identity, users: FileLock, options: OpenOptions, *, in_use: bool
) -> Opened:
    boot_id = options.boot_id()
    log = EventLog(
        store,
        identity,
        boot_id=boot_id,
        now_ms=options.wall_ms,
        lock_timeout_ms=options.write_timeout_ms,
        segment_bytes=min(options.segment_bytes, CACHE_SEGMENT_BYTES)
        if identity.is_cache
        else options.segment_bytes,
    )
    clock = (
        GivenClock(options.clock)
        if options.clock
        else SessionClock(log.page, options.wall_ms, options.boottime_ms)
    )
    log.now_ms = clock.now_ms
    log.is_synced = options.durability is Durability.DISK
    backend: Backend | None = None
    try:
        lock_settled(log, boot_id, options.write_timeout_ms)
        try:
            wait_until_rejoined(store, 0)  # the lock is free: who began it has died
            identity = log.identity
            _check_backend(identity, store, options)
            if not backend_kind(identity.backend).is_shared:
                open_log(log, None)
                clock.begin(last_time_ms(log))
                place = StatePlace(store)
                log.write_lock.release()  # the state is made without it
                view, watch = _open_own(log, place, boot_id, options)
                return Opened(store, log, view, watch, users, clock, "")
            backend, verdict = open_state(
                store, identity.backend, identity.cluster_id, boot_id, in_use=in_use
            )
            backend, view, rebuilt = _settle_and_load(log, backend, verdict, boot_id, options)
            clock.begin(last_time_ms(log))
            _begin_reign(log)
            view.follow_config()
            watch = StateWatch(log, view, boot_id, StatePlace(store), _filler(log, options))
        finally:
            log.write_lock.release()
    except BaseException:
        log.close()
        if backend is not None:
            backend.close()
        raise
    return Opened(store, log, view, watch, users, clock, rebuilt)


def _filler(log: EventLog, options: OpenOptions) -> Fill:
    return lambda backend, end_lsn: load_state(backend, log, options.progress, end_lsn=end_lsn)


def _open_own(
    log: EventLog, place: StatePlace, boot_id: str, options: OpenOptions
) -> tuple[View, StateWatch]:
    """The view over a state of this handle alone, made without the write lock, which is held at the end.

    `place` is where the store's state stood when the lock was held; what is there now is looked at.
    """
    fill = _filler(log, options)
    try:
        view = open_own(log, log.store, log.identity.backend, fill)
    except BaseException:
        place.close()
        raise
    watch = StateWatch(log, view, boot_id, place, fill)
    try:
        log.look_anew()
        log.lock_any()
        try:
            _begin_reign(log)
            view.follow_config()
            if log.is_primary and view.make_own is not None:
                log.words[Word.FOLDED] = 0  # what the folder of a replica said before its promotion
        finally:
            log.unlock()
    except BaseException:
        view.backend.close()
        watch.close()
        raise
    return view, watch


def _settle_and_load(
    log: EventLog, backend: Backend, verdict: StateVerdict, boot_id: str, options: OpenOptions
) -> tuple[Backend, View, str]:
    if verdict.is_trusted:
        view = View(log, backend)
        state = view.reset()
        try:
            open_log(log, state)
            return backend, view, ""
        except (DivergedError, PositionGoneError) as error:
            why = str(error)
            backend.close()
            backend = _fresh_state(log, boot_id, why)
    else:
        why = verdict.reason
    log.on_run = log.on_reset = log.on_control = None
    try:
        open_log(log, None)
        end = load_state(backend, log, progress=options.progress)
        mark_state(
            log.store, backend_name=log.identity.backend, cluster_id=log.identity.cluster_id, boot_id=boot_id
        )
        view = View(log, backend)
        view.reset()
        place(log, end)
        log.follow()
        log.page.bump()  # others may have the state open that was set aside
        log.look_again()
    except BaseException:
        backend.close()  # the caller does not know of it
        raise
    return backend, view, why


def _fresh_state(log: EventLog, boot_id: str, why: str) -> Backend:
    set_aside(log.store, why)
    identity = log.identity
    return open_state(log.store, identity.backend, identity.cluster_id, boot_id)[0]


def load_state(
    backend: Backend, log: EventLog, progress: Progress | None = None, *, end_lsn: int | None = None
) -> StatePosition:
    """Fill an empty back end from the newest good snapshot and the log; answers where it then stands.

    The log is folded up to `end_lsn`, None for where `log` stands. With sync_replicas only what is known
    to be committed is taken. Raises CorruptError or PositionGoneError if no snapshot and log together give
    a state.
    """
    end = log.cursor.at.lsn if end_lsn is None else end_lsn
    if log.config.sync_replicas > 0:
        end = min(end, log.words[Word.COMMITTED])
    identity = log.identity
    cursor = LogCursor(log.cursor.log, identity.cluster_id, log.key, identity.shard)
    try:
        base = _load_newest_snapshot(backend, log, end)
        if end <= base.lsn or not list_segments(cursor.log):
            return base
        return replay(backend, cursor, base, upto_lsn=end, progress=progress).end
    finally:
        cursor.close()


def _load_newest_snapshot(backend: Backend, log: EventLog, end_lsn: int) -> StatePosition:
    files = list_segments(log.cursor.log)
    oldest = files[0].first_lsn if files else 1
    damaged: FormatError | None = None
    for file in reversed(list_snapshots(log.store / names.SNAPSHOTS)):
        if files and (file.lsn > end_lsn or file.lsn + 1 < oldest):
            continue
        try:
            with SnapshotReader(file.path, log.identity.cluster_id) as snapshot:
                for _ in snapshot:
                    pass  # read to its end first: nothing of a damaged one may reach the state
            with SnapshotReader(file.path, log.identity.cluster_id) as snapshot:
                load_snapshot(backend, snapshot.head.at, snapshot)
                return snapshot.head.at
        except FormatError as error:
            damaged = error
    if oldest == 1:
        return NOWHERE
    raise CorruptError(
        f"the log begins with LSN {oldest}, and no good snapshot reaches it",
        path=log.store / names.SNAPSHOTS,
        lsn=oldest,
        hint="Bring back a snapshot, or bootstrap this node from another one.",
    ) from damaged


def _begin_reign(log: EventLog) -> None:
    """A new standalone store, or one whose log may have lost frames, begins an epoch by itself.

    A node that was made for a cluster has a name of its own and waits to be promoted or shipped to; a
    primary with voters needs their promises.
    """
    header = log.cursor.header
    node = log.identity.node
    promise = read_promise(log.store)
    if header is None:
        if node == STANDALONE_NODE and promise.candidate in ("", node) and log.cursor.at.lsn == 0:
            log.start_epoch(Promise(promise.epoch + 1, node), ALONE, "created")
        return
    ours = header.primary == node and promise.candidate == node
    unbegun = header.epoch != log.cursor.at.epoch  # a crash came before the EPOCH_START
    alone = set(log.config.voters) <= {node} and log.config.sync_replicas == 0
    if log.identity.is_first and not log.cursor.at.lsn:
        return  # its making was broken off: what it was to begin with is not known here
    if ours and alone and (log.lost_frames or unbegun):
        log.start_epoch(Promise(promise.epoch + 1, node), log.config, "restarted")


def _deal_with_poison(store: Path, identity: Identity, users: FileLock, options: OpenOptions) -> None:
    """Copy the log of a poisoned store into new files, if nobody else has it open.

    The control page stays the same file: who watches the node looks at it without opening the store.
    """
    if not is_poisoned(store, options.boot_id()):
        return
    if not users.try_acquire():
        raise PoisonedError(
            "a sync to disk failed, and other processes still have the store open",
            path=store,
            hint="Close it in every process, then open it again.",
        )
    writing = FileLock(store / names.WRITE_LOCK)
    try:
        writing.acquire(options.write_timeout_ms)
        for file in list_segments(names.log_path(store)):
            with translated("cannot read a segment", file.path):
                data = file.path.read_bytes()
            publish(file.path, data)
        page = ControlPage(store / names.CONTROL_PAGE, options.boot_id())
        page.reset()
        page.close()
    finally:
        writing.close()
    make_directory(store / names.ASIDE)
    remove_durably(store / names.POISON)
    users.release()
