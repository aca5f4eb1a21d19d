"""Vital signs: a node's role from page and promise, and a disk that does not answer, told without waiting."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.shipping import open_node_log
from perdure.shipping.nodelog import NodeLog
from perdure.shipping.vitals import VitalSigns
from perdure.store import Config, begin_cluster, init_store
from perdure.store.page import Word
from perdure.store.promise import Promise

CLUSTER = bytes(range(16))
STALL_MS = 500


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeLog]:
    init_store(tmp_path / "n1", node="n1", cluster_id=CLUSTER, now_ms=1_700_000_000_000)
    found = open_node_log(tmp_path / "n1", [])
    found.log.lock_any()
    begin_cluster(found.log, Config(("n1", "n2", "n3"), 1))
    found.log.unlock()
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def signs(node: NodeLog) -> Iterator[VitalSigns]:
    found = VitalSigns(node.store, "n1", disk_stall_ms=STALL_MS)
    try:
        yield found
    finally:
        found.close()


def until(is_so: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        if time.monotonic() > deadline:
            pytest.fail(what)
        time.sleep(0.01)


def test_the_primary_is_who_was_promised_the_logs_epoch(node: NodeLog, signs: VitalSigns) -> None:
    until(lambda: signs.look(0).is_primary, "it is primary")
    assert signs.look(0).is_fit
    assert signs.look(0).epoch == 1
    node.log.lock_any()
    node.log.give_promise(Promise(2, "n2"))
    node.log.unlock()
    until(lambda: not signs.has_news and signs.look(0).promise == Promise(2, "n2"), "the promise is seen")
    assert not signs.look(0).is_primary


def test_a_primary_that_gave_up_its_epoch_is_none(node: NodeLog, signs: VitalSigns) -> None:
    until(lambda: signs.look(0).is_primary, "it is primary")
    node.log.words[Word.GIVEN_UP] = 1
    node.log.page.bump()
    assert not signs.look(0).is_primary
    node.log.refresh_role()
    assert not node.log.is_primary
    node.log.words[Word.GIVEN_UP] = 0
    node.log.page.bump()
    node.log.refresh_role()
    assert node.log.is_primary


def test_a_disk_that_hangs_is_said_after_its_time_and_nothing_waits_for_it(node: NodeLog) -> None:
    probe = node.store / "probe"
    os.mkfifo(probe)  # whoever opens it for writing hangs there
    signs = VitalSigns(node.store, "n1", disk_stall_ms=STALL_MS)
    try:
        until(lambda: signs.look(0).promise.epoch == 1, "the thread has come to its probe")
        assert signs.look(0).failing == ""
        assert signs.look(STALL_MS - 1).failing == ""
        assert "has not answered" in signs.look(STALL_MS).failing
        assert "has not answered" in signs.look(STALL_MS).failing
    finally:
        with probe.open("rb"):
            probe.unlink()
    until(lambda: signs.look(STALL_MS).failing == "", "it answers again")
    signs.close()


def test_a_log_that_is_not_flushed_while_replicas_follow_is_a_stall(node: NodeLog, signs: VitalSigns) -> None:
    until(lambda: 0 < signs._begun == signs._ended, "the disk has answered")
    signs._is_over = True  # and is no matter any more
    signs._wake.set()
    signs._thread.join()
    assert signs._begun == signs._ended
    words = node.log.words
    words[Word.APPENDED] += 1
    assert signs.look(0).failing == ""
    assert signs.look(10 * STALL_MS).failing == ""  # nobody ships: nothing has to be flushed
    words[Word.SHIPPER], words[Word.VOTERS_CONNECTED] = os.getpid(), 1
    assert signs.look(10 * STALL_MS).failing == ""
    assert "not on disk" in signs.look(11 * STALL_MS).failing
    words[Word.FLUSHED] += 1
    assert signs.look(11 * STALL_MS).failing == ""


def test_a_failed_sync_is_said_at_once(node: NodeLog, signs: VitalSigns) -> None:
    until(lambda: signs.look(0).is_primary, "it is primary")
    node.log.flusher.poison("a test")
    seen = signs.look(0)
    assert (seen.is_primary, seen.is_fit, seen.failing) == (False, False, "a sync to disk failed")
