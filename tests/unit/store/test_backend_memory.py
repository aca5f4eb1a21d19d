"""The state in memory: its order and deadlines, folds that are broken off, and how a store fills it."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from perdure.recovery import take_snapshot
from perdure.shipping.replacing import lock_log, renew_page, set_mark
from perdure.store import SessionStore, read_identity
from perdure.store.backend_memory import MemoryBackend
from perdure.store.opening import OpenOptions, load_state, open_store
from perdure.store.ordered import BUCKET_ITEMS, OrderedItems
from perdure.store.snapshot import SnapshotReader
from perdure.store.timeline import STALE_MIN, Timeline
from tests.contract.children import at
from tests.unit.shipping.logs import begin_epoch

# -- order and deadlines -------------------------------------------------------------------------


def test_ordered_items_are_a_set_and_their_images_stay_as_they_were(seed: int) -> None:
    chosen = random.Random(seed)
    items: OrderedItems[bytes] = OrderedItems()
    expected: set[bytes] = set()
    images: list[tuple[Any, list[bytes]]] = []
    for _ in range(200):
        some = [b"%05d" % chosen.randrange(6000) for _ in range(chosen.choice([1, 3, 40, 2000]))]
        if chosen.random() < 0.6:
            items.add(some)
            expected |= set(some)
        else:
            items.discard(some)
            expected -= set(some)
        if chosen.random() < 0.3:
            images.append((items.image(), sorted(expected)))
            assert items.is_empty() == (not expected)
    for image, members in images:
        assert [item for bucket in image.above(b"") for item in bucket] == members
        above, last = sorted(b"%05d" % chosen.randrange(6000) for _ in range(2))
        between = [item for item in members if above < item < last]
        assert image.first_above(above, last, 10_000) == between
        assert image.first_above(above, last, 7) == between[:7]
        assert all(0 < len(bucket) <= 2 * BUCKET_ITEMS for bucket in image.above(b""))


def test_deadlines_of_sessions_that_others_removed_do_not_pile_up() -> None:
    timeline = Timeline()
    there = {b"%d" % number for number in range(100)}
    for turn in range(3):
        timeline.arm([(turn * 20_000 + number, b"%d" % number) for number in range(STALE_MIN // 2)])
        timeline.drop_stale(there, len(there))
    assert len(timeline.due(1 << 62, 1 << 30)) <= 2 * len(there) + STALE_MIN
    first = {key: time_ms for time_ms, key in reversed(timeline.due(1 << 62, 1 << 30)) if key in there}
    assert first == {b"%d" % number: number for number in range(100)}


# -- folds ---------------------------------------------------------------------------------------

Content = tuple[Any, list[tuple[bytes, bytes]], list[tuple[int, bytes]], list[tuple[bytes, bytes]]]


def content_of(backend: MemoryBackend) -> Content:
    position = backend.refresh()
    scan = backend.scan()
    records = list(scan)
    scan.close()
    assert [backend.get(key) for key, _ in records] == [record for _, record in records]
    return position, records, backend.due(1 << 62, 100), backend.find((b"", b""), b"\x7f", 100)


def first_fold(backend: MemoryBackend) -> None:
    backend.fold(
        [(b"%d" % n, b"old-----") for n in range(8)],
        [(n * 9000, b"%d" % n) for n in range(8)],
        [],
        at(1),
        [(b"ga", b"%d" % n) for n in range(8)],
    )


def second_fold(backend: MemoryBackend) -> None:
    backend.fold(
        [(b"%d" % n, None if n % 3 else b"new-----") for n in range(4, 12)],
        [(5, b"9"), (5, b"6"), (9000, b"1"), (1 << 40, b"6")],
        [(n * 9000, b"%d" % n) for n in range(5)],
        at(2),
        [(b"gb", b"6"), (b"gb", b"9")],
        [(b"ga", b"%d" % n) for n in range(4, 8)],
    )


def interrupted(work: Callable[[], object], number: int) -> bool:
    """Do `work`, with KeyboardInterrupt before its line of that number; says whether there was one."""
    left = number

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if "/store/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("has_view", [False, True])
def test_a_fold_that_is_broken_off_anywhere_is_done_wholly_or_not_at_all(
    tmp_path: Path, has_view: bool
) -> None:
    whole = MemoryBackend(tmp_path)
    first_fold(whole)
    before = content_of(whole)
    second_fold(whole)
    after = content_of(whole)
    number = done = 0
    while True:
        number += 1
        backend = MemoryBackend(tmp_path)
        first_fold(backend)
        scan = backend.scan()
        if has_view:
            backend.refresh()
        was_interrupted = interrupted(lambda: second_fold(backend), number)  # noqa: B023 - called at once
        if has_view:
            assert [backend.get(b"%d" % n) for n in range(12)] == [b"old-----"] * 8 + [None] * 4
            assert backend.find((b"", b""), b"\x7f", 100) == before[3]
        assert list(scan) == before[1]
        scan.close()
        found = content_of(backend)
        assert found in ((before, after) if was_interrupted else (after,))
        done += found == after
        second_fold(backend)
        assert content_of(backend) == after
        if not was_interrupted:
            break
    assert number > 40
    assert done > 10


# -- in a store ----------------------------------------------------------------------------------


def test_there_is_no_state_directory_and_nothing_of_a_fold_in_the_page(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s", backend="memory") as store:
        store.create({})
        lsn = store.fold()
        assert (store.stats()["folded_lsn"], store._log.words[12]) == (lsn, 0)
    assert not (tmp_path / "s" / "state").exists()


def test_a_store_that_fills_its_state_holds_up_no_writer(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s", backend="memory") as store:
        ids = {store.create({"n": number, "x": "y" * 400}) for number in range(5000)}
        calls: list[int] = []

        def progress(done: int) -> None:
            calls.append(done)
            ids.add(store.create({}))  # would wait for the write lock until its deadline

        options = OpenOptions(progress=progress, write_timeout_ms=500)
        with SessionStore(open_store(tmp_path / "s", options), options, None) as other:
            assert len(calls) > 1
            assert set(other.ids()) == set(store.ids()) == ids


def test_a_snapshot_that_goes_while_a_state_is_filled_from_it_costs_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    read: list[Path] = []

    def read_pruned(file: Path, *more: Any) -> SnapshotReader:
        read.append(file)
        if len(read) == 1:
            ids.append(store.create({}))
            take_snapshot(store._opened, keep=1)
        return SnapshotReader(file, *more)

    with SessionStore.open(path, backend="memory") as store:
        ids = [store.create({}) for _ in range(20)]
        take_snapshot(store._opened)
        monkeypatch.setattr("perdure.store.opening.SnapshotReader", read_pruned)
        with SessionStore.open(path) as other:
            assert sorted(other.ids()) == sorted(ids)
    assert not read[0].exists()
    assert read[-1].exists()


COUNTER = """
import sys
from perdure.store import SessionStore
store = SessionStore.open(sys.argv[1])
for line in sys.stdin:
    session = store.update(line.strip(), lambda session: session.merge({"n": session.metadata["n"] + 1}))
    print(session.metadata["n"], store.count(), flush=True)
