"""Fifteen load cases, each on a fresh store of each back end, in real processes: 2,000 sessions, or 100,000.

Times are recorded (printed as JSON, and kept as a property of the test), never asserted. What is asserted are
ids, contents and digests, taken before and compared after.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.recovery import promote, summarise, take_snapshot, verify
from perdure.shipping import ShippingStatus, shipping_status
from perdure.store import Session, SessionStore
from perdure.store.backends import BACKENDS
from perdure.store.page import Word
from tests.cluster.nodes import SECRET, Cluster, cluster_of, until
from tests.parity.workers import THREADS, run_all, start

SMALL, FULL = 2_000, 100_000
BATCH = 500
LOOKUPS = 1000
LAGS = 100
SHORT_MS = 500
WORKERS = 4
WAIT_S = 120.0

pytestmark = pytest.mark.timeout(900)
Record = Callable[[str, object], None]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[SMALL, pytest.param(FULL, marks=pytest.mark.lab)])
def count(request: pytest.FixtureRequest) -> int:
    """How many sessions."""
    return int(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path: Path, backend: str) -> Iterator[SessionStore]:
    with perdure.open(path, backend=backend) as opened:
        yield opened


class Times:
    """Durations of one kind of call, in microseconds."""

    def __init__(self, times_us: Sequence[float] = ()) -> None:
        self.times_us = list(times_us)

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.times_us.append((time.perf_counter() - self._began) * 1e6)

    def figures(self) -> dict[str, float]:
        found = sorted(self.times_us)
        last = len(found) - 1
        at = {"p50_us": 0.5, "p95_us": 0.95, "p99_us": 0.99, "max_us": 1.0}
        return {name: round(found[int(last * share)], 1) for name, share in at.items()}


@pytest.fixture
def note(record_property: Record, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Record figures, in the output and as a property of the test."""

    def recorded(**figures: object) -> None:
        print(json.dumps({"case": request.node.name, **figures}))
        record_property("load", figures)

    return recorded


def load(store: SessionStore, count: int, times: Times | None = None, **options: Any) -> dict[str, int]:
    """Fill a store in batches; answers what each session holds."""
    made: dict[str, int] = {}
    for first in range(0, count, BATCH):
        numbers = range(first, min(first + BATCH, count))
        with times or Times(), store.batch() as batch:
            for number in numbers:
                batch.put(f"load-{number:06d}", {"n": number, "hits": 0}, None, **options)
        made.update((f"load-{number:06d}", number) for number in numbers)
    return made


def held(store: SessionStore) -> dict[str, int]:
    return {session.id: session.metadata["n"] for session in store.sessions(prefix="load-")}


def mark_of(store: SessionStore) -> tuple[object, str, int]:
    """Position, digest and count."""
    return store.position(), store.stats()["digest"], store.count()


def replica_holds(cluster: Cluster, name: str) -> dict[str, int]:
    with SessionStore.open(cluster.path(name), create=False) as store:
        return held(store)


def status_of(cluster: Cluster) -> ShippingStatus:
    return shipping_status(cluster.path("n1"))


def wait_acknowledged(cluster: Cluster, *names: str) -> None:
    lsn = cluster.word("n1", Word.APPENDED)
    for name in names:
        until(lambda name=name: cluster.end(name).lsn >= lsn, f"{name} has it all", WAIT_S)  # type: ignore[misc]


def wait_applied(cluster: Cluster, *names: str) -> None:
    lsn = cluster.word("n1", Word.APPENDED)
    for name in names:
        until(
            lambda name=name: cluster.word(name, Word.FOLDED) >= lsn,  # type: ignore[misc]
            f"{name} applies LSN {lsn}",
            WAIT_S,
        )


def fail_over(cluster: Cluster, to: str, voter: str) -> int:
    """Kill what belongs to the primary, and promote a replica by the other one's promise; answers ms."""
    cluster.kill("shipper:n1")
    cluster.stop(f"folder:{to}")
    report = promote(
        cluster.path(to), {voter: ("127.0.0.1", cluster.ports[voter])}, SECRET, accept_data_loss=True
    )
    cluster.stop(f"receiver:{to}")
    return report.elapsed_ms


