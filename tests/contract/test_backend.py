"""The contract of store.ports.Backend, held against every back end through the protocol alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from perdure.store.errors import ForkedError, StoreClosedError, UsageError
from perdure.store.fold import record_of
from perdure.store.ids import NOWHERE
from perdure.store.ports import Backend, Change, KeyScan, Labelled
from perdure.store.rebuild import fill
from perdure.store.session import encode_session
from tests.contract.children import advance, at, changes_of, child, content_at, open_way
from tests.contract.conftest import Opener

LONG = [b"L" * 512, b"L" * 511 + b"a", b"L" * 1024, b"L" * 1023 + b"\0", b"L" * 479 + b"\0" + b"L" * 100]


def fold(backend: Backend, changes: dict[bytes, bytes | None], lsn: int) -> None:
    backend.fold(sorted(changes.items()), [], [], at(lsn))


def content(backend: Backend) -> list[tuple[bytes, bytes]]:
    scan = backend.scan()
    try:
        return list(scan)
    finally:
        scan.close()


# -- views and folds -----------------------------------------------------------------------------


def test_a_new_back_end_is_nowhere_and_empty(backend: Backend) -> None:
    assert backend.refresh() == NOWHERE
    assert backend.get(b"a") is None
    assert content(backend) == []
    assert backend.due(1 << 62, 10) == []


@pytest.mark.shared_state
def test_a_fold_is_seen_after_a_refresh_and_not_before(backend: Backend, opener: Opener) -> None:
    other = opener()
    fold(backend, {b"a": b"record-1"}, 1)
    assert other.refresh() == backend.refresh() == at(1)
    fold(backend, {b"a": b"record-2", b"b": b"record-b"}, 2)
    for handle in (backend, other):
        assert (handle.get(b"a"), handle.get(b"b")) == (b"record-1", None)
        assert handle.refresh() == at(2)
        assert (handle.get(b"a"), handle.get(b"b")) == (b"record-2", b"record-b")


@pytest.mark.own_state
def test_handles_with_states_of_their_own_see_nothing_of_each_other(backend: Backend, opener: Opener) -> None:
    other = opener()
    fold(backend, {b"a": b"record-1"}, 1)
    backend.fold([], [(5, b"a")], [], at(2), [(b"ga", b"a")])
    assert backend.refresh() == at(2)
    assert other.refresh() == NOWHERE
    assert (other.get(b"a"), other.due(9, 9), other.find((b"", b""), BEYOND, 9)) == (None, [], [])
    backend.close()
    assert content(other) == content(opener()) == []


def test_a_view_stays_as_it_was_refreshed_while_its_own_handle_folds(backend: Backend) -> None:
    backend.fold([(b"a", b"record-1"), (b"b", b"record-b")], [], [], at(1), [(b"ga", b"a")])
    backend.refresh()
    for lsn in (2, 3):
        backend.fold([(b"a", b"record-%d" % lsn), (b"b", None), (b"c", b"new-----")], [], [], at(lsn))
    backend.fold([], [], [], at(4), [(b"gb", b"c")], [(b"ga", b"a")])
    assert [backend.get(key) for key in (b"a", b"b", b"c")] == [b"record-1", b"record-b", None]
    assert backend.find((b"", b""), BEYOND, 9) == [(b"ga", b"a")]
    assert backend.refresh() == at(4)
    assert [backend.get(key) for key in (b"a", b"b", b"c")] == [b"record-3", None, b"new-----"]
    assert backend.find((b"", b""), BEYOND, 9) == [(b"gb", b"c")]


def test_a_removed_session_is_gone_and_removing_it_again_does_nothing(backend: Backend) -> None:
    fold(backend, {b"a": b"record-a", b"b": b"record-b"}, 1)
    fold(backend, {b"a": None}, 2)
    fold(backend, {b"a": None, b"c": None}, 3)
    backend.refresh()
    assert backend.get(b"a") is None
    assert content(backend) == [(b"b", b"record-b")]


def test_a_position_alone_can_be_folded(backend: Backend) -> None:
    backend.fold([], [], [], at(7, 0))
    assert backend.refresh() == at(7, 0)


def test_without_a_view_get_refuses_and_refresh_brings_it_back(backend: Backend) -> None:
    with pytest.raises(UsageError, match="refresh"):
        backend.get(b"a")
    fold(backend, {b"a": b"record-a"}, 1)
    backend.refresh()
    backend.release()
    backend.release()
    with pytest.raises(UsageError, match="refresh"):
        backend.get(b"a")
    backend.refresh()
    assert backend.get(b"a") == b"record-a"


@pytest.mark.shared_state
def test_what_was_folded_is_there_when_opened_again(opener: Opener) -> None:
    first = opener()
    fold(first, {b"a": b"record-a", LONG[0]: b"record-l"}, 5)
    first.close()
    again = opener()
    assert again.refresh() == at(5)
    assert again.get(b"a") == b"record-a"
    assert again.get(LONG[0]) == b"record-l"


def test_any_bytes_are_keys_and_records(backend: Backend) -> None:
    records = {bytes([number]): bytes([number]) * 9 for number in range(256)}
    records |= {
        b"\0": b"",
        b"\0\0": bytes(range(256)),
        b"\xff" * 511: b"\0" * 9,
        b"a\0b": os.urandom(1 << 20),
    }
    backend.fold(sorted(records.items()), [], [], at(1))
    backend.refresh()
    assert all(backend.get(key) == record for key, record in records.items())
    assert content(backend) == sorted(records.items())


def test_a_closed_back_end_says_so(backend: Backend) -> None:
    backend.refresh()
    scan = backend.scan()
    scan.close()
    scan.close()
    with pytest.raises(StoreClosedError):
        list(scan)
    if isinstance(scan, KeyScan):
        with pytest.raises(StoreClosedError):
            scan.next_keys(1)
    backend.close()
    backend.close()
    calls: list[Callable[[], object]] = [
        backend.refresh,
        backend.scan,
        lambda: backend.get(b"a"),
        lambda: backend.due(1, 1),
        lambda: backend.find((b"", b""), b"z", 1),
        lambda: backend.fold([], [], [], at(1)),
    ]
    for call in calls:
        with pytest.raises(StoreClosedError):
            call()


# -- scans ---------------------------------------------------------------------------------------


def test_a_scan_is_one_image_while_folds_go_on(backend: Backend) -> None:
    before = {b"%04d" % number: b"old-%04d" % number for number in range(500)}
    backend.fold(sorted(before.items()), [], [], at(1, 500))
    scan = backend.scan()
    rows = iter(scan)
    seen = [next(rows) for _ in range(100)]
    changes: dict[bytes, bytes | None] = dict.fromkeys(list(before)[::2])
    fold(backend, changes | {b"%04d-new" % number: b"new-----" for number in range(500)}, 2)
    seen += rows
    assert (scan.position, seen) == (at(1, 500), sorted(before.items()))
    scan.close()
    assert len(content(backend)) == 750


def test_the_keys_of_a_scan_are_those_of_one_image_while_folds_go_on(backend: Backend) -> None:
    keys = [b"%04d" % number for number in range(500)]
    backend.fold([(key, b"record--") for key in keys], [], [], at(1, 500))
    scan = backend.scan(keys[9])
    rows = iter(()) if isinstance(scan, KeyScan) else iter(scan)

    def next_keys(limit: int) -> list[bytes]:
        return scan.next_keys(limit) if isinstance(scan, KeyScan) else [key for key, _ in islice(rows, limit)]

    found = next_keys(100)
    fold(backend, dict.fromkeys(keys[::2]) | {key + b"-new": b"record--" for key in keys}, 2)
    found += next_keys(300)
    fold(backend, dict.fromkeys(keys), 3)
    found += next_keys(300)
    assert (found, next_keys(1)) == (keys[10:], [])
    scan.close()


def test_a_scan_goes_on_behind_any_key_there_or_not(backend: Backend) -> None:
    keys = sorted([b"a", b"b\xff", b"c", b"L" * 100, b"L" * 511, b"M", *LONG])
    backend.fold([(key, b"record-" + key[-1:]) for key in keys], [], [], at(1))
    for after in [*keys, b"", b"\0", b"b", b"z", b"L" * 480, b"L" * 600, b"L" * 1024 + b"L"]:
        scan = backend.scan(after)
        assert [key for key, _ in scan] == [key for key in keys if key > after]
        scan.close()


def test_a_scan_in_a_thread_goes_on_while_another_folds(backend: Backend) -> None:
    backend.fold([(b"%05d" % n, b"record-%d" % n) for n in range(5000)], [], [], at(1))
    scan = backend.scan()
    rows: list[tuple[bytes, bytes]] = []
    reader = threading.Thread(target=lambda: rows.extend(scan))
    reader.start()
    for lsn in range(2, 40):
        fold(backend, {b"%05d" % n: b"changed-%d" % lsn for n in range(lsn, 5000, 97)}, lsn)
    reader.join()
    scan.close()
    assert rows == [(b"%05d" % n, b"record-%d" % n) for n in range(5000)]


# -- deadlines -----------------------------------------------------------------------------------


def test_due_answers_the_earliest_exactly_and_again_until_they_are_disarmed(backend: Backend) -> None:
    armed = [(1000 + (number * 7919) % 50_000, b"s%04d" % number) for number in range(2000)]
    backend.fold([], armed[:1200], [], at(1))
    backend.fold([], armed[1200:], [], at(2))
    ordered = sorted(armed)
    until = 23_456
    expected = [entry for entry in ordered if entry[0] <= until]
    assert backend.due(until, 5000) == expected
    assert backend.due(until, 100) == ordered[:100]
    backend.fold([], [], ordered[:100], at(3))
    assert backend.due(until, 5000) == expected[100:]
    backend.fold([], [], expected[150:160] + ordered[-50:], at(4))
    assert backend.due(until, 5000) == expected[100:150] + expected[160:]
    assert backend.due(1 << 62, 5000) == ordered[100:150] + ordered[160:-50]
    assert backend.due(999, 10) == []


def test_due_answers_the_earliest_of_very_many(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.store.backend_lmdb.DUE_SPARE", 10)
    armed = [(1000 + (number * 7919) % 20_000, b"s%04d" % number) for number in range(3000)]
    for start in range(0, 3000, 300):
        backend.fold([], armed[start : start + 300], [], at(start + 1))
    for limit in (1, 7, 100, 2500):
        assert backend.due(18_000, limit) == [entry for entry in sorted(armed) if entry[0] <= 18_000][:limit]


def test_deadlines_are_kept_apart_when_folds_leave_the_position_where_it_is(backend: Backend) -> None:
    for number in range(20):
        backend.fold([], [(5000, b"s%d" % number)], [], at(9))
    assert backend.due(5000, 100) == sorted((5000, b"s%d" % number) for number in range(20))


def test_a_deadline_that_is_disarmed_and_armed_in_one_fold_stays(backend: Backend) -> None:
    backend.fold([], [(5, b"a"), (5, b"b")], [], at(1))
    backend.fold([], [(5, b"a"), (9, b"b")], [(5, b"a"), (5, b"b")], at(2))
    assert backend.due(100, 10) == [(5, b"a"), (9, b"b")]


def test_a_deadline_armed_twice_is_answered_once_and_disarmed_at_once(backend: Backend) -> None:
    backend.fold([], [(5, b"a"), (5, b"a")], [], at(1))
    backend.fold([], [(5, b"a")], [], at(2))
    assert backend.due(5, 10) == [(5, b"a")]
    backend.fold([], [], [(5, b"a")], at(3))
    assert backend.due(5, 10) == []


def test_disarming_what_is_not_armed_does_nothing(backend: Backend) -> None:
    backend.fold([], [(70_000, b"a")], [], at(1))
    backend.fold([], [], [(70_000, b"b"), (1, b"a"), (90_000, b"a")], at(2))
    assert backend.due(1 << 62, 10) == [(70_000, b"a")]


def test_deadlines_of_long_ids_and_far_times(backend: Backend) -> None:
    armed = [(time_ms, key) for time_ms in (0, 1, (1 << 63) - 2) for key in LONG]
    backend.fold([], armed, [], at(1))
    assert backend.due((1 << 63) - 2, 100) == sorted(armed)
    backend.fold([], [], armed[:7], at(2))
    assert backend.due((1 << 64) - 1, 100) == sorted(armed[7:])


# -- long ids ------------------------------------------------------------------------------------


def test_long_ids_are_kept_apart_however_alike_they_are(backend: Backend) -> None:
    backend.fold([(key, b"first-%d" % len(key)) for key in sorted(LONG)], [], [], at(1))
    backend.refresh()
    assert [backend.get(key) for key in LONG] == [b"first-%d" % len(key) for key in LONG]
    assert backend.get(b"L" * 511) is None
    assert backend.get(b"L" * 700) is None
    fold(backend, {LONG[0]: None, LONG[2]: b"second--", b"L" * 511: b"short---"}, 2)
    backend.refresh()
    assert backend.get(LONG[0]) is None
    assert backend.get(LONG[2]) == b"second--"
    assert backend.get(b"L" * 511) == b"short---"
    assert [key for key, _ in content(backend)] == sorted([*LONG[1:], b"L" * 511])


def test_the_last_long_id_gone_leaves_short_ids_readable(backend: Backend) -> None:
    fold(backend, {LONG[0]: b"long----", b"a": b"short---"}, 1)
    fold(backend, {LONG[0]: None}, 2)
    backend.refresh()
    assert backend.get(LONG[0]) is None
    assert backend.get(b"a") == b"short---"


def test_many_long_ids_with_one_beginning_are_scanned_in_order(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.store.scan_lmdb.LONG_GROUP_MAX", 64)
    keys = [b"p" * 600 + b"%04d" % number for number in range(300)]
    backend.fold([(key, b"record--") for key in keys], [], [], at(1))
    assert [key for key, _ in content(backend)] == keys
    scan = backend.scan(keys[100])
    assert [key for key, _ in scan] == keys[101:]
    scan.close()


# -- the index -----------------------------------------------------------------------------------

BEYOND = b"\x7f"


def find(backend: Backend, above: tuple[bytes, bytes] = (b"", b""), last: bytes = BEYOND) -> list[Labelled]:
    backend.refresh()
    return backend.find(above, last, 10_000)


def test_pairs_are_found_in_order_above_a_pair_and_up_to_a_term(backend: Backend) -> None:
    pairs = [(b"g%d" % (n % 7), b"%05d" % n) for n in range(500)]
    pairs += [(b"ga", b"x\0y"), (b"ga", b"x"), (b"g\xc3\xa4", b"x"), (b"g" * 64, b"k" * 440)]
    pairs += [(b"g2", key) for key in LONG] + [(b"t2", LONG[0]), (b"g" * 64, b"k" * 500)]
    backend.fold([], [], [], at(1), pairs[:100])
    backend.fold([], [], [], at(2), pairs[100:] + pairs[:10])
    ordered = sorted(pairs)
    assert find(backend) == ordered
    assert backend.has_labels
    for number in range(0, len(ordered), 13):
        above, last = ordered[number], ordered[min(number + 40, len(ordered) - 1)][0]
        assert find(backend, above, last) == [pair for pair in ordered if pair > above and pair[0] <= last]
        assert backend.find(above, BEYOND, 3) == ordered[number + 1 : number + 4]
    assert find(backend, (b"g2", b"")) == [pair for pair in ordered if pair > (b"g2", b"")]


def test_pairs_are_removed_in_the_fold_that_says_so_and_twice_does_nothing(backend: Backend) -> None:
    backend.fold([], [], [], at(1), [(b"ga", b"1"), (b"ga", b"2"), (b"gb", LONG[2])])
    backend.fold([], [], [], at(2), [(b"gb", b"1")], [(b"ga", b"1"), (b"gb", LONG[2]), (b"gc", b"9")])
    assert find(backend) == [(b"ga", b"2"), (b"gb", b"1")]
    backend.fold([], [], [], at(3), [], [(b"ga", b"1"), (b"ga", b"2"), (b"gb", b"1")])
    assert find(backend) == []
    assert not backend.has_labels


def test_an_empty_back_end_has_no_labels_and_finds_none(backend: Backend) -> None:
    assert find(backend) == []
    assert not backend.has_labels


@pytest.mark.shared_state
def test_the_index_is_that_of_the_read_view(backend: Backend, opener: Opener) -> None:
    other = opener()
    other.refresh()
    backend.fold([], [], [], at(1), [(b"ga", b"1")])
    assert other.find((b"", b""), BEYOND, 10) == []
    other.refresh()
    assert other.find((b"", b""), BEYOND, 10) == [(b"ga", b"1")]
    other.release()
    with pytest.raises(UsageError, match="refresh"):
        other.find((b"", b""), BEYOND, 10)


# -- filling -------------------------------------------------------------------------------------


def test_an_empty_back_end_is_filled_in_parts_and_its_position_comes_last(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.store.rebuild.FILL_RECORDS", 100)
    monkeypatch.setattr("perdure.store.rebuild.ARM_AT_ONCE", 250)
    stored = {b"%05d" % n: value_expiring(1000 + n) for n in range(950)} | {
        key: value_expiring(5) for key in LONG
    }
    records = [(key, record_of(key, value)) for key, value in sorted(stored.items())]

    def broken() -> Iterator[tuple[bytes, bytes]]:
        yield from records[:500]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(backend, broken(), at(77, len(records)))
    assert backend.refresh() == NOWHERE
    there = content(backend)
    assert there == records[: len(there)]
    assert len(there) >= 400
    fill(backend, records[len(there) :], at(77, len(records)))
    assert backend.refresh() == at(77, len(records))
    assert content(backend) == records
    fold(backend, {b"00000": None}, 78)
    backend.refresh()
    assert backend.get(b"00000") is None


def test_all_deadlines_and_labels_are_there_once_a_back_end_is_filled(backend: Backend) -> None:
    stored = {b"%05d" % n: value_expiring(1000 + n, f"group {n % 3}") for n in range(300)}
    fill(backend, ((key, record_of(key, value)) for key, value in sorted(stored.items())), at(5, 300))
    assert [key for _, key in backend.due(1 << 62, 2000)] == sorted(stored)
    assert find(backend) == sorted((b"ggroup %d" % (n % 3), b"%05d" % n) for n in range(300))


def value_expiring(cap_ms: int, group: str = "") -> bytes:
    return encode_session(1, 1, 1, 0, cap_ms, {}, group=group)


# -- processes -----------------------------------------------------------------------------------


@pytest.mark.shared_state
def test_what_one_process_folds_another_reads(way: str, place: Path, backend: Backend) -> None:
    with child("demand", way, place) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for lsn in range(1, 25):
            process.stdin.write("go\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{lsn}\n"
            expected = content_at(lsn)
            assert backend.refresh() == at(lsn, len(expected))
            assert dict(content(backend)) == expected
            for key, record in changes_of(lsn):
                assert backend.get(key) == record


@pytest.mark.shared_state
def test_whatever_is_seen_while_another_process_folds_is_the_content_of_its_position(
    way: str, place: Path, backend: Backend
) -> None:
    expected: dict[bytes, bytes] = {}
    reached = 0
    with child("ever", way, place) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(60):
            scan = backend.scan()
            position = scan.position
            for lsn in range(reached + 1, position.lsn + 1):
                advance(expected, lsn)
            reached = position.lsn
            assert dict(scan) == expected
            assert position == at(reached)
            scan.close()


@pytest.mark.shared_state
def test_a_folder_killed_anywhere_leaves_a_position_with_its_content(way: str, place: Path) -> None:
    for _ in range(3):
        with child("ever", way, place) as process:
            assert process.stdout is not None
            for _ in range(30):
                acknowledged = int(process.stdout.readline())
            process.kill()
            acknowledged = max([acknowledged, *map(int, process.stdout.read().split("\n")[:-1])])
        survivor = open_way(way, place)
        position = survivor.refresh()
        assert position.lsn in (acknowledged, acknowledged + 1)
        assert position == at(position.lsn)
        assert dict(content(survivor)) == content_at(position.lsn)
        survivor.close()


@pytest.mark.shared_state
def test_a_child_of_a_fork_may_not_use_what_it_inherited_but_may_open_anew(
    way: str, place: Path, backend: Backend
) -> None:
    fold(backend, {b"a": b"record-a"}, 1)
    backend.refresh()
    scan = backend.scan()
    rows = iter(scan)
    assert in_fork(lambda: _use_inherited(way, place, backend, scan, rows)) == 0
    assert backend.get(b"b") is None
    assert backend.refresh() == at(2)
    assert backend.get(b"b") == b"record-b"
    assert list(rows) == [(b"a", b"record-a")]
    scan.close()
    fold(backend, {b"c": b"record-c"}, 3)
    assert len(content(backend)) == 3


@pytest.mark.own_state
def test_a_child_of_a_fork_may_not_use_a_state_that_was_its_parents(backend: Backend) -> None:
    fold(backend, {b"a": b"record-a"}, 1)
    backend.refresh()
    scan = backend.scan()
    rows = iter(scan)
    assert in_fork(lambda: _is_refused(backend, scan, rows)) == 0
    assert backend.get(b"a") == b"record-a"
    assert list(rows) == [(b"a", b"record-a")]
    scan.close()


def _use_inherited(way: str, place: Path, backend: Backend, scan: Any, rows: Any) -> None:
    _is_refused(backend, scan, rows)
    own = open_way(way, place)
    assert own.refresh() == at(1)
    fold(own, {b"b": b"record-b"}, 2)
    own.close()


def _is_refused(backend: Backend, scan: Any, rows: Any) -> None:
    calls: list[Callable[[], object]] = [
        backend.refresh,
        backend.scan,
        lambda: backend.get(b"a"),
        lambda: backend.due(1, 1),
        lambda: backend.fold([], [], [], at(9)),
        lambda: backend.find((b"", b""), b"z", 1),
        lambda: next(rows),
        lambda: list(scan),
    ]
    if isinstance(scan, KeyScan):
        calls.append(lambda: scan.next_keys(1))
    for call in calls:
        with pytest.raises(ForkedError):
            call()
    for harmless in (backend.release, scan.close, backend.close):
        harmless()


def in_fork(action: Callable[[], object]) -> int:
    """Exit status of a forked child that does `action`: 0 if it returned."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.shared_state
def test_folds_of_two_handles_in_two_threads_are_both_kept(opener: Opener) -> None:
    handles = [opener(), opener()]

    def fold_many(number: int) -> None:
        changes: list[Change] = [(b"%d" % number, b"record-%d" % number)]
        for lsn in range(100):
            handles[number].fold([(b"%d-%03d" % (number, lsn), b"record--")], [], [], at(lsn))
        handles[number].fold(changes, [], [], at(100))

    threads = [threading.Thread(target=fold_many, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(content(handles[0])) == 202
