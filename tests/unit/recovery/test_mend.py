"""Mending a state: what was right at a position is brought to where the state stands, and adds up there."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from perdure.recovery import Level, audit, verify
from perdure.recovery.audit import AuditLine, append_audit, read_audit
from perdure.recovery.mend import mend
from perdure.recovery.state_pass import StatePass
from perdure.store import BusyError, CorruptError, LockTimeoutError, SessionStore, UsageError
from perdure.store.fold import HASH_BYTES, record_of
from perdure.store.ids import StatePosition
from perdure.store.log import EventLog
from perdure.store.ports import Record
from tests.cluster.ops import damage, stored
from tests.support.machine import stop_background
from tests.unit.shipping.logs import lose_frames

SEED = int(os.environ.get("PERDURE_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
COUNT = 60


def digest_of(path: Path) -> tuple[int, int, StatePosition]:
    """(digest and count of what the state holds, its position)"""
    image = StatePass(path)
    try:
        while not image.add_up(1000):
            pass
        return image.buckets.digest, image.buckets.session_count, image.at
    finally:
        image.close()


@pytest.mark.parametrize("backend", ["lmdb", "sqlite"])
def test_records_of_an_older_position_are_brought_to_the_states(tmp_path: Path, backend: str) -> None:
    print(f"PERDURE_SEED={SEED}")
    rng = random.Random(SEED)
    path = tmp_path / "store"
    with SessionStore.open(path, backend=backend, refresh_window_ms=0) as store:
        for number in range(COUNT):
            store.put(f"s{number:02}", {"n": number}, ttl_ms=3_600_000, sliding=True)
        store.fold()
        at = store._log.cursor.at
        right = {f"s{number:02}".encode(): stored(path, f"s{number:02}".encode()) for number in range(COUNT)}
        renamed: set[str] = set()
        for _ in range(80):
            key = f"s{rng.randrange(COUNT):02}"
            if store.peek(key) is None:
                continue
            match rng.randrange(4):
                case 0:
                    store.patch(key, {"later": rng.random()})
                case 1:
                    store.touch(key)
                case 2:
                    store.delete(key)
                case _:
                    renamed.add(store.regenerate_id(key))
        store.fold()
    before = digest_of(path)
    assert before[:2] == (before[2].digest, before[2].session_count)
    chosen = rng.sample(sorted(right), 30)
    wrong: dict[bytes, Record | None] = {
        key: None if rng.random() < 0.5 else record_of(key, bytes(64)) for key in chosen
    }
    wrong |= {b"extra": record_of(b"extra", bytes(64))}
    damage(path, wrong)
    assert digest_of(path)[:2] != before[:2]
    pairs: list[tuple[bytes, Record | None]] = [(key, right[key]) for key in chosen]
    done = mend(path, at, [*pairs, (b"extra", None)], "n1")
    assert done.mended + done.unchanged >= 31
    assert digest_of(path) == before
    assert [finding for finding in verify(path) if finding.level is Level.CORRUPT] == []
    assert len(read_audit(path)) == done.mended
    again = mend(path, at, [*pairs, (b"extra", None)], "n1")
    assert again.mended == 0 and len(read_audit(path)) == done.mended


def test_records_of_a_later_position_wait_until_the_state_is_there(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path) as store:
        stop_background(store)  # nothing else is folded
        store.put("a", {"n": 1})
        store.fold()
        store.put("a", {"n": 2})
        at = store._log.cursor.at
        with pytest.raises(BusyError):
            mend(path, at, [(b"a", None)], "n1")
    assert read_audit(path) == []


def test_with_a_log_that_lacks_frames_nothing_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path) as store:
        store.put("s", {"n": 0})
        at = store._log.cursor.at
        for number in range(20):
            store.put(f"s{number}", {"n": number, "text": "x" * 100})
        store._log.must_roll = True
        store.put("s", {"n": 1})
        store.fold()
    lose_frames(path)
    before = digest_of(path)
    with pytest.raises(CorruptError, match="the log ends behind LSN"):
        mend(path, at, [(b"s", record_of(b"s", bytes(64)))], "n1")
    assert digest_of(path) == before


def test_a_session_that_took_the_name_of_another_meanwhile_is_compared_again(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path) as store:
        store.put("a", {"n": 1})
        store.fold()
        at = store._log.cursor.at
        new = store.regenerate_id("a")
        store.fold()
    with pytest.raises(BusyError, match="renamed"):
        mend(path, at, [(new.encode(), None)], "n1")


@pytest.mark.parametrize("backend", ["lmdb", "sqlite"])
def test_what_was_kept_of_a_wrong_record_is_not_read_any_more(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, backend=backend) as store:
        store.put("a", {"n": 1})
        store.put("b", {"n": 2})
        store.fold()
        at, right, other = store._log.cursor.at, stored(path, b"a"), stored(path, b"b")
        assert right is not None and other is not None
        damage(path, {b"a": record_of(b"a", other[HASH_BYTES:])})

        def numbers() -> list[object]:
            with store._view.mutex:
                store._view.catch_up()
                store._view.refresh()
            found = [store.peek("a") for _ in range(4)]
            return [session.metadata["n"] for session in found if session is not None]

        assert numbers() == [2, 2, 2, 2]
        assert mend(path, at, [(b"a", right)], "n1").mended == 1
        assert numbers() == [1, 1, 1, 1]


def test_a_state_in_memory_is_not_mended(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path, backend="memory") as store:
        store.put("a", {"n": 1})
        with pytest.raises(UsageError, match="of its own"):
            mend(path, store._log.cursor.at, [(b"a", None)], "n1")


def test_the_audit_file_is_bounded_and_a_torn_line_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "FILE_BYTES_MAX", 2_000)
    lines = [AuditLine(time="t", node="n1", action="ended", what=f"{number}") for number in range(100)]
    for line in lines:
        append_audit(tmp_path, [line])
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) == 2 and max(sizes) <= 2_000
    with (tmp_path / "audit.log").open("ab") as file:
        file.write(b'{"time": "cut sh')
    assert read_audit(tmp_path)[-1].what == "99"


def test_where_the_others_cannot_be_told_nothing_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    with SessionStore.open(path) as store:
        store.put("a", {"n": 1})
        store.fold()
        at, right = store._log.cursor.at, stored(path, b"a")
    damage(path, {b"a": None})
    before = digest_of(path)

    def busy(_log: EventLog) -> None:
        raise LockTimeoutError("the lock was not free")

    with monkeypatch.context() as patch:
        patch.setattr(EventLog, "lock_any", busy)
        with pytest.raises(LockTimeoutError):
            mend(path, at, [(b"a", right)], "n1")
    assert digest_of(path) == before  # else nobody would come again, and readers would keep what they have
    assert read_audit(path) == []
