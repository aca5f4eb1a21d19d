"""Bells: who waits is woken by a ring from another process, and by the timeout where none can come."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.store import bell
from perdure.store.page import ControlPage

DEADLINE_S = 20.0
RINGING = """
import sys
from pathlib import Path
from perdure.store.page import ControlPage
page = ControlPage(Path(sys.argv[1]), "boot")
for _ in sys.stdin:
    page.sync_bell.ring()
    print("rung", flush=True)
"""

needs_futex = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a wait is a short sleep, which nothing ends"
)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[ControlPage]:
    opened = ControlPage(tmp_path / "control", "boot")
    yield opened
    opened.close()


@needs_futex
def test_a_wait_is_ended_by_the_ring_of_another_process(page: ControlPage) -> None:
    heard = page.sync_bell.heard()
    waiting = threading.Thread(target=page.sync_bell.wait, args=(heard, 10 * DEADLINE_S), daemon=True)
    waiting.start()
    ringing = subprocess.Popen(
        [sys.executable, "-c", RINGING, str(page.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert ringing.stdin is not None and ringing.stdout is not None
        ringing.stdin.write("ring\n")
        ringing.stdin.flush()
        assert ringing.stdout.readline() == "rung\n"
        waiting.join(DEADLINE_S)
        assert not waiting.is_alive()
    finally:
        ringing.kill()
        ringing.communicate()


@needs_futex
def test_a_wait_for_a_ring_that_was_already_is_none(
    page: ControlPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_seconds: float) -> None:
        raise AssertionError("it sleeps")

    monkeypatch.setattr(time, "sleep", never)
    heard = page.sync_bell.heard()
    page.sync_bell.ring()
    waiting = threading.Thread(target=page.sync_bell.wait, args=(heard, 10 * DEADLINE_S), daemon=True)
    waiting.start()
    waiting.join(DEADLINE_S)
    assert not waiting.is_alive()


def test_a_wait_without_a_ring_ends_at_its_timeout(page: ControlPage) -> None:
    page.sync_bell.wait(page.sync_bell.heard(), 0.001)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_where_the_system_refuses_a_wait_the_next_is_a_short_sleep(
    page: ControlPage, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    slept: list[float] = []
    calls: list[int] = []

    def refused(operation: int, _value: int, _timeout_s: float) -> int:
        calls.append(operation)
        return error

    monkeypatch.setattr(bell, "_make_futex", lambda _memory, _offset: refused)
    monkeypatch.setattr(time, "sleep", slept.append)
    for _ in range(3):
        page.sync_bell.wait(page.sync_bell.heard(), 5.0)
    page.sync_bell.ring()
    assert len(calls) == 1
    assert slept == [bell.SLEEP_S] * 2


@pytest.mark.parametrize(
    ("platform", "machine"), [("darwin", "arm64"), ("linux", "mips")], ids=["no Linux", "unknown machine"]
)
def test_where_no_futex_is_known_a_wait_is_a_short_sleep(
    page: ControlPage, monkeypatch: pytest.MonkeyPatch, platform: str, machine: str
) -> None:
    class Names:
        def __init__(self) -> None:
            self.machine = machine

    slept: list[float] = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("os.uname", Names)
    monkeypatch.setattr(time, "sleep", slept.append)
    page.sync_bell.ring()
    page.sync_bell.wait(page.sync_bell.heard(), 5.0)
    assert slept == [bell.SLEEP_S]


def test_a_page_with_a_bell_that_was_used_can_be_closed(tmp_path: Path) -> None:
    page = ControlPage(tmp_path / "control", "boot")
    page.sync_bell.ring()
    page.sync_bell.wait(page.sync_bell.heard(), 0.001)
    page.close()
    with pytest.raises(ValueError, match="released"):
        page.sync_bell.heard()
