"""Back ends by name, the deadline index's runs, blocks allocated ahead, and where a directory is."""

from __future__ import annotations

import errno
import os
import random
import secrets
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from perdure.store.backend_lmdb import LmdbBackend
from perdure.store.backends import BACKENDS, backend_kind, open_backend
from perdure.store.blocks import STEP_BYTES, AheadFile, Work, allocate_whole
from perdure.store.deadlines import RUN_BYTES_MAX, RUN_SPAN_MS, pack_run, runs_of, unpack_run
from perdure.store.engine_lmdb import Txn
from perdure.store.errors import CorruptError, StorageError, StorageFullError, UsageError
from perdure.store.ids import NOWHERE
from perdure.store.long_ids import engine_key, pack_long, unpack_long
from perdure.store.mounts import place_of
from perdure.store.ports import Change


@pytest.mark.parametrize("name", [name for name in BACKENDS if backend_kind(name).is_shared])
def test_a_back_end_is_opened_by_its_name_and_makes_its_directory(name: str, tmp_path: Path) -> None:
    backend = open_backend(name, tmp_path / name)
    assert backend.refresh() == NOWHERE
    assert (tmp_path / name / backend_kind(name).data_file).exists()
    backend.close()


@pytest.mark.parametrize(("name", "near"), [("lmbd", "lmdb"), ("SQLite3", "sqlite"), ("sqllite", "sqlite")])
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"Did you mean '{near}'"):
        open_backend(name, tmp_path)


def test_a_back_end_without_files_needs_no_directory(tmp_path: Path) -> None:
    backend = open_backend("memory", tmp_path / "memory")
    assert backend.refresh() == NOWHERE
    assert not (tmp_path / "memory").exists()
    backend.close()


def test_a_name_like_none_is_answered_with_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lmdb, sqlite, memory"):
        open_backend("zzzz", tmp_path)


def test_runs_hold_all_deadlines_in_bounds_of_span_and_size(seed: int) -> None:
    chosen = random.Random(seed)
    for span_ms in (1, 900, 1001, 20_000, 10_000_000):
        armed = [
            (10**12 + chosen.randrange(span_ms), chosen.randbytes(chosen.choice([1, 32, 200, 1024])))
            for _ in range(chosen.randint(1, 700))
        ]
        runs = list(runs_of(armed))
        found = []
        for first, run in runs:
            entries = unpack_run(run)
            assert len(run) <= RUN_BYTES_MAX or len(entries) == 1
            assert all(first <= deadline <= first + RUN_SPAN_MS for deadline, _ in entries)
            until = first + chosen.randrange(RUN_SPAN_MS)
            assert unpack_run(memoryview(run), until) == [entry for entry in entries if entry[0] <= until]
            found += entries
        assert sorted(found) == sorted(armed)
        assert [run for _, run in runs] == [pack_run(unpack_run(run)) for _, run in runs]
    assert list(runs_of([])) == []


def test_deadlines_that_rise_fill_the_pages_that_they_take(tmp_path: Path) -> None:
    backend = LmdbBackend(tmp_path)
    armed = [(10**12 + number * 10, secrets.token_hex(16).encode()) for number in range(20_000)]
    for start in range(0, len(armed), 2_000):
        backend.fold([], armed[start : start + 2_000], [], NOWHERE)
    shared = backend._shared
    with shared.env.begin(shared.deadlines) as txn:
        stat = txn.stat(shared.deadlines)
    assert stat["leaf_pages"] * 4096 < 1.15 * len(armed) * (8 + 2 + 32)
    assert backend.due(2 * 10**12, len(armed)) == armed
    backend.close()


def test_bytes_that_are_no_run_are_damage(seed: int) -> None:
    run = pack_run([(5, b"a"), (6, b"bcd")])
    chosen = random.Random(seed)
    for wrong in (
        run[:-1],
        run + b"x",
        run[:1],
        b"",
        b"\xff" * 30,
        *(chosen.randbytes(40) for _ in range(200)),
    ):
        try:
            unpack_run(wrong)
        except CorruptError:
            continue
        assert unpack_run(wrong) == unpack_run(pack_run(unpack_run(wrong))) if wrong[:2] != b"\0\0" else True


def test_a_long_id_s_entry_that_is_cut_or_of_another_id_is_damage() -> None:
    key = b"k" * 700
    value = pack_long(key, b"record")
    assert unpack_long(value, engine_key(key)) == (key, b"record")
    for wrong, under in (
        (value[:300], engine_key(key)),
        (b"", engine_key(key)),
        (value, engine_key(key + b"x")),
    ):
        with pytest.raises(CorruptError):
            unpack_long(wrong, under)


def test_blocks_are_allocated_in_steps_and_only_once(tmp_path: Path) -> None:
    file = AheadFile(tmp_path / "file")
    file.allocate(1)
    assert file.allocated == STEP_BYTES
    assert os.stat(tmp_path / "file").st_blocks * 512 >= STEP_BYTES
    file.allocate(STEP_BYTES)
    assert file.allocated == STEP_BYTES
    file.allocate(STEP_BYTES + 1)
    assert file.allocated == 2 * STEP_BYTES
    file.close()


