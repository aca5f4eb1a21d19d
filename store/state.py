"""The state directory of a store, and the marker that says whether what is in it can be trusted.

Owns `state/marker`, the verdict on it, and setting a state aside. Back ends never sync: after a power
loss their files may hold any mixture of old and new pages. What the marker names is therefore what
changes whenever pages can have been lost, or the files are not the ones that were marked:

- the boot id: pages that were not written yet are lost with the kernel that held them;
- the mount id: or with a file system that was taken away and mounted again within one boot (a disk that
  was pulled, a lazy or forced unmount). Containers and services with a mount namespace of their own see
  another id for the same mount; so where another process has the state open at this moment, it vouches
  for the file system, which cannot have gone away under it;
- device and inode of the directory, inode of the data file: a copy made while pages changed may be torn.

Invariant: the marker is published after the state was filled from snapshot and log, never before. A
state without a marker was never complete, however far its load came, and is made anew.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

from . import names
from .backends import backend_kind, open_backend
from .errors import CorruptError, FormatError
from .files import make_directory, next_free, remove_durably, rename_durably, sync_directory, translated
from .mounts import place_of
from .ports import Backend
from .smallfile import publish_small, read_small_file

MAGIC: Final = b"PDRSTAT1"
VERSION: Final = 1
ASIDE_STATES_MAX: Final = 2
"""How many states that were set aside are kept: each is a fold of the log that can be made again."""
REASON_FILE: Final = "reason.txt"


class StateMarker(msgspec.Struct, frozen=True):
    """Which files a completed state is made of, and since when nothing of them can have been lost."""

    cluster_id: bytes
    backend: str
    engine: str
    boot_id: str
    device: int
    inode: int
    data_inode: int
    """0 if there is no data file."""
    mount_id: int


class StateVerdict(msgspec.Struct, frozen=True):
    """Can the state be used as it is, and if not, why it has to be rebuilt."""

    is_trusted: bool
    reason: str = ""


TRUSTED: Final = StateVerdict(True)
OWN: Final = StateVerdict(False, "it is kept in the memory of each process that has the store open")


def judge_state(marker: StateMarker | None, now: StateMarker, *, in_use: bool = False) -> StateVerdict:
    """The verdict on a state. Pure.

    `marker` is what was published with it, None if nothing was; `now` what would be published now;
    `in_use` says that another process has this state open.
    """
    if marker is None:
        reason = "it was never completed" if now.data_inode else "there is none yet"
    elif marker.cluster_id != now.cluster_id:
        reason = "it belongs to another cluster"
    elif marker.backend != now.backend:
        reason = f"it is kept in {marker.backend}, not in {now.backend}"
    elif marker.engine != now.engine:
        reason = f"it was written by {marker.engine}, and is read by {now.engine}"
    elif marker.boot_id != now.boot_id:
        reason = "the machine was started anew since it was written"
    elif (marker.device, marker.inode) != (now.device, now.inode):
        reason = "its directory is a copy"
    elif marker.data_inode != now.data_inode:
        reason = "its data file was replaced" if now.data_inode else "its data file is missing"
    elif marker.mount_id != now.mount_id and not in_use:
        reason = "its file system was mounted anew since it was written"
    else:
        return TRUSTED
    return StateVerdict(False, reason)


def open_state(
    store_dir: Path, backend_name: str, cluster_id: bytes, boot_id: str, *, in_use: bool = False
) -> tuple[Backend, StateVerdict]:
    """Open the state if it can be trusted, else an empty one in its place.

    In the latter case the caller fills it and then calls mark_state(). An untrusted state
    that was complete once is set aside, one that never was is removed. The caller sees to it that no two
    processes do this at once. A back end that shares nothing has no files, and is always empty.
    Raises UsageError for an unknown back end, StorageError and its kinds.
    """
    state = names.state_path(store_dir)
    if not backend_kind(backend_name).is_shared:
        return open_backend(backend_name, store_dir), OWN
    place = state / backend_name
    marked, verdict = _judge(state, backend_name, cluster_id, boot_id, in_use)
    if verdict.is_trusted:
        try:
            return open_backend(backend_name, place), verdict
        except FormatError as error:
            verdict = StateVerdict(False, str(error))
    if marked:
        set_aside(store_dir, verdict.reason)
    else:
        remove_state(state)
    with translated("cannot make the state's directory", state):
        make_directory(state)
    return open_backend(backend_name, place), verdict


def inspect_state(
    store_dir: Path,
    backend_name: str,
    cluster_id: bytes,
    boot_id: str,
    *,
    in_use: bool = False,
    place: Path | None = None,
) -> StateVerdict:
    """Can the state be trusted as it is? As open_state() decides it; nothing is opened or changed.

    `place` is its directory where that is not yet, or no longer, the store's.
    """
    if not backend_kind(backend_name).is_shared:
        return OWN
    state = place or names.state_path(store_dir)
    return _judge(state, backend_name, cluster_id, boot_id, in_use)[1]


def mark_state(
    store_dir: Path, *, backend_name: str, cluster_id: bytes, boot_id: str, place: Path | None = None
) -> None:
    """Publish the marker: from now on the state is complete. Survives a crash once this returns.

    `place` as in inspect_state. Of a back end that shares nothing there are no files to mark. Raises
    CorruptError if there is no data file to vouch for, StorageError.
    """
    if not backend_kind(backend_name).is_shared:
        return
    state = place or names.state_path(store_dir)
    marker = _describe(state, backend_name, cluster_id, boot_id)
    if not marker.data_inode:
        raise CorruptError("the state that was filled has no data file", path=state)
    publish_small(state / names.STATE_MARKER, MAGIC, VERSION, marker)


def set_aside(store_dir: Path, reason: str) -> Path | None:
    """Move the state to the directory `aside`, with the reason in a file; answers where it is now.

    None if there is no state. Keeps the newest ASIDE_STATES_MAX of them. Survives a crash: the state is
    in one place or the other.
    """
    state = names.state_path(store_dir)
    if not state.exists():
        return None
    target = free_aside(store_dir)
    with translated("cannot set the state aside", state):
        rename_durably(state, target)
    settle_aside(target, reason)
    return target


def free_aside(store_dir: Path) -> Path:
    """Where in the directory `aside` a state can be moved to."""
    aside = store_dir / names.ASIDE
    with translated("cannot set the state aside", aside):
        make_directory(aside)
        return next_free(aside / names.STATE)


def settle_aside(target: Path, reason: str) -> None:
    """A state was moved to `target`: leave the reason with it, and keep no more than ASIDE_STATES_MAX."""
    try:
        (target / REASON_FILE).write_text(reason + "\n", encoding="utf-8")
    except OSError:
        pass  # a full disk must not keep the store from its rebuild; the caller has the reason too
    _remove_older(target.parent)


def _judge(
    state: Path, backend_name: str, cluster_id: bytes, boot_id: str, in_use: bool
) -> tuple[bool, StateVerdict]:
    """(was it ever complete, as far as can be told; the verdict)"""
    backend_kind(backend_name)
    if not state.exists():
        return False, StateVerdict(False, "there is none yet")
    now = _describe(state, backend_name, cluster_id, boot_id)
    try:
        marker = read_small_file(state / names.STATE_MARKER, MAGIC, VERSION, StateMarker)
    except FormatError as error:
        return True, StateVerdict(False, str(error))
    return marker is not None, judge_state(marker, now, in_use=in_use)


def _describe(state: Path, backend_name: str, cluster_id: bytes, boot_id: str) -> StateMarker:
    kind = backend_kind(backend_name)
    place = place_of(state)
    try:
        data_inode = os.stat(state / backend_name / kind.data_file).st_ino
    except FileNotFoundError:
        data_inode = 0
    return StateMarker(
        cluster_id=cluster_id,
        backend=backend_name,
        engine=kind.engine,
        boot_id=boot_id,
        device=place.device,
        inode=place.inode,
        data_inode=data_inode,
        mount_id=place.mount_id,
    )


def _remove_older(aside: Path) -> None:
    states = [path for path in aside.glob(f"{names.STATE}*") if _is_state(path)]
    states.sort(key=lambda path: path.stat().st_ctime_ns, reverse=True)
    for path in states[ASIDE_STATES_MAX:]:
        remove_state(path)


def _is_state(path: Path) -> bool:
    base, _, number = path.name.partition(".")
    return base == names.STATE and (number.isdigit() or not number) and path.is_dir()


def remove_state(directory: Path) -> None:
    """Remove a directory with what is in it. Survives a crash: part of it may be left, unmarked."""
    with translated("cannot remove a state", directory):
        if directory.exists():
            remove_durably(directory / names.STATE_MARKER)
            shutil.rmtree(directory)
            sync_directory(directory.parent)
