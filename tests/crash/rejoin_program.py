"""An old primary that rejoins, under the fault shim: killed at any step of it, it comes back as a replica.

Owns how two histories are made for such a run, and what must hold of the node afterwards. The watched
directory is the old primary's. Writes that it alone acknowledged are in `diverged/` then, not in its log.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from perdure.recovery import Level, list_diverged, take_snapshot, verify
from perdure.shipping import open_node_log, read_fault, run_folder, run_shipper, serve_receiver
from perdure.store import Config, PerdureError, Promise, SessionStore, begin_cluster, init_store
from perdure.store.cursor import list_segments
from perdure.store.page import Word
from tests.crash.process_checks import words_of
from tests.crash.process_programs import fork_as, open_small, say
from tests.crash.receive_program import CATCH_UP_S, CLUSTER, HOST, NOW_MS, SECRET, _free_port, _word
from tests.recovery.nodes import replicate

NEW = "n2"
"""Directory of the new primary, beside the old one's."""
OLD_ONLY = 6


def prepare_parted(backend: str, *, keeps_log: bool = True) -> Callable[[Path], None]:
    """n1 wrote on, and folded that, after n2 had become the primary. Without `keeps_log` n2's log begins
    behind the fork, so that a snapshot is needed."""

    def prepare(folder: Path) -> None:
        old, new = folder / "store", folder / NEW
        for name, path in (("n1", old), ("n2", new)):
            init_store(path, node=name, cluster_id=CLUSTER, backend=backend, now_ms=NOW_MS)
        node = open_node_log(old, [])
        node.log.lock_any()
        begin_cluster(node.log, Config(("n1", "n2"), 0))
        node.log.unlock()
        node.close()
        write(old, "shared", 12)
        replicate(old, new)
        node = open_node_log(new, [])
        node.log.lock_any()
        node.log.start_epoch(Promise(2, "n2"), Config(("n1", "n2"), 0), "test")
        node.log.unlock()
        node.close()
        write(old, "old", OLD_ONLY)
        write(new, "new", 20)
        if not keeps_log:
            at = take_snapshot(new).lsn
            files = list_segments(new / "log")
            keep = [file for file in files if file.first_lsn <= at + 1][-1]
            for file in files[: files.index(keep)]:
                file.path.unlink()

    return prepare


def write(path: Path, name: str, count: int) -> None:
    """Some sessions of its own and some that the other side writes, too."""
    with open_small(path, durability="disk") as store:
        for number in range(count):
            store.put(f"{name}-{number}", {"by": name, "pad": "x" * 150}, None)
            store.put(f"both-{number % 5}", {"by": name, "pad": "x" * 150}, None)
        store.fold()


def rejoin(directory: Path, _ledger: Path) -> int:
    """Receiver and folder of the old primary, and the new one's shipper; who is killed is started again."""
    new, port = directory.parent / NEW, _free_port()
    tasks: dict[str, Callable[[], None]] = {
        "receiver": lambda: serve_receiver(directory, HOST, port, secret=SECRET),
        "folder": lambda: run_folder(directory),
        "shipper": lambda: run_shipper(
            new, {"n1": (HOST, port)}, secret=SECRET, make_snapshot=lambda: take_snapshot(new).path
        ),
    }

    def begin(role: str) -> int:
        def run() -> None:
            try:
                tasks[role.removesuffix("-again")]()
            except PerdureError as error:
                say(directory, "refusals", f"{role}: {type(error).__name__}: {error}")
                raise

        return fork_as(role, run)

    running = {begin(role): role for role in tasks}
    deadline = time.monotonic() + CATCH_UP_S
    try:
        while time.monotonic() < deadline:
            for pid, role in list(running.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    del running[pid]
                    kind = role.removesuffix("-again")
                    if not os.WIFSIGNALED(status) and kind != "folder":
                        said = (words_of(directory, "refusals") or [""])[-1]
                        say(directory, "verdict", f"(7) the {role} ended with status {status}: {said}")
                    running[begin(f"{kind}-again")] = f"{kind}-again"
            if _is_back(directory, new):
                say(directory, "outcome", "done")
                return 0
            time.sleep(0.005)
        say(directory, "verdict", f"(7) the old primary is not back within {CATCH_UP_S:g} s")
        return 1
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _is_back(old: Path, new: Path) -> bool:
    if any((old / name).exists() for name in ("rejoin.plan", "cut.plan", "install.plan", "rejoin")):
        return False  # `rejoin` goes last, by the next receiver where one was killed before that
    target = _word(new, Word.APPENDED)
    files = list_segments(old / "log")
    return (
        bool(files)
        and files[-1].epoch == 2
        and _word(old, Word.APPENDED) == target
        and _word(old, Word.FOLDED) == target
    )


def check_rejoin(directory: Path, _lines: list[bytes]) -> list[str]:
    """Log and sessions are the new primary's, and what only the old one had is exported, readable."""
    found = words_of(directory, "verdict")
    if words_of(directory, "outcome") != ["done"]:
        found.append("(7) the program did not come to its end")
    new = directory.parent / NEW
    try:
        if read_fault(directory):
            found.append(f"(7) a fault is left: {read_fault(directory)}")
        ours, theirs = _sessions(directory), _sessions(new)
        if ours != theirs:
            found.append(f"(3) the sessions differ: {sorted(set(ours) ^ set(theirs))[:5]}")
        exported = b"".join(
            file.read_bytes() for tail in list_diverged(directory) for file in tail.path.glob("*.seg")
        )
        for number in range(OLD_ONLY):
            if f"old-{number}".encode() not in exported:
                found.append(f"(1) old-{number} was acknowledged by the old primary, and is not exported")
        findings = [one for one in verify(directory) if one.level in (Level.CORRUPT, Level.WARNING)]
        # A kill amid its write leaves one slot of the mark torn until two more syncs.
        findings = [one for one in findings if (one.level, one.kind) != (Level.WARNING, "mark-damaged")]
        found += [f"(7) verify: {finding}" for finding in findings]
    except PerdureError as error:
        found.append(f"(7) {type(error).__name__}: {error}")
    left = [
        name
        for name in ("incoming", "install.plan", "cut.plan", "rejoin.plan", "rejoin")
        if (directory / name).exists()
    ]
    return found + ([f"(7) {left} stay behind"] if left else [])


def _sessions(path: Path) -> dict[str, object]:
    with SessionStore.open(path, create=False) as store:
        found = {id: store.peek(id) for id in store.ids()}
        return {id: (session.version, session.metadata) for id, session in found.items() if session}