"""


def test_three_processes_with_a_state_each_see_every_change_at_once(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s", backend="memory") as store:
        id = store.create({"n": 0})
        words = [sys.executable, "-c", COUNTER, str(tmp_path / "s")]
        processes = [
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for turn in range(30):
            process = processes[turn % 2]
            assert process.stdin is not None
            assert process.stdout is not None
            store.create({})
            store.patch(id, {"n": store[id].metadata["n"] + 1})
            print(id, file=process.stdin, flush=True)
            assert process.stdout.readline().split() == [str(2 * turn + 2), str(turn + 2)]
            assert store[id].metadata["n"] == 2 * turn + 2
            if turn % 7 == 0:
                store.fold()
        for process in processes:
            process.communicate()
            assert process.returncode == 0


def replace_log(path: Path, other: Path) -> None:
    """Put the log of another history in the place of a store's, as a receiver of shipping does."""
    identity = read_identity(path)
    begin_epoch(other, identity.node, 2, voters=())  # two histories of one epoch are never there
    with SessionStore.open(other) as store:
        end = store.flush()
    locks = lock_log(path)
    for file in (path / "log").glob("*.seg"):
        file.unlink()
    for file in (other / "log").glob("*.seg"):
        shutil.copy(file, path / "log")
    set_mark(path, identity, end, 0)
    renew_page(path, committed_lsn=0, keep_folded=False)
    locks.close()


def test_a_log_that_is_replaced_under_an_open_store_makes_its_state_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "s", tmp_path / "o"
    with SessionStore.open(path, backend="memory") as store:
        common = store.create({"n": "common"})
        store.flush()
        shutil.copytree(path, other)
        mine = [store.create({}) for _ in range(50)]
        store.fold()
        with SessionStore.open(other) as diverged:
            theirs = [diverged.create({"n": number}) for number in range(20)]
            diverged.delete(theirs.pop())
        replace_log(path, other)
        assert store.get(mine[0]) is None
        assert sorted(store.ids()) == sorted([common, *theirs])
        assert store.count() == 20
        begin_epoch(path, read_identity(path).node, 3, voters=())  # it lost log, and may not write in epoch 2
        id = store.create({})
        store.fold()
        with SessionStore.open(path) as anew:
            assert sorted(anew.ids()) == sorted([common, *theirs, id])


def test_a_state_filled_from_the_log_has_its_deadlines_and_labels(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s", backend="memory") as store:
        ids = [
            store.put(f"{number}", {}, 1 if number % 2 else 60_000, group=f"g{number % 3}").id
            for number in range(30)
        ]
        backend = MemoryBackend(tmp_path)
        load_state(backend, store._log)
        assert sorted(key.decode() for _, key in backend.due(1 << 62, 100)) == sorted(ids)
        backend.refresh()
        assert [key.decode() for _, key in backend.find((b"gg1", b""), b"gg1", 100)] == sorted(ids[1::3])
