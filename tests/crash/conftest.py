"""What every crash test needs: the shim, compiled once, and a folder in memory of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults.explore import quick_place
from tests.support.faults.powercut import reason_not_to_mount
from tests.support.faults.shim import NoCompilerError, build_shim
from tests.support.faults.workload import end_zygotes


@pytest.fixture(scope="session")
def shim() -> Path:
    """The compiled fault shim."""
    try:
        return build_shim()
    except NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture
def workdir() -> Iterator[Path]:
    """A folder for runs, in memory if there is room."""
    place = Path(tempfile.mkdtemp(prefix="perdure-crash-", dir=quick_place()))
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="session")
def mounts() -> None:
    """File systems of our own can be mounted here."""
    reason = reason_not_to_mount()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module", autouse=True)
def _no_zygote_stays() -> Iterator[None]:
    yield
    end_zygotes()