def test_01_a_cluster_starts_and_takes_a_confirmed_write(
    tmp_path: Path, backend: str, note: Callable[..., None]
) -> None:
    starting, first = Times(), Times()
    with cluster_of(tmp_path, 3, sync_replicas=2, backend=backend) as cluster:
        with starting:
            cluster.start_all()
        store = cluster.open("n1")
        with first:
            id = store.create({"n": 1})
        lsn = store.position().lsn
        assert all(cluster.end(name).lsn >= lsn for name in ("n2", "n3"))  # confirmed is on their disks
        cluster.wait_applied(lsn)
        for name in ("n2", "n3"):
            with SessionStore.open(cluster.path(name), create=False) as replica:
                assert list(replica.ids()) == [id]
    note(processes_ready=starting.figures(), first_write=first.figures())


def test_02_a_bulk_load_in_batches_is_all_there(
    store: SessionStore, path: Path, count: int, note: Callable[..., None]
) -> None:
    times = Times()
    began = time.perf_counter()
    made = load(store, count, times)
    took_s = time.perf_counter() - began
    assert len(made) == count
    assert held(store) == made
    before = mark_of(store)
    store.close()
    with perdure.open(path, create=False) as again:
        assert mark_of(again) == before
        assert held(again) == made
    note(sessions=count, batch=times.figures(), sessions_per_s=round(count / took_s))


def test_03_a_thousand_lookups_find_what_was_stored(
    store: SessionStore, count: int, seed: int, note: Callable[..., None]
) -> None:
    made = load(store, count)
    times = Times()
    for id in random.Random(seed).choices(sorted(made), k=LOOKUPS):
        with times:
            found = store.get(id)
        assert found is not None
        assert found.metadata["n"] == made[id]
    note(sessions=count, lookup=times.figures())


def test_04_a_replica_follows_and_its_lag_ends_at_nothing(
    tmp_path: Path, backend: str, count: int, note: Callable[..., None]
) -> None:
    visible, behind = Times(), Times()
    with cluster_of(tmp_path, 2, backend=backend) as cluster:
        cluster.start_all()
        store = cluster.open("n1")
        load(store, count)
        with behind:
            wait_applied(cluster, "n2")
        for number in range(LAGS):
            store.create({"n": number})
            lsn = store.position().lsn
            with visible:
                until(lambda lsn=lsn: cluster.end("n2").lsn >= lsn, "the replica has it", WAIT_S)  # type: ignore[misc]
        wait_applied(cluster, "n2")
        assert cluster.state_of("n2") == cluster.state_of("n1")
        until(lambda: [one.lag_events for one in status_of(cluster).replicas] == [0], "the lag is nothing")
    note(sessions=count, arrives=visible.figures(), behind_the_load=behind.figures())


