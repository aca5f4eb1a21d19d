"""What every test shares: the seed of random tests, and the check that a run leaves no child process behind.

Owns no fake and no store; those stand in tests/support. Invariant: a random test can be run again exactly,
by its printed seed.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support.template import template

SEED_VARIABLE = "PERDURE_SEED"
hypothesis.settings.register_profile("perdure", deadline=None)  # how long an example takes says nothing here
hypothesis.settings.load_profile("perdure")
CHILD_GRACE_S = 5.0  # how long a child that is already ending may take
KEPT_BY_PYTHON = (
    "multiprocessing.resource_tracker",
    "multiprocessing.forkserver",
)  # they end with this process


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of a random test: PERDURE_SEED where it is set (decimal or 0x...), otherwise a new one.

    It is printed and kept as a property of the test, so that a failure names it.
    """
    given = os.environ.get(SEED_VARIABLE)
    value = int(given, 0) if given else secrets.randbits(32)
    request.node.user_properties.append(("seed", value))
    print(f"{SEED_VARIABLE}={value}")
    return value


@pytest.fixture(scope="session", autouse=True)
def _no_child_left_behind() -> Iterator[None]:
    """Fail the last test of this process (a worker, in a distributed run) when children of it remain."""
    yield
    left = _children_left()
    template.close()
    if left:
        pytest.fail(
            "child processes left behind: " + "; ".join(f"{pid} ({command})" for pid, command in left)
        )


def _children_left() -> list[tuple[int, str]]:
    """The live children of this process, once those that are ending have had CHILD_GRACE_S to do so."""
    deadline_s = time.monotonic() + CHILD_GRACE_S
    while (left := _live_children()) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return left


def _live_children() -> list[tuple[int, str]]:
    return [
        (pid, command)
        for pid in _child_pids()
        if (command := _command_of(pid)) and not any(kept in command for kept in KEPT_BY_PYTHON)
    ]


def _child_pids() -> list[int]:
    """The children of this process and of its template; none where the kernel does not list them."""
    forks = template.process.pid if template.process is not None else 0
    pids: list[int] = []
    for parent in filter(None, (os.getpid(), forks)):
        for listing in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                pids.extend(int(word) for word in listing.read_text().split())
            except OSError:
                continue  # the thread has ended
    return [pid for pid in pids if pid != forks]


def _command_of(pid: int) -> str:
    """Its command line; empty for a process that has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
