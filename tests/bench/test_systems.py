"""What every compared system must do, so that the comparison compares the same things.

A system that can't run here is skipped with the reason that it gives itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.systems import SYSTEMS, system_named
from bench.systems.memory import own_bytes
from bench.systems.ports import Client, Durability, Fields, RandomIds, Running, System

FIELDS: Fields = {"user": 7, "name": "Zoë", "roles": ["reader", "writer"], "none": None, "on": True}
DEADLINE_S = 10.0

each_setting = pytest.mark.parametrize(
    ("system", "durability"),
    [
        pytest.param(system, durability, id=f"{system.name}-{durability.value}")
        for system in SYSTEMS
        for durability in system.settings
    ],
)


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


@each_setting
def test_a_session_is_created_changed_touched_and_deleted(system: System, running: Running) -> None:
    client = system.connect(running.address)
    id = client.create(FIELDS)
    assert client.get(id) == FIELDS
    client.update(id, {"on": False, "visits": 3})
    assert client.get(id) == {**FIELDS, "on": False, "visits": 3}
    client.touch(id)
    assert client.get(id) == {**FIELDS, "on": False, "visits": 3}
    client.delete(id)
    assert client.get(id) is None
    client.close()


@each_setting
def test_a_batch_is_listed_and_what_is_due_is_removed(system: System, running: Running) -> None:
    client = system.connect(running.address)
    kept = client.create_many([{**FIELDS, "user": number} for number in range(100)])
    assert len(set(kept)) == 100
    assert client.get(kept[99]) == {**FIELDS, "user": 99}
    due = client.create_due([FIELDS] * 50)
    assert _removed(client, len(due)) == 50
    assert sorted(client.ids()) == sorted(kept)
    assert client.get(due[0]) is None
    client.close()


@each_setting
def test_what_one_client_writes_another_reads_and_it_is_there_after_a_restart(
    system: System, durability: Durability, running: Running
) -> None:
    one, two = system.connect(running.address), system.connect(running.address)
    id = one.create(FIELDS)
    assert two.get(id) == FIELDS
    assert durability is Durability.NONE or sum(running.disk_bytes().values()) > 0
    assert own_bytes(running.pids or [os.getpid()]) > 0
    one.close()
    two.close()
    if durability is Durability.NONE:
        return
    running.stop()
    running.start_again()
    client = system.connect(running.address)
    assert client.get(id) == FIELDS
    client.close()


def test_every_system_has_a_name_of_its_own_by_which_it_is_found() -> None:
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)
    for system in SYSTEMS:
        assert system_named(system.name) is system
        assert system.settings


def test_random_ids_are_of_128_bits_and_differ() -> None:
    ids = RandomIds()
    taken = {ids.take() for _ in range(600)}
    assert len(taken) == 600
    assert {len(id) for id in taken} == {32}


def _removed(client: Client, count: int) -> int:
    """Cleans up until so many are gone: the clock of a system may not have passed their time yet."""
    deadline_s = time.monotonic() + DEADLINE_S
    removed = 0
    while removed < count and time.monotonic() < deadline_s:
        removed += client.expire_due()
    return removed