def test_a_disk_with_less_than_a_step_gives_exactly_what_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 10_000

    def allocate(descriptor: int, offset: int, size: int) -> None:
        if offset + size > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(descriptor, offset + size)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    file = AheadFile(tmp_path / "file")
    file.allocate(9000)
    assert file.allocated == 9000
    with pytest.raises(StorageFullError):
        file.allocate(11_000)
    assert file.allocated == 9000
    file.close()
    with pytest.raises(StorageFullError):
        allocate_whole(tmp_path / "lock", 11_000)


def test_a_stretched_file_is_cut_where_it_has_blocks_but_only_by_who_is_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first, other = AheadFile(path), AheadFile(path)
    first.allocate(1)
    os.truncate(path, 1 << 40)
    first.cut_if_alone(lambda: STEP_BYTES)
    assert path.stat().st_size == 1 << 40
    first.allocate(2)
    assert path.stat().st_size == STEP_BYTES
    os.truncate(path, 1 << 40)
    other.allocate(STEP_BYTES + 1)
    assert path.stat().st_size == 2 * STEP_BYTES
    other.close()
    os.truncate(path, 1 << 40)
    first.cut_if_alone(lambda: 100)
    assert path.stat().st_size == 100
    os.truncate(path, 100 + STEP_BYTES)
    first.cut_if_alone(lambda: 100)
    assert path.stat().st_size == 100 + STEP_BYTES
    os.truncate(path, 101 + STEP_BYTES)
    first.cut_if_alone(lambda: 100)
    assert path.stat().st_size == 100
    first.allocate(101)
    assert path.stat().st_size == first.allocated == STEP_BYTES
    assert path.stat().st_blocks * 512 >= STEP_BYTES
    os.truncate(path, 5000)
    first.allocate(6000)
    assert path.stat().st_size == STEP_BYTES
    first.close()


def test_blocks_are_read_ahead_once_from_the_end_of_the_data_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, int]] = []

    def read(descriptor: int, buffers: list[bytearray], offset: int) -> int:
        count = preadv(descriptor, buffers, offset)
        reads.append((offset, offset + count))
        return count

    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", read)
    data = os.urandom(100_000)
    (tmp_path / "file").write_bytes(data)
    file = AheadFile(tmp_path / "file")
    file.allocate(2 * STEP_BYTES)
    file.read_ahead(100_000, 300_000)
    assert reads == [(100_000, 300_000)]
    file.read_ahead(150_000, 300_000)
    file.read_ahead(200_000, 250_000)
    assert len(reads) == 1
    file.read_ahead(200_000, 2 * STEP_BYTES)
    assert reads[1][0] == 300_000
    assert all(end == start for (_, end), (start, _) in pairwise(reads))
    assert reads[-1][1] == 2 * STEP_BYTES
    file.cut_if_alone(lambda: 100_000)
    reads.clear()
    file.allocate(STEP_BYTES)
    file.read_ahead(100_000, 120_000)
    assert reads == [(100_000, 120_000)]
    assert (tmp_path / "file").read_bytes()[: len(data)] == data
    file.close()


def test_a_disk_that_cannot_read_what_a_fold_would_reach_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    backend = LmdbBackend(tmp_path, mapped=True)
    backend.fold([(b"k", b"record")], [], [], NOWHERE)
    backend._shared._ahead._read_end = 0
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(StorageError):
        backend.fold([(b"k", b"other"), (b"l", b"record")], [], [], NOWHERE)
    monkeypatch.undo()
    backend.refresh()
    assert (backend.get(b"k"), backend.get(b"l")) == (b"record", None)
    backend.fold([(b"k", b"other")], [], [], NOWHERE)
    backend.refresh()
    assert backend.get(b"k") == b"other"
    backend.close()


@pytest.mark.parametrize("longest", [32, 600])
def test_a_transaction_is_given_room_for_all_that_it_puts(tmp_path: Path, longest: int) -> None:
    backend = LmdbBackend(tmp_path, mapped=True)
    shared = backend._shared
    works: list[Work] = []
    write = shared.write

    def note(apply: Callable[[Txn], None], work: Work, release: Callable[[], None]) -> None:
        works.append(work)
        write(apply, work, release)

    shared.write = note  # type: ignore[method-assign]
    changes: list[Change] = [
        (b"a" * 32, b"r" * 3000),
        (b"b" * longest, b"r" * 500),
        (b"c" * 32, None),
        (b"d" * 32, b"r" * 100),
    ]
    backend.fold(changes, [(10**12, b"a" * 32)], [], NOWHERE)
    backend.fold(changes[:2], [], [], NOWHERE)
    sizes = [len(key) + len(record) for key, record in changes if record is not None]
    assert works[0].value_bytes >= sum(sizes) + len(pack_run([(10**12, b"a" * 32)]))
    assert works[0].value_bytes_max >= max(sizes)
    assert works[0].puts >= 3 + 1
    assert works[0].deletes >= 1
    assert works[1].value_bytes >= sum(sizes[:2])
    assert works[1].value_bytes_max >= max(sizes)
    backend.refresh()
    assert [backend.get(key) for key, _ in changes] == [record for _, record in changes]
    backend.close()


def test_a_place_is_the_same_as_long_as_nothing_moves(tmp_path: Path) -> None:
    first, other = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    other.mkdir()
    assert place_of(first) == place_of(first)
    assert place_of(first).inode != place_of(other).inode
    assert place_of(first).mount_id == place_of(other).mount_id > 0
    assert place_of(first).file_system
