"""verify: what is right is OK, damage is named, what cannot be known is UNKNOWN; nothing is touched."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.recovery import Depth, Finding, Level, take_snapshot, verify, verify_log
from perdure.recovery.findings import summarise
from perdure.recovery.scan import SegmentScan
from perdure.shipping import Slot, write_slot
from perdure.store import Priority, SessionStore, StoreMissingError, UsageError, init_store, names
from perdure.store.cursor import list_segments
from perdure.store.files import translate
from perdure.store.fold import record_of
from perdure.store.segment import decode_header, encode_header
from perdure.store.snapshot import list_snapshots
from tests.recovery.nodes import stored
from tests.recovery.stores import fingerprint, seal, small_segments, without_rights
from tests.support.machine import stop_background


def make(path: Path, *, backend: str = "sqlite", sessions: int = 40, snapshot: bool = True) -> Path:
    """A closed store with sealed segments, a snapshot in the middle, and a few of every event."""
    with small_segments(path, backend=backend) as store:
        ids = [store.create({"n": n}) for n in range(sessions // 2)]
        store.delete(ids[0])
        store.regenerate_id(ids[1])
        if snapshot:
            take_snapshot(store._opened)
        for n in range(sessions // 2):
            store.create({"n": n})
        store.update(ids[2], lambda session: session.merge({"m": 1}))
        store.touch(ids[3])
        seal(store)
    return path


def findings(path: Path, level: Depth = Depth.REPLAY) -> list[Finding]:
    return list(verify(path, level=level))


def bad(path: Path, level: Depth = Depth.CHAIN) -> list[Finding]:
    return [found for found in findings(path, level) if found.level not in (Level.OK, Level.NOTICE)]


def kinds(path: Path, level: Depth = Depth.CHAIN) -> set[str]:
    return {found.kind for found in bad(path, level)}


def change(path: Path, offset: int, flip: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ flip]))


def sealed(path: Path) -> list[Path]:
    return [file.path for file in list_segments(path / "log")[:-1]]


# -- what is right -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["lmdb", "sqlite"])
def test_a_sound_store_is_ok_at_every_level_and_not_one_byte_of_it_changes(
    tmp_path: Path, backend: str
) -> None:
    path = make(tmp_path / "s", backend=backend)
    before = fingerprint(path)
    for level in Depth:
        found = findings(path, level)
        assert summarise(found).exit_code == 0, [str(one) for one in found]
        assert {one.level for one in found} == {Level.OK}
    assert fingerprint(path) == before
    kinds_found = {one.kind for one in findings(path)}
    assert {"identity", "promise", "segment", "mark", "tail", "snapshot", "state"} <= kinds_found


def test_a_store_in_use_by_writers_is_ok(tmp_path: Path) -> None:
    stop = threading.Event()
    with small_segments(
        tmp_path / "s", backend="lmdb", segment_bytes=1 << 16, write_timeout_ms=60_000
    ) as store:

        def write() -> None:
            while not stop.is_set():
                store.delete(store.create({"n": 1}))
                store.create({"n": 2})
                if store.stats()["sessions"] % 50 == 0:
                    store.fold()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for _ in range(2):
                found = findings(tmp_path / "s")
                assert summarise(found).exit_code == 0, [str(one) for one in found]
        finally:
            stop.set()
            thread.join()


def test_without_the_right_to_write_it_works(tmp_path: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="perdure-test-") as folder:
        path = make(Path(folder) / "s")
        with tempfile.TemporaryDirectory(prefix="perdure-scratch-") as scratch:
            os.chmod(scratch, 0o777)

            def check() -> None:
                found = list(verify(path, scratch=scratch))
                # Another user may not be allowed to start this very Python, which reads the state.
                wrong = [one for one in found if one.level is not Level.OK]
                assert [one.kind for one in wrong] in ([], ["state-unreadable"])
                assert all(one.level is Level.UNKNOWN for one in wrong)
                assert len(found) > 5

            assert without_rights(Path(folder), check) == 0


def test_a_new_node_without_a_log_is_ok_and_no_store_is_an_error(tmp_path: Path) -> None:
    init_store(tmp_path / "s", node="b", now_ms=0)
    assert summarise(findings(tmp_path / "s")).exit_code == 0
    with pytest.raises(StoreMissingError):
        findings(tmp_path / "nothing")
    with pytest.raises(UsageError, match="structure, checks, chain and replay"):
        list(verify(tmp_path / "s", level="everything"))


# -- segments ----------------------------------------------------------------------------------------


def test_a_missing_segment_is_named_by_its_lsns(tmp_path: Path) -> None:
    path = make(tmp_path / "s", snapshot=False)
    files = list_segments(path / "log")
    files[1].path.unlink()
    for level in Depth:
        (found,) = [one for one in bad(path, level) if one.kind == "segment-missing"]
        assert found.lsn == files[1].first_lsn
        assert f"LSN {files[1].first_lsn} to {files[2].first_lsn - 1}" in found.message


def test_segments_that_retention_takes_meanwhile_are_not_missing(tmp_path: Path) -> None:
    path = make(tmp_path / "s", sessions=120)
    files = list_segments(path / "log")
    assert list_snapshots(path / "snapshots")[0].lsn >= files[2].first_lsn
    found = []
    for finding in verify(path, level=Depth.CHAIN):
        if finding.kind == "segment" and files[0].path.exists():
            for file in files[:2]:
                file.path.unlink()
        found.append(finding)
    assert [one for one in found if one.level not in (Level.OK, Level.NOTICE)] == []


def test_a_segment_that_cannot_be_read_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "s")
    second = list_segments(path / "log")[1].path

    class Unreadable(SegmentScan):
        def __init__(self, path: Path) -> None:
            if path == second:
                raise translate(OSError(errno.EMFILE, "too many open files"), "cannot open a segment", path)
            super().__init__(path)

    monkeypatch.setattr(verify_log, "SegmentScan", Unreadable)
    found = [one for one in bad(path) if one.path == str(second)]
    assert [(one.level, one.kind) for one in found] == [(Level.UNKNOWN, "segment-unread")]


def test_a_doubled_segment_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    files = list_segments(path / "log")
    double = path / "log" / names.segment_name(files[1].first_lsn + 1, files[1].epoch)
    shutil.copy(files[1].path, double)
    found = bad(path, Depth.STRUCTURE)
    assert {"segment-misnamed", "segment-doubled"} <= {one.kind for one in found}
    assert all(one.path == str(double) for one in found if one.kind == "segment-misnamed")


def test_two_swapped_segments_are_both_named(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    one, other = sealed(path)[:2]
    data = one.read_bytes(), other.read_bytes()
    one.write_bytes(data[1])
    other.write_bytes(data[0])
    named = {found.path for found in bad(path, Depth.STRUCTURE) if found.kind == "segment-misnamed"}
    assert named == {str(one), str(other)}


def test_a_segment_of_another_cluster_and_one_of_another_history_are_told_apart(tmp_path: Path) -> None:
    path, other = make(tmp_path / "s"), make(tmp_path / "other")
    victim = sealed(path)[1]
    shutil.copy(next(file for file in sealed(other) if file != sealed(other)[0]), victim)
    assert "segment-foreign" in kinds(path, Depth.STRUCTURE)
    again = make(tmp_path / "again")
    header = decode_header(sealed(again)[1].read_bytes()[:160], path="")
    data = bytearray(sealed(again)[1].read_bytes())
    import msgspec

    previous = header.previous._replace(chain=header.previous.chain ^ 1)
    data[:160] = encode_header(msgspec.structs.replace(header, previous=previous))
    sealed(again)[1].write_bytes(data)
    assert "segment-unrelated" in kinds(again, Depth.STRUCTURE)


def test_zeros_instead_of_a_segment_at_its_end_and_a_newer_format_are_named(tmp_path: Path) -> None:
    zeroed = make(tmp_path / "zeroed")
    sealed(zeroed)[0].write_bytes(bytes(sealed(zeroed)[0].stat().st_size))
    (found, *_) = bad(zeroed, Depth.STRUCTURE)
    assert (found.level, "zeros" in found.message) == (Level.CORRUPT, True)

    trailing = make(tmp_path / "trailing")
    with sealed(trailing)[0].open("ab") as file:
        file.write(bytes(512))
    assert "trailing-zeros" in kinds(trailing, Depth.STRUCTURE)

    newer = make(tmp_path / "newer")
    data = bytearray(sealed(newer)[0].read_bytes())
    data[8] = 2
    import xxhash

    data[152:160] = xxhash.xxh3_64_intdigest(bytes(data[:152])).to_bytes(8, "little")
    sealed(newer)[0].write_bytes(data)
    (found,) = [one for one in bad(newer, Depth.STRUCTURE) if one.kind == "segment-newer"]
    assert found.level is Level.UNKNOWN


def test_a_frame_damaged_inside_is_named_with_offset_and_lsn_and_what_follows(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    victim = list_segments(path / "log")[1]
    change(victim.path, 160 + 200)
    (found,) = [one for one in bad(path) if one.kind == "frame-damaged"]
    assert found.path == str(victim.path)
    assert found.offset is not None and found.offset >= 160
    assert found.lsn is not None and found.lsn >= victim.first_lsn
    assert "good frames go on at offset" in found.message


def test_a_log_whose_beginning_no_snapshot_reaches_is_corrupt(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    sealed(path)[0].unlink()
    assert summarise(findings(path)).exit_code == 0  # the snapshot reaches it
    for snapshot in (path / "snapshots").iterdir():
        snapshot.unlink()
    assert "log-cut-off" in kinds(path, Depth.STRUCTURE)
    assert "replay-impossible" in kinds(path, Depth.REPLAY)


def test_flipped_bytes_in_any_file_are_found_and_the_file_is_named(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = make(tmp_path / "s")
    write_slot(path, Slot("b", 1, 5, 0, "disconnected", 0))
    tail = list_segments(path / "log")[-1].path
    victims = [
        *sealed(path)[:2],
        tail,
        path / "log" / "mark",
        path / names.PROMISE,
        path / names.IDENTITY,
        path / "slots" / "b.slot",
        next((path / "snapshots").iterdir()),
    ]
    for victim in victims:
        size = victim.stat().st_size
        offsets = {0, 8, size - 1, size // 2, *(chance.randrange(size) for _ in range(10))}
        for offset in offsets:
            flip = 1 << chance.randrange(8)
            change(victim, offset, flip)
            found = bad(path)
            assert any(one.path == str(victim) for one in found), (victim.name, offset, flip, found)
            change(victim, offset, flip)
    assert not [one for one in bad(path) if one.kind != "slot-diverged"]


# -- the end of the log ------------------------------------------------------------------------------


def test_every_truncation_of_the_tail_is_corrupt_and_without_witnesses_never_ok(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    path = make(tmp_path / "s", sessions=46)
    with SessionStore.open(path) as store:
        store.create({"n": 1}, durability="disk")
    tail = list_segments(path / "log")[-1].path
    whole = tail.read_bytes()
    lengths = {160, len(whole) - 1, *(chance.randrange(160, len(whole)) for _ in range(25))}
    for length in sorted(lengths):
        tail.write_bytes(whole[:length])
        found = bad(path)
        assert summarise(found).exit_code == 4, length
        assert any(one.kind in ("tail-corrupt", "mark-diverged") for one in found), (length, found)
    (path / "log" / "mark").unlink()
    (path / "control").unlink()
    for length in sorted(lengths):
        tail.write_bytes(whole[:length])
        levels = {one.level for one in bad(path)}
        assert Level.UNKNOWN in levels or Level.CORRUPT in levels, length


def test_a_torn_tail_that_nothing_durable_covers_is_a_notice_and_stays_where_it_is(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    tail = list_segments(path / "log")[-1].path
    with tail.open("ab") as file:
        file.write(b"\x07" * 33)
    before = fingerprint(path)
    (found,) = [one for one in findings(path) if one.level is not Level.OK]
    assert (found.level, found.kind, found.path) == (Level.NOTICE, "tail-torn", str(tail))
    assert fingerprint(path) == before


def test_the_whole_log_gone_is_told_by_the_mark(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    with SessionStore.open(path) as store:
        store.flush()
    for file in list_segments(path / "log"):
        file.path.unlink()
    assert "log-missing" in kinds(path)


# -- small files -------------------------------------------------------------------------------------


def test_a_promise_older_than_the_log_is_corrupt(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    (path / names.PROMISE).unlink()
    (found,) = bad(path)
    assert found.kind == "promise-behind"


def test_a_consumer_of_the_feed_is_known_and_damage_to_its_progress_is_found(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    with SessionStore.open(path) as store:
        store.feed(4, consumer="c").close()
    assert ("consumer", 3) in {(one.kind, one.lsn) for one in verify(path)}
    assert bad(path) == []
    file = path / "feeds" / "c.feed"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    assert [one.path for one in bad(path)] == [str(file)]


def test_a_slot_and_a_snapshot_of_another_history_are_found_on_the_chain(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    write_slot(path, Slot("b", 1, 5, 12345, "streaming", 0))
    assert kinds(path, Depth.CHECKS) == set()
    assert kinds(path) == {"slot-diverged"}


def test_work_that_was_begun_and_stray_files_are_said(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    (path / names.CUT_PLAN).write_bytes(b"plan")
    (path / "log" / "old.seg").write_bytes(b"")
    (path / "notes.txt").write_bytes(b"")
    found = {one.kind: one.level for one in findings(path) if one.level is not Level.OK}
    assert found == {"unfinished-work": Level.WARNING, "stray-file": Level.WARNING} or "stray-file" in found


# -- the state ---------------------------------------------------------------------------------------


def tamper(path: Path, action: Callable[[SessionStore], None]) -> None:
    with SessionStore.open(path) as store:
        stop_background(store)  # it would end the reading of the back end
        store.fold()
        action(store)


def put(store: SessionStore, key: bytes, record: bytes | None) -> None:
    backend = store._opened.backend
    backend.release()
    state = backend.refresh()
    backend.release()
    backend.fold([(key, record)], [], [], state)


@pytest.mark.parametrize("backend", ["lmdb", "sqlite"])
def test_hidden_extra_changed_and_damaged_records_are_each_named(tmp_path: Path, backend: str) -> None:
    path = make(tmp_path / "s", backend=backend)
    with SessionStore.open(path) as store:
        keys = [id.encode() for id in store.ids()]

    def change_all(store: SessionStore) -> None:
        put(store, keys[0], None)
        put(store, b"zz-extra", record_of(b"zz-extra", stored(1)))
        put(store, keys[1], record_of(keys[1], stored(2)))
        put(store, keys[2], b"\0" * 8 + stored(3))

    tamper(path, change_all)
    found = {one.kind: one.message for one in bad(path, Depth.REPLAY)}
    assert set(found) == {
        "session-missing",
        "session-extra",
        "session-differs",
        "record-damaged",
        "state-digest",
    }
    assert keys[0].decode() in found["session-missing"]
    assert "zz-extra" in found["session-extra"]
    assert kinds(path, Depth.CHAIN) == set()


@pytest.mark.parametrize("backend", ["lmdb", "sqlite"])
def test_an_index_that_is_not_that_of_the_sessions_is_corrupt(tmp_path: Path, backend: str) -> None:
    path = make(tmp_path / "s", backend=backend)
    with SessionStore.open(path, max_sessions=1000) as store:
        for number in range(20):
            store.put(f"labelled {number}", {}, None, group="a", tags=["x", "y"], priority=Priority.HIGH)
    assert kinds(path, Depth.REPLAY) == set()
    for wrong in ([(b"ga", b"labelled 3")], [(b"ga", b"labelled 99")]):

        def index(store: SessionStore, wrong: list[tuple[bytes, bytes]] = wrong) -> None:
            backend = store._opened.backend
            backend.release()
            state = backend.refresh()
            found = set(backend.find((b"", b""), b"z", 1000))
            backend.release()
            backend.fold([], [], [], state, *((wrong, []) if wrong[0] not in found else ([], wrong)))

        tamper(path, index)
        assert kinds(path, Depth.REPLAY) == {"state-index"}
        tamper(path, index)
        assert kinds(path, Depth.REPLAY) == set()


def test_a_state_ahead_of_the_log_is_corrupt(tmp_path: Path) -> None:
    path = make(tmp_path / "s")

    def lead(store: SessionStore) -> None:
        backend = store._opened.backend
        backend.release()
        state = backend.refresh()
        backend.release()
        backend.fold([], [], [], state._replace(lsn=state.lsn + 5))

    tamper(path, lead)
    assert "state-ahead" in kinds(path, Depth.REPLAY)


@pytest.mark.parametrize(("backend", "file"), [("lmdb", "data.mdb"), ("sqlite", "sessions.sqlite3")])
def test_an_engine_file_full_of_garbage_is_a_finding_and_no_crash(
    tmp_path: Path, backend: str, file: str, seed: int
) -> None:
    path = make(tmp_path / "s", backend=backend)
    data = path / "state" / backend / file
    with data.open("r+b") as opened:
        opened.seek(4096 * 2)
        opened.write(random.Random(seed).randbytes(64 << 10))
    found = bad(path, Depth.REPLAY)
    assert summarise(found).exit_code == 4
    assert any(one.path == str(path / "state" / backend) for one in found)


def test_flips_in_an_lmdb_file_never_pass_as_other_sessions(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = make(tmp_path / "s", backend="lmdb", sessions=200)
    data = path / "state" / "lmdb" / "data.mdb"
    used = 4096 * 20
    for _ in range(6):
        offset, flip = chance.randrange(used), 1 << chance.randrange(8)
        change(data, offset, flip)
        found = findings(path)
        if not any(one.level is Level.CORRUPT for one in found):  # a byte that nothing reads
            assert any(one.kind == "state" for one in found)
        change(data, offset, flip)
    assert summarise(findings(path)).exit_code == 0


def test_a_state_that_is_not_trusted_is_unknown_not_wrong(tmp_path: Path) -> None:
    path = make(tmp_path / "s")
    (path / "state" / names.STATE_MARKER).unlink()
    (found,) = bad(path, Depth.REPLAY)
    assert (found.level, found.kind) == (Level.UNKNOWN, "state-untrusted")
    moved = list(verify(path, boot_id=lambda: "another boot"))
    assert summarise(moved).exit_code == 1