def test_05_the_data_is_intact_and_the_store_verifies(
    store: SessionStore, path: Path, count: int, seed: int, note: Callable[..., None]
) -> None:
    made = load(store, count)
    rng, times = random.Random(seed), Times()
    for id in rng.sample(sorted(made), count // 10):
        made[id] = -made[id]
        with times:
            store.update(id, lambda session: session.merge({"n": -session.metadata["n"]}))
    assert held(store) == made
    before = mark_of(store)
    store.close()
    assert summarise(verify(path, level="chain")).exit_code == 0
    with perdure.open(path, create=False) as again:
        assert mark_of(again) == before
        assert held(again) == made
    note(sessions=count, update=times.figures())


def test_06_half_of_the_sessions_expire_and_the_others_stay(
    store: SessionStore, count: int, note: Callable[..., None]
) -> None:
    times, cleaning = Times(), Times()
    living, ending = set[str](), set[str]()
    for first in range(0, count, BATCH):
        with store.batch() as batch:
            for number in range(first, first + BATCH):
                is_short = number % 2 == 0
                id = batch.create({"n": number}, timeout_ms=SHORT_MS if is_short else 3_600_000)
                (ending if is_short else living).add(id)
    last = time.time() * 1000 + SHORT_MS
    until(lambda: time.time() * 1000 > last + SHORT_MS + 20, "their time is up", WAIT_S)
    with times:
        assert {session.id for session in store.sessions()} == living
    with cleaning:
        expired = store.cleanup_expired(count)
    assert set(store.ids()) == living
    assert (expired, store.count()) == (len(ending), len(living))
    with Times():
        assert store.cleanup_expired(count) == 0
    note(sessions=count, cleanup=cleaning.figures(), scan=times.figures())


def test_07_half_of_the_sessions_are_deleted_and_the_others_stay(
    store: SessionStore, path: Path, count: int, note: Callable[..., None]
) -> None:
    made, times = load(store, count), Times()
    for id in sorted(made)[::2]:
        with times:
            assert store.delete(id)
        del made[id]
    assert held(store) == made
    store.close()
    with perdure.open(path, create=False) as again:
        assert held(again) == made
    note(sessions=count, delete=times.figures())


def test_08_a_replica_is_promoted_with_all_sessions(
    tmp_path: Path, backend: str, count: int, note: Callable[..., None]
) -> None:
    with cluster_of(tmp_path, 3, backend=backend) as cluster:
        cluster.start_all()
        store = cluster.open("n1")
        made = load(store, count)
        before, digest = store.position(), store.stats()["digest"]
        wait_applied(cluster, "n2", "n3")
        wait_acknowledged(cluster, "n2", "n3")
        took_ms = fail_over(cluster, "n2", "n3")
        with SessionStore.open(cluster.path("n2"), create=False) as promoted:
            assert held(promoted) == made
            assert promoted.stats()["digest"] == digest
            assert promoted.position() > before
            assert promoted.stats()["is_primary"]
            assert promoted.exists(promoted.create({"n": -1}))
    note(sessions=count, promotion_ms=took_ms)


def test_09_the_figures_of_store_and_replication_agree(
    tmp_path: Path, backend: str, count: int, note: Callable[..., None]
) -> None:
    times = Times()
    with cluster_of(tmp_path, 2, backend=backend) as cluster:
        cluster.start_all()
        store = cluster.open("n1")
        made = load(store, count)
        wait_applied(cluster, "n2")
        until(lambda: [one.lag_events for one in status_of(cluster).replicas] == [0], "the lag is nothing")
        for _ in range(20):
            with times:
                store.stats()
        stats = store.stats()
        status = status_of(cluster)
        assert stats["sessions"] == len(made) == len(list(store.ids()))
        assert status.appended_lsn == stats["appended_lsn"] == store.position().lsn
        assert [one.node for one in status.replicas] == ["n2"]
        assert status.replicas[0].acked_lsn == stats["appended_lsn"]
        assert cluster.state_of("n2")[0] == stats["appended_lsn"]
    note(sessions=count, stats=times.figures())


def test_10_after_a_failover_all_that_was_confirmed_is_there(
    tmp_path: Path, backend: str, count: int, note: Callable[..., None]
) -> None:
    times = Times()
    with cluster_of(tmp_path, 3, sync_replicas=1, backend=backend) as cluster:
        cluster.start_all()
        store = cluster.open("n1")
        made = load(store, count)
        confirmed: dict[str, int] = {}
        for number in range(LAGS):
            with times:
                confirmed[store.put(f"load-late-{number}", {"n": number}, None).id] = number
        ends = {name: cluster.end(name).lsn for name in ("n2", "n3")}
        furthest = max(ends, key=lambda name: ends[name])
        other = "n3" if furthest == "n2" else "n2"
        took_ms = fail_over(cluster, furthest, other)
        cluster.start(cluster.shipper(furthest, to=(other,)))  # so that the other one confirms what it has
        promoted = cluster.open(furthest)
        expected = {**made, **confirmed}
        until(lambda: promoted.count() >= len(expected), "the last frames are committed", WAIT_S)
        assert held(promoted) == expected
        some = random.Random(count).sample(sorted(made), 10)
        assert [one.metadata["n"] for id in some if (one := promoted.get(id))] == [made[id] for id in some]
        assert promoted.exists(promoted.create({"n": -1}))
    note(sessions=count, confirmed_put=times.figures(), promotion_ms=took_ms)


def test_11_concurrent_operations_on_a_full_store_add_up(
    store: SessionStore, path: Path, count: int, note: Callable[..., None]
) -> None:
    made = load(store, count)
    began = time.perf_counter()
    parts = run_all("mix", path, max(SMALL, count // 10) // WORKERS, WORKERS, WAIT_S * 2)
    took_s = time.perf_counter() - began
    times = Times([time_us for part in parts for time_us in part["times_us"]])
    updates = [id for part in parts for id in part["updates"]]
    found = {one.id: one for one in store.sessions()}
    assert {id for id in found if id.startswith("load-")} == set(made)
    assert {id: found[id].metadata["hits"] for id in made} == {**dict.fromkeys(made, 0), **_counted(updates)}
    created = [id for part in parts for id in part["created"]]
    assert len(set(created)) == len(created)
    assert set(found) == set(made) | set(created)
    note(sessions=count, call=times.figures(), calls_per_s=round(len(times.times_us) / took_s))


def _counted(ids: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for id in ids:
        found[id] = found.get(id, 0) + 1
    return found


def test_12_memory_and_disk_for_each_session_are_bounded(
    store: SessionStore, path: Path, count: int, note: Callable[..., None]
) -> None:
    made = load(store, count)
    store.fold()
    (seen,) = run_all("size", path, 1, 1, WAIT_S)
    assert seen["sessions"] == len(made)
    on_disk = sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())
    assert seen["bytes"] / count < 1_000 + 30_000_000 / count  # nobody holds all of them in memory
    note(
        sessions=count,
        memory_bytes_each=round(seen["bytes"] / count, 1),
        disk_bytes_each=round(on_disk / count, 1),
    )


def test_13_batches_are_whole_on_every_replica(
    tmp_path: Path, backend: str, count: int, note: Callable[..., None]
) -> None:
    times = Times()
    with cluster_of(tmp_path, 3, backend=backend) as cluster:
        cluster.start_all()
        store = cluster.open("n1")
        made = load(store, count, times)
        for name in ("n2", "n3"):  # at whatever batch it is now
            seen = len(replica_holds(cluster, name))
            assert seen % BATCH == 0
        wait_applied(cluster, "n2", "n3")
        expected = cluster.state_of("n1")
        for name in ("n2", "n3"):
            assert cluster.state_of(name) == expected
            assert replica_holds(cluster, name) == made
    note(sessions=count, batch=times.figures())


def test_14_many_workers_create_sessions_at_once(
    store: SessionStore, path: Path, count: int, note: Callable[..., None]
) -> None:
    began = time.perf_counter()
    parts = run_all("threads", path, count // WORKERS, WORKERS, WAIT_S * 2)
    took_s = time.perf_counter() - began
    ids = [id for part in parts for id in part["ids"]]
    assert len(ids) == len(set(ids)) == count
    assert list(store.ids()) == sorted(ids)
    numbers: dict[int, set[int]] = {worker: set() for worker in range(WORKERS)}
    for one in store.sessions():
        numbers[one.metadata["by"]].add(one.metadata["n"])
    assert numbers == {worker: set(range(count // WORKERS)) for worker in range(WORKERS)}
    note(sessions=count, workers=WORKERS * THREADS, sessions_per_s=round(count / took_s))


def test_15_one_session_lives_its_whole_life_before_another_process(
    store: SessionStore, path: Path, count: int, note: Callable[..., None]
) -> None:
    made = load(store, count)
    times = Times()

    def rename(id: str) -> str:
        return store.regenerate_id(id)

    steps: list[tuple[Callable[[], object], dict[str, Any] | None]] = [
        (lambda: store.put("seen", {"n": 1}), {"n": 1}),
        (lambda: store.get("seen"), {"n": 1}),
        (lambda: store.update("seen", lambda session: session.merge({"m": 2})), {"n": 1, "m": 2}),
        (lambda: store.patch("seen", {"n": 3}), {"n": 3, "m": 2}),
        (lambda: store.touch("seen"), {"n": 3, "m": 2}),
        (store.fold, {"n": 3, "m": 2}),
        (lambda: take_snapshot(path), {"n": 3, "m": 2}),
        (lambda: rename("seen"), None),
        (lambda: store.put("seen", {"n": 4}), {"n": 4}),
        (lambda: store.delete("seen"), None),
        (lambda: store.delete("seen"), None),
    ]
    with start("follow", path, len(steps)) as other:
        assert other.stdin is not None and other.stdout is not None
        try:
            for step, expected in steps:
                with times:
                    step()
                other.stdin.write("look\n")
                other.stdin.flush()
                assert json.loads(other.stdout.readline()) == expected
            other.communicate(timeout=WAIT_S)
            assert other.returncode == 0
        finally:
            if other.poll() is None:
                other.kill()
    renamed: list[Session] = list(store.sessions(lambda one: not one.id.startswith("load-")))
    assert [one.metadata for one in renamed] == [{"n": 3, "m": 2}]
    assert held(store) == made
    note(sessions=count, step=times.figures())
