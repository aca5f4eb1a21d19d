"""Many threads of many processes write one store while one process is killed with -9 every 50 ms.

Nothing acknowledged is lost, counters add up, batches are whole, nobody waits for the dead, and the store
verifies and reopens as it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from perdure.recovery import summarise, verify
from perdure.store import SessionStore
from perdure.store.backends import BACKENDS
from tests.crash.crowd import COUNTERS, END_S, NOTED_S, Plan, Result, counter_id
from tests.crash.test_processes import replayed
from tests.support.faults.zygote import ROOT, import_path

CALLS_PER_S_MIN = 20
"""A lock that stays with the dead can lose nothing, and only show in how little gets done."""


WAIT_S_MAX = 1.0
BUSY_WAIT_S_MAX = 3.0
"""Where other tests run beside it; a lock that stayed with the dead would cost 5 s, its time-out."""


class Told(msgspec.Struct):
    """What the ledgers say."""

    created: dict[str, str] = {}
    """Id -> the writer that was told so."""
    ids: list[str] = []
    deleted: set[str] = set()
    maybe_deleted: set[str] = set()
    counted: Counter[int] = msgspec.field(default_factory=Counter)
    maybe_counted: Counter[int] = msgspec.field(default_factory=Counter)
    pairs: dict[str, tuple[int, int]] = {}
    """Writer -> (last number acknowledged, last number tried)."""
    maybe_created: int = 0
    calls: int = 0
    slow: list[tuple[float, float, str, float]] = []
    late: list[tuple[float, float]] = []
    opened: list[float] = []
    errors: list[str] = []


def told_by(folder: Path) -> Told:
    told = Told()
    for path in folder.glob("failed-*"):
        told.errors.append(path.read_text())
    for path in folder.glob("ledger-*"):
        process = path.name.partition("-")[2]
        open_tries: dict[str, list[str]] = {}
        for line in path.read_text().splitlines():
            _read(told, process, line.split(), open_tries)
        for thread, words in open_tries.items():
            _read_open(told, f"{process}-{thread}", words)
    return told


def _read(told: Told, process: str, words: list[str], open_tries: dict[str, list[str]]) -> None:
    if words[0] == "opened":
        told.opened.append(float(words[1]))
    elif words[0] == "control":
        told.late.append((float(words[2]), float(words[3])))
    elif words[1] == "try":
        open_tries[words[0]] = words[2:]
    elif words[1] == "ack":
        _read_ack(told, f"{process}-{words[0]}", open_tries.pop(words[0]), words[2:])
    elif words[1] == "slow":
        told.slow.append((float(words[2]), float(words[3]), words[4], float(words[5])))
    else:
        told.errors.append(" ".join(words))


def _read_ack(told: Told, writer: str, tried: list[str], answer: list[str]) -> None:
    told.calls += 1
    what, argument = tried
    if what == "create":
        told.ids.append(answer[0])
        told.created[answer[0]] = writer
    elif what == "delete":
        told.deleted.add(argument)
    elif what == "count":
        told.counted[int(argument)] += 1
    else:
        told.pairs[writer] = (int(argument), int(argument))


def _read_open(told: Told, writer: str, tried: list[str]) -> None:
    what, argument = tried
    if what == "create":
        told.maybe_created += 1
    elif what == "delete":
        told.maybe_deleted.add(argument)
    elif what == "count":
        told.maybe_counted[int(argument)] += 1
    else:
        told.pairs[writer] = (told.pairs.get(writer, (0, 0))[0], int(argument))


def run_crowd(folder: Path, plan: Plan) -> tuple[Result, Told]:
    Path(plan.folder).mkdir()
    file = folder / "plan.json"
    file.write_bytes(msgspec.json.encode(plan))
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.crowd", str(file)],
        cwd=ROOT,
        env={"PYTHONPATH": import_path(), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=2 * plan.seconds + 2 * END_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode((folder / "result.json").read_bytes(), type=Result), told_by(Path(plan.folder))


def check_store(folder: Path, told: Told) -> None:
    """The ledgers against the store."""
    path = folder / "store"
    with SessionStore.open(path, create=False) as store:
        found = {session.id: session.metadata for session in store.sessions()}
        for number in range(COUNTERS):
            value = found.pop(counter_id(number))["n"]
            least = told.counted[number]
            assert least <= value <= least + told.maybe_counted[number], f"counter {number}"
        for writer, (acked, tried) in told.pairs.items():
            sides = [found.pop(f"pair-{writer}-{side}", {"n": 0})["n"] for side in "ab"]
            assert sides[0] == sides[1], f"half a batch of {writer}"
            assert sides[0] in (acked, tried), f"the pair of {writer}"
        assert len(set(told.ids)) == len(told.ids), "one id was given twice"
        expected = told.created.keys() - told.deleted - told.maybe_deleted
        assert expected <= found.keys(), f"{len(expected - found.keys())} acknowledged sessions are lost"
        assert all(found[id] == {"by": told.created[id]} for id in expected)
        assert not told.deleted & found.keys(), "a session that was deleted is back"
        unknown = found.keys() - told.created.keys()
        assert len(unknown) <= told.maybe_created, "sessions that nobody made"
        store.fold()
        before = (store.position(), store.stats()["digest"], store.count())
        assert replayed(path, store, folder / "replayed") == before
    with SessionStore.open(path, create=False) as again:
        assert (again.position(), again.stats()["digest"], again.count()) == before
        assert {session.id for session in again.sessions()} >= expected
    findings = verify(path, level="chain")
    assert summarise(findings).exit_code == 0, [str(finding) for finding in findings]


def waits_s(told: Told) -> list[tuple[float, str]]:
    """How long calls waited for anything but a processor, the longest first.

    Taken off: how long the threads of their process stood in the processors' queue meanwhile, or how late
    threads without any business in the store woke up in any process, whichever is longer.
    """
    found: list[tuple[float, str]] = []
    for began, ended, what, starved in told.slow:
        late = _covered((max(began, a), min(ended, b)) for a, b in told.late if a < ended and b > began)
        found.append((ended - began - max(starved, late), f"{what} took {ended - began:.2f} s"))
    return sorted(found, reverse=True)


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of a union of spans."""
    total, reached = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


