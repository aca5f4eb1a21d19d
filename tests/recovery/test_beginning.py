"""Making a first primary, killed at any step, is completed by the same command; nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.cli.init import make_node
from perdure.recovery import list_members
from perdure.store import Config, NoQuorumError, NotPrimaryError, SessionStore, UsageError
from perdure.store.identity import read_identity
from perdure.store.witness import make_witness, read_witness
from tests.unit.shipping.test_replacing import Crash, dying_at

CLUSTER = bytes(range(16))
CONFIG = Config(("n1", "n2"), 1, is_auto=True)


def files_of(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.parts[len(store.parts)] in ("identity", "log", "promise")
    }


def begin(store: Path, config: Config = CONFIG, cluster_id: bytes | None = None) -> bytes:
    return make_node(store, "n1", cluster_id, "sqlite", config).cluster_id


def refused(store: Path, config: Config = CONFIG, cluster_id: bytes | None = None) -> None:
    before = files_of(store)
    with pytest.raises(UsageError, match="a store already") as caught:
        begin(store, config, cluster_id)
    assert str(store) in str(caught.value) and "directory that is empty" in str(caught.value.hint)
    assert files_of(store) == before


def test_killed_at_any_step_the_same_making_again_completes_it(tmp_path: Path) -> None:
    with dying_at(1 << 30) as count:
        begin(tmp_path / "whole")
    steps = count()
    assert steps > 20
    for step in range(1, steps + 1):
        store = tmp_path / f"{step:04}"
        with pytest.raises(Crash), dying_at(step):
            begin(store)
        begun = read_identity(store).cluster_id if (store / "identity").exists() else None
        made = begin(store)
        assert begun in (None, made), step
        found = list_members(store)
        assert (found.role, found.voters, found.sync_replicas) == ("primary", ("n1", "n2"), 1), step
        with SessionStore.open(store, create=False) as opened:
            assert opened.count() == 0, step
        assert len(os.listdir(store / "log")) == 2, step


def test_an_application_that_opens_what_was_broken_off_begins_nothing_and_is_told(tmp_path: Path) -> None:
    with dying_at(1 << 30) as count:
        begin(tmp_path / "whole")
    refusals: set[str] = set()
    for step in range(1, count() + 1):
        store = tmp_path / f"{step:04}"
        with pytest.raises(Crash), dying_at(step):
            begin(store)
        if not (store / "identity").exists():
            continue
        try:
            with SessionStore.open(store, create=False) as opened:
                opened.create({"n": 1})
                assert list_members(store).voters == ("n1", "n2"), step
        except NoQuorumError:
            assert list_members(store).voters == ("n1", "n2"), step
        except NotPrimaryError as error:
            refusals.add(str(error))
        begin(store)
        assert list_members(store).voters == ("n1", "n2"), step
    assert any("perdure init" in text for text in refusals)


def test_the_same_making_of_a_whole_one_changes_nothing(tmp_path: Path) -> None:
    made = begin(tmp_path / "n1")
    before = files_of(tmp_path / "n1")
    assert begin(tmp_path / "n1") == begin(tmp_path / "n1", cluster_id=made) == made
    assert files_of(tmp_path / "n1") == before


def test_another_making_of_what_is_there_is_refused(tmp_path: Path) -> None:
    begin(tmp_path / "n1")
    refused(tmp_path / "n1", Config(("n1", "n2"), 0))
    refused(tmp_path / "n1", cluster_id=CLUSTER)


def test_a_store_that_was_written_to_is_refused(tmp_path: Path) -> None:
    alone = Config(("n1",), 0)
    begin(tmp_path / "n1", alone)
    with SessionStore.open(tmp_path / "n1") as store:
        store.create({"n": 1})
    refused(tmp_path / "n1", alone)


def test_a_log_that_somebody_removed_is_not_begun_anew(tmp_path: Path) -> None:
    alone = Config(("n1",), 0)
    begin(tmp_path / "n1", alone)
    with SessionStore.open(tmp_path / "n1") as store:
        store.create({"n": 1})
        store.fold()
    for file in (tmp_path / "n1" / "log").iterdir():
        file.unlink()
    refused(tmp_path / "n1", alone)


@pytest.mark.parametrize("name", ["receiver.lock", "rebuild", "slots/n2.slot", "snapshots/x"])
def test_a_directory_that_was_in_use_is_refused(tmp_path: Path, name: str) -> None:
    begin(tmp_path / "n1")
    (tmp_path / "n1" / name).write_bytes(b"")
    refused(tmp_path / "n1")


def test_an_empty_replica_is_not_made_a_primary(tmp_path: Path) -> None:
    make_node(tmp_path / "n1", "n1", CLUSTER, "sqlite", None)
    refused(tmp_path / "n1")
    refused(tmp_path / "n1", cluster_id=CLUSTER)


def test_a_replica_and_a_witness_killed_before_they_were_there_are_made_again(tmp_path: Path) -> None:
    for step in range(1, 100):
        store = tmp_path / f"n{step}"
        try:
            with dying_at(step):
                make_node(store, "n2", CLUSTER, "sqlite", None)
            break
        except Crash:
            if not (store / "identity").exists():
                make_node(store, "n2", CLUSTER, "sqlite", None)
        assert read_identity(store).cluster_id == CLUSTER
    for step in range(1, 100):
        witness = tmp_path / f"w{step}"
        try:
            with dying_at(step):
                make_witness(witness, "w", CLUSTER, 1)
            break
        except Crash:
            if not (witness / "witness").exists():
                make_witness(witness, "w", CLUSTER, 1)
        assert read_witness(witness).cluster_id == CLUSTER
