"""Whoever runs in these tests answers what it is asked, however busy the machine is: it is waited for."""

from __future__ import annotations

import importlib
from functools import partial

import pytest

from perdure.recovery.voters import WireVoters

PATIENCE_MS = 30_000


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    promote = importlib.import_module("perdure.recovery.promote")  # its name in the package is the function
    monkeypatch.setattr(promote, "WireVoters", partial(WireVoters, timeout_ms=PATIENCE_MS))
    monkeypatch.setattr("perdure.recovery.switchover.AFTER_MS", PATIENCE_MS)
