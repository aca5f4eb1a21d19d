"""What every compared system must do, so that the comparison compares the same things.

A system that can't run here is skipped with the reason that it gives itself.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import cast

import pytest
from _pytest.mark import ParameterSet

from bench import redis_peer
from bench.restarts import DriverReopened
from bench.systems import DRIVERS, SYSTEMS, system_named
from bench.systems.memory import own_bytes
from bench.systems.ports import (
    LIFETIME_MS,
    Client,
    Driver,
    DriverCase,
    Durability,
    Fields,
    Pair,
    PairDriving,
    RandomIds,
    Running,
    System,
)
from bench.systems.processes import ServerError, ServerProcess
from bench.systems.redis import Redis, RedisPair
from bench.systems.sqlite import Sqlite

SYSTEMS_ROOM = Path(__file__).parents[2] / "bench" / "systems"
FIELDS: Fields = {"user": 7, "name": "Zoë", "roles": ["reader", "writer"], "none": None, "on": True}
DEADLINE_S = 10.0

QUICK = {"redis": Durability.DISK, "postgresql": Durability.DISK}
"""Of systems whose start takes long, the one setting that every run of the tests tries."""


def settings(*, pairs_only: bool = False) -> list[ParameterSet]:
    """Each system in each of its durability classes; those that take long are marked."""
    found = []
    for system in SYSTEMS:
        for durability in system.settings:
            is_pair = durability in (Durability.TWO, Durability.TWO_DISKS)
            is_long = is_pair or QUICK.get(system.name, durability) is not durability
            if is_pair or not pairs_only:
                marks = [pytest.mark.lab] if is_long else []
                found.append(
                    pytest.param(system, durability, id=f"{system.name}-{durability.value}", marks=marks)
                )
    return found


@pytest.fixture
def running(system: System, durability: Durability, tmp_path: Path) -> Iterator[Running]:
    reason = system.why_not()
    if reason:
        pytest.skip(reason)
    started = system.start(tmp_path, durability)
    try:
        yield started
    finally:
        started.close()
    for pid in started.pids:
        assert not Path(f"/proc/{pid}").exists(), f"{system.name} left process {pid} behind"


@pytest.mark.parametrize(("system", "durability"), settings())
def test_a_system_keeps_sessions_as_the_comparison_needs_it(
    system: System, durability: Durability, running: Running
) -> None:
    client, other = system.connect(running.address), system.connect(running.address)
    id = client.create(FIELDS)
    assert client.get(id) == FIELDS
    client.update(id, {"on": False, "visits": 3})
    client.touch(id)
    assert other.get(id) == {**FIELDS, "on": False, "visits": 3}

    kept = client.create_many([{**FIELDS, "user": number} for number in range(100)])
    assert len(set(kept)) == 100
    assert other.get(kept[99]) == {**FIELDS, "user": 99}
    due = client.create_due([FIELDS] * 50)
    assert _removed(client, len(due)) == 50
    assert client.get(due[0]) is None
    client.delete(id)
    assert client.get(id) is None
    assert sorted(client.ids()) == sorted(kept)

    assert durability is Durability.NONE or sum(running.disk_bytes().values()) > 0
    assert own_bytes(running.pids or [os.getpid()]) > 0
    client.close()
    other.close()
    running.stop()
    running.start_again()
    if durability is not Durability.NONE:
        client = system.connect(running.address)
        assert client.get(kept[0]) == {**FIELDS, "user": 0}
        client.close()


def test_a_session_of_1_kb_fits_into_a_page_of_sqlite_beside_others(tmp_path: Path) -> None:
    system, count = Sqlite(), 2_000
    started = system.start(tmp_path, Durability.OS)
    client = system.connect(started.address)
    client.create_many([{"user": number, "cart": "x" * 1_000} for number in range(count)])
    client.close()
    assert sum(started.disk_bytes().values()) / count < 2_000
    started.close()


def test_an_update_in_redis_leaves_every_field_as_it_was_but_those_it_sets(tmp_path: Path) -> None:
    if reason := Redis().why_not():
        pytest.skip(reason)
    started = Redis().start(tmp_path, Durability.NONE)
    try:
        client = Redis().connect(started.address)
        fields: Fields = {
            "none": None,
            "large": 2**63 - 1,
            "whole": 1.0,
            "empty": {},
            "list": [None, -1, [], {"é": 0.1}],
            "text": "\x81 none " * 10_000,
            "last": False,
        }
        id = client.create(fields)
        for changes in (
            {"last": None},
            {"none": "x" * 300, "last": 7, "text": "none"},
            {"page": 1, "whole": -2.5, "é" * 40: {"a": None}},
            {f"field {number}": number for number in range(5)},
            {"one more": None},
            {"sixteen": 2**64 - 1, "page": 2},
            {f"field {number}": [number] for number in range(3, 300)},
            {"field 299": "last", "none": None},
            {},
        ):
            client.update(id, changes)
            fields |= changes
            assert client.get(id) == fields
        client.update("of nobody", {"page": 1})
        assert client.get("of nobody") is None
        assert list(client.ids()) == [id]
        client.close()
    finally:
        started.close()


def test_an_update_in_redis_moves_the_expiry_as_a_touch_does(tmp_path: Path) -> None:
    if reason := Redis().why_not():
        pytest.skip(reason)
    started = Redis().start(tmp_path, Durability.NONE)
    try:
        client = Redis().connect(started.address)
        id = client.create(FIELDS)
        with import_module("redis").Redis(unix_socket_path=str(started.address["socket"])) as bare:
            bare.pexpire(id, 10_000)
            client.update(id, {"visits": 1})
            assert LIFETIME_MS - 10_000 < bare.pttl(id) <= LIFETIME_MS
        client.close()
    finally:
        started.close()


@pytest.mark.parametrize(("system", "durability"), settings(pairs_only=True))
def test_the_second_node_has_what_was_answered_and_takes_writes_after_the_first_was_killed(
    system: System, durability: Durability, running: Running
) -> None:
    pair = cast(Pair, running)
    client = system.connect(pair.address)
    id = client.create(FIELDS)
    pair.kill()
    client.close()
    pair.take_over()
    client = system.connect(pair.address)
    assert client.get(id) == FIELDS
    assert client.get(client.create(FIELDS)) == FIELDS
    client.close()


@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv is not installed (Debian: util-linux)")
def test_a_server_ends_with_whoever_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from processes import ServerProcess\n"
        "server = ServerProcess(['sleep', '600'], Path(sys.argv[1]) / 'said')\n"
        "server.start(lambda: Path(f'/proc/{server.pids[0]}/comm').read_text() == 'sleep\\n')\n"
        "print(server.pids[0], flush=True); time.sleep(600)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=SYSTEMS_ROOM, text=True
    )
    with starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        starter.kill()
    deadline_s = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline_s, f"process {pid} outlived the one that started it"
        time.sleep(0.01)


@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv is not installed (Debian: util-linux)")
def test_the_redis_of_the_figures_ends_with_whoever_started_it(tmp_path: Path) -> None:
    if reason := redis_peer.why_not():
        pytest.skip(reason)
    program = (
        "import sys, time; from pathlib import Path; from bench.redis_peer import RedisPair\n"
        "print(*RedisPair(Path(sys.argv[1])).pids, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as starter:
        assert starter.stdout is not None
        pids = starter.stdout.readline().split()
        starter.kill()
    assert len(pids) == 2
    deadline_s = time.monotonic() + DEADLINE_S
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline_s, f"processes {left} outlived the one that started them"
        time.sleep(0.01)


def test_a_server_that_does_not_start_says_its_last_words(tmp_path: Path) -> None:
    server = ServerProcess(["sh", "-c", "echo no such option; exit 3"], tmp_path / "said")
    with pytest.raises(ServerError, match="no such option"):
        server.start(lambda: False)
    assert server.pids == ()


@pytest.mark.parametrize(
    ("driver", "durability"),
    [
        pytest.param(
            driver,
            durability,
            id=f"{driver.name}-{durability.value}",
            marks=[] if driver.name == "ets-server" else [pytest.mark.lab],
        )
        for driver in DRIVERS
        for durability in driver.settings
    ],
)
def test_a_driver_times_each_call_and_keeps_its_sessions(
    driver: Driver, durability: Durability, tmp_path: Path
) -> None:
    reason = driver.why_not()
    if reason:
        pytest.skip(reason)
    started = driver.start(tmp_path, durability)
    pids = started.pids
    try:
        started.fill(300, 500)
        for operation in ("create", "get", "update", "touch", "delete"):
            run = started.run(DriverCase({operation: 1.0}, 60, callers=3))
            assert run.units == len(run.latencies_ns) == 60
            assert max(run.latencies_ns) / 1e9 <= run.seconds < DEADLINE_S
        mix = {"get": 0.5, "update": 0.25, "get_update": 0.25}
        assert started.run(DriverCase(mix, 90, is_zipfian=True)).units == 90
        assert started.run(DriverCase({"create_many": 1.0}, 200)).units == 200
        assert started.run(DriverCase({"expire_due": 1.0}, 50)).units == 50
        assert started.run(DriverCase({"ids": 1.0}, 2)).units == 600
        assert own_bytes(pids) > 1 << 20
        if durability is Durability.TWO:
            pair = cast(PairDriving, started)
            pair.kill()
            pair.take_over()
            assert pair.run(DriverCase({"ids": 1.0}, 1)).units >= 301
    finally:
        started.close()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("name", ["dets", "mnesia"])
def test_an_engine_of_erlang_has_its_sessions_again_after_a_stop_and_after_a_kill(
    name: str, tmp_path: Path
) -> None:
    driver = next(one for one in DRIVERS if one.name == name)
    if reason := driver.why_not():
        pytest.skip(reason)
    reopened = DriverReopened(driver, Durability.DISK, tmp_path, 300, math.inf)
    try:
        for _ in range(2):
            assert all(0 < seconds < DEADLINE_S for seconds in reopened.round().values())
    finally:
        reopened.close()


def test_an_engine_of_erlang_that_would_store_for_too_long_is_not_waited_for(tmp_path: Path) -> None:
    driver = next(one for one in DRIVERS if one.name == "mnesia")
    if reason := driver.why_not():
        pytest.skip(reason)
    with pytest.raises(TimeoutError, match="5,000 would take"):
        DriverReopened(driver, Durability.DISK, tmp_path, 5_000, 0.0)


def test_sessions_of_erlangs_tables_have_bytes_of_their_own(tmp_path: Path) -> None:
    driver = next(one for one in DRIVERS if one.name == "ets")
    if reason := driver.why_not():
        pytest.skip(reason)
    started = driver.start(tmp_path, Durability.NONE)
    try:
        before = own_bytes(started.pids)
        started.fill(5_000, 10_000)
        assert own_bytes(started.pids) - before > 5_000 * 10_000
    finally:
        started.close()


@pytest.mark.lab
@pytest.mark.parametrize(
    ("durability", "syncs"), [(Durability.TWO, "no"), (Durability.TWO_DISKS, "always")], ids=str
)
def test_both_nodes_of_redis_sync_where_their_class_asks_for_it(
    durability: Durability, syncs: str, tmp_path: Path
) -> None:
    if reason := RedisPair().why_not():
        pytest.skip(reason)
    pair = RedisPair().start(tmp_path, durability)
    try:
        assert _appendfsync(pair) == syncs
        pair.kill()
        pair.take_over()
        assert _appendfsync(pair) == syncs
    finally:
        pair.close()


def test_every_system_has_a_name_of_its_own_by_which_it_is_found() -> None:
    names = [system.name for system in SYSTEMS] + [driver.name for driver in DRIVERS]
    assert len(set(names)) == len(names)
    for system in SYSTEMS:
        assert system_named(system.name) is system
        assert system.settings


def test_random_ids_are_of_128_bits_and_differ() -> None:
    ids = RandomIds()
    taken = {ids.take() for _ in range(600)}
    assert len(taken) == 600
    assert {len(id) for id in taken} == {32}


def _appendfsync(pair: Pair) -> str:
    with import_module("redis").Redis(unix_socket_path=str(pair.address["socket"])) as client:
        return str(client.config_get("appendfsync")["appendfsync"])


def _removed(client: Client, count: int) -> int:
    """Cleans up until so many are gone: the clock of a system may not have passed their time yet."""
    deadline_s = time.monotonic() + DEADLINE_S
    removed = 0
    while removed < count and time.monotonic() < deadline_s:
        removed += client.expire_due()
    return removed