def check_crowd(folder: Path, plan: Plan, wait_s_max: float, record: object) -> None:
    result, told = run_crowd(folder, plan)
    slowest = max((ended - began for began, ended, _, _ in told.slow), default=NOTED_S)
    waits = waits_s(told)
    summary = {
        "backend": plan.backend,
        "kills": result.kills,
        "processes_started": result.started,
        "seconds": round(result.seconds, 1),
        "calls": told.calls,
        "calls_per_s": round(told.calls / result.seconds),
        "increments": sum(told.counted.values()),
        "slowest_call_s": round(slowest, 3),
        "longest_wait_beside_processors_s": round(waits[0][0], 3) if waits else 0.0,
        "longest_late_wake_up_s": round(max((b - a for a, b in told.late), default=0.0), 3),
        "slowest_open_s": round(max(told.opened), 3),
    }
    print(json.dumps(summary))
    if callable(record):
        record("crowd", summary)
    assert told.errors == []
    assert set(result.exit_codes) == {0}
    assert result.kills >= plan.kills_min
    assert told.calls >= CALLS_PER_S_MIN * result.seconds
    assert not waits or waits[0][0] <= wait_s_max, waits[:5]
    check_store(folder, told)


def plan_of(folder: Path, seed: int, backend: str, **sizes: object) -> Plan:
    given = {"store": str(folder / "store"), "folder": str(folder / "ledgers"), "seed": seed, **sizes}
    return msgspec.convert({**given, "backend": backend, "kill_every_ms": 50}, Plan)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crowd_that_is_killed_for_seconds_loses_nothing(
    tmp_path: Path, seed: int, backend: str, record_property: object
) -> None:
    plan = plan_of(tmp_path, seed, backend, processes=4, threads=4, seconds=5.0, kills_min=40)
    check_crowd(tmp_path, plan, BUSY_WAIT_S_MAX, record_property)


@pytest.mark.lab
@pytest.mark.xdist_group("crowd")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("durability", ["os", "disk"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crowd_that_is_killed_five_hundred_times_loses_nothing(
    tmp_path: Path, seed: int, backend: str, durability: str, record_property: object
) -> None:
    plan = plan_of(
        tmp_path,
        seed,
        backend,
        processes=8,
        threads=4,
        seconds=30.0,
        kills_min=500,
        durability=durability,
    )
    check_crowd(tmp_path, plan, WAIT_S_MAX, record_property)
