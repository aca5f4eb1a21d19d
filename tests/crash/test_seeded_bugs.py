"""The harness catches bugs that were put into the real store on purpose, each within seconds.

Every bug has a run that finds it. The same run without the bug finds nothing, which shows that it was
the bug that was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from perdure.store.cursor import LogCursor, list_segments
from perdure.store.frame import HEADER_BYTES, Frame, cluster_key
from perdure.store.identity import read_identity
from perdure.store.names import log_path
from tests.crash.seeded import BUGS, NO_BUG, judge_one_history, seed_bug
from tests.crash.store_program import (
    BLIND,
    check_after_kill,
    check_after_power_cut,
    operation_id,
    recover,
)
from tests.support.faults.checks import check_all
from tests.support.faults.explore import Check, explore, lines_of
from tests.support.faults.images import PAGE_BYTES, CrashImages, Image, Shape
from tests.support.faults.ledger import History
from tests.support.faults.shards import Report, run_sharded
from tests.support.faults.shim import Rule
from tests.support.faults.sweep import Point, kill_sweep
from tests.support.faults.trace import Model
from tests.support.faults.workload import Recording, Run, Workload, record, run

PROGRAMS = "tests.crash.seeded:"
SEED = 1
"""Random images find a bug likely, not surely: the finding is looked for where it is known to be."""
SEGMENTS = "log/*.seg"
STATE = "state/lmdb/data.mdb"
NAMED = frozenset({"CorruptError"})

Find = Callable[[Path, Path, str], list[str]]
"""find(shim, folder, bug) -> violations of one run with the bug (or NO_BUG)."""


def seeded(bug: str, check: Check) -> Check:
    """The check, made by a store with the bug. It runs in a forked worker, where the bug stays."""

    def check_with_bug(directory: Path, lines: list[bytes]) -> Iterable[object]:
        seed_bug(bug)
        return check(directory, lines)

    return check_with_bug


def power_lost(recording: Recording) -> list[str]:
    trace, final = recording.trace, recording.final
    images = CrashImages(trace, model=Model.STRICT, blind=BLIND, final=final, seed=SEED)
    return explore(images, check_after_power_cut, limit=160, random_per_point=3).violations


def recorded(shim: Path, folder: Path, bug: str, *plan: Rule) -> Recording:
    return record(shim, Workload(PROGRAMS + "write", [bug, "disk", "24"]), folder / "run", plan=plan)


# -- how each bug is found ---------------------------------------------------------------------------


def by_power_loss(shim: Path, folder: Path, bug: str) -> list[str]:
    return power_lost(recorded(shim, folder, bug))


def by_pages_that_never_reached_the_disk(shim: Path, folder: Path, bug: str) -> list[str]:
    """The store was closed and its state holds all; then power is lost, and with it one page of the state."""
    recording = recorded(shim, folder, NO_BUG)
    last = CrashImages(recording.trace).build(Shape(len(recording.trace.ops), "all"))
    whole = recording.final[STATE]
    pages = [at for at in range(0, len(whole.data), PAGE_BYTES) if any(whole.part(at, PAGE_BYTES))]
    check = seeded(bug, check_after_power_cut)
    assert len(pages) > 5

    def work(index: int, report: Report) -> None:
        if report.at(f"page {pages[index] // PAGE_BYTES} of the state"):
            place = folder / f"image-{index}"
            damaged = whole.copy()
            damaged.write(pages[index], bytes(PAGE_BYTES))
            contents = {**last.contents, **recording.final, STATE: damaged}
            Image(last.shape, contents, last.directories, []).write(place)
            report.collect(lambda: check(place, lines_of(last.acks)))

    return run_sharded(len(pages), work).violations


def by_a_failed_sync(shim: Path, folder: Path, bug: str) -> list[str]:
    """Which sync has something to lose depends on when segments roll: one of a few in a row has."""
    for number in range(5, 9):
        rule = Rule("sync", number, "EIO", glob=SEGMENTS)
        recording = recorded(shim, folder / str(number), bug, rule)
        assert recording.run.struck == 1
        found = power_lost(recording)
        if found and (bug == NO_BUG or any("(7)" in text for text in found)):
            return found
    return []


def by_a_failed_sync_of_another(shim: Path, folder: Path, bug: str) -> list[str]:
    workload = Workload(PROGRAMS + "write_on_beside_a_failed_sync", [bug, "6"])
    plan = [Rule("sync", 3, "EIO", role="first", glob=SEGMENTS)]
    recording = record(shim, workload, folder / "run", plan=plan)
    assert (recording.run.struck, recording.run.exit_code) == (1, 0), recording.run.output
    return power_lost(recording)


def by_a_kill(shim: Path, folder: Path, bug: str) -> list[str]:
    workload = Workload(PROGRAMS + "write", [bug, "os", "20"])
    points = [Point("", "pwrite", n, "before") for n in range(4, 20)]
    return kill_sweep(shim, workload, check_after_kill, folder, points=points).violations


def by_damage(
    shim: Path, folder: Path, bug: str, places: Sequence[int], at: Callable[[Run, int], None]
) -> list[str]:
    """Kill a writer, damage its log, and open it where it stands: each time with a run of its own."""
    runs = [run(shim, Workload(PROGRAMS + "write_and_die", ["12"]), folder / f"run-{n}") for n in places]
    for place, done in zip(places, runs, strict=True):
        at(done, place)

    def work(index: int, report: Report) -> None:
        if report.at(f"run {index}"):
            seed_bug(bug)
            report.collect(lambda: check_named(runs[index]))

    return run_sharded(len(runs), work).violations


def check_named(done: Run) -> list[object]:
    """The seven checks; a damaged log may be refused by name."""
    history = History.of(done.acks())
    assert history.acknowledged == 12
    known = {operation_id(op): op for op in history.attempts}
    return [*check_all(history, recover(done.store, known=known), named_errors=NAMED)]


def by_another_value_in_the_log(shim: Path, folder: Path, bug: str) -> list[str]:
    def change(done: Run, number: int) -> None:
        """One bit of what operation `number` wrote."""
        path, offset, frame = frame_of(done.store, number)
        data = bytearray(path.read_bytes())
        place = data.rindex(b"w-%d" % number, offset, offset + frame.size_bytes) + 2
        data[place] ^= 0x40
        path.write_bytes(data)

    return by_damage(shim, folder, bug, [5, 9, 12], change)


def by_a_frame_that_fails_before_others(shim: Path, folder: Path, bug: str) -> list[str]:
    def damage(done: Run, number: int) -> None:
        path, offset, _ = frame_of(done.store, number)
        data = bytearray(path.read_bytes())
        data[offset + HEADER_BYTES + 1] ^= 0x40
        path.write_bytes(data)

    return by_damage(shim, folder, bug, [3, 8, 11], damage)


def frame_of(store: Path, number: int) -> tuple[Path, int, Frame]:
    """(segment, offset, frame) of the number-th put; two control events stand before the first."""
    identity = read_identity(store)
    (segment,) = list_segments(log_path(store))
    cursor = LogCursor(
        log_path(store), identity.cluster_id, cluster_key(identity.cluster_id), is_writable=False
    )
    cursor.seek(2 + number - 1)
    offset = cursor.offset
    taken = cursor.read(2 + number)
    cursor.close()
    assert taken is not None
    return segment.path, offset, taken.frames[0][1]


def by_a_promotion(shim: Path, folder: Path, bug: str) -> list[str]:
    return _after_promotions(shim, folder, "write_on_after_a_promotion", bug, "b")


def by_two_promotions(shim: Path, folder: Path, bug: str) -> list[str]:
    return _after_promotions(shim, folder, "promote_two_at_once", bug, "c")


def _after_promotions(shim: Path, folder: Path, program: str, bug: str, primary: str) -> list[str]:
    done = run(shim, Workload(PROGRAMS + program, [bug]), folder / "run")
    assert done.exit_code == 0, done.output
    history = History.of(done.acks())
    known = {operation_id(op): op for op in history.attempts}
    found = check_all(history, recover(done.store / primary, known=known))
    return [*map(str, found), *judge_one_history(done.store)]


CASES: dict[str, tuple[Find, str]] = {
    "acknowledge-before-fsync": (by_power_loss, "(1)"),
    "no-directory-fsync": (by_power_loss, "(1)"),
    "state-ahead-of-log": (by_a_kill, "(6)"),
    "retry-after-fsync-error": (by_a_failed_sync, "(7) recovery ended with CorruptError"),
    "chain-not-checked": (by_another_value_in_the_log, "(2)"),
    "tail-cut-in-the-same-boot": (by_a_frame_that_fails_before_others, "(1)"),
    "rebuild-skipped-after-power-loss": (by_pages_that_never_reached_the_disk, "(7)"),
    "fence-missing": (by_a_promotion, "(1)"),
    "two-candidates-in-one-epoch": (by_two_promotions, "one history"),
    "poison-ignored-by-others": (by_a_failed_sync_of_another, "(7)"),
}
"""Bug -> (the run that finds it, a word of what is found: the number of a check)."""


def test_every_bug_has_its_run() -> None:
    assert CASES.keys() == BUGS.keys()
    assert len(BUGS) == 10


@pytest.mark.parametrize("bug", CASES)
def test_a_bug_seeded_on_purpose_is_found(shim: Path, workdir: Path, bug: str) -> None:
    find, word = CASES[bug]
    found = find(shim, workdir, bug)
    print("\n".join(text[:2000] for text in found[:3]))
    assert found
    assert any(word in text for text in found)


@pytest.mark.parametrize(
    "find", list(dict.fromkeys(find for find, _ in CASES.values())), ids=lambda find: find.__name__
)
def test_the_same_run_without_the_bug_finds_nothing(shim: Path, workdir: Path, find: Find) -> None:
    assert find(shim, workdir, NO_BUG) == []
