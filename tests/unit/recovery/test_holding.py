"""While one node's sessions are read, the images of the others are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from perdure.recovery import OpsService, reconcile
from perdure.recovery.node_sessions import OwnSessions, PeerSessions
from perdure.recovery.reconcile import compare
from perdure.recovery.state_pass import Buckets
from perdure.shipping.messages_ops import PassAsk
from perdure.shipping.server_client import ServerClient
from perdure.store import SessionStore, WireError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with SessionStore.open(tmp_path / "s") as store:
        for number in range(20):
            store.put(f"s{number}", {}, None)
    return tmp_path / "s"


class Noting(OwnSessions):
    """Notes who is held while it is read."""

    def __init__(self, store: Path, node: str, held: list[str]) -> None:
        super().__init__(store, node)
        self.held = held

    def add_up(self, on_read: Any) -> Buckets:
        del self.held[:]
        sums = super().add_up(on_read)
        self.held.append(f"{self.node} was read")
        return sums

    def hold(self) -> None:
        self.held.append(self.node)


def test_whoever_waits_is_held_while_another_one_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "HOLD_S", -1.0)
    held: list[str] = []
    found = compare([Noting(path, name, held) for name in ("n1", "n2", "n3")])
    assert found.is_consistent
    assert held == ["n1", "n2", "n3 was read"]


class Direct:
    """A ServerClient that asks the handlers of this process."""

    def __init__(self, service: OpsService) -> None:
        self.handlers = service.handlers()
        self.is_gone = False

    def ask(self, message: Any, _kind: type, payload: bytes = b"", *, timeout_ms: int = 0) -> Any:
        if self.is_gone:
            raise WireError("no answer")
        return self.handlers[type(message)](message, payload)


def test_a_node_that_is_told_so_keeps_an_image(path: Path) -> None:
    service = OpsService(path)
    try:
        client = Direct(service)
        peer = PeerSessions(cast(ServerClient, client), "n2")
        peer.take()
        (kept,) = service._passes.values()
        kept.asked_s = 0.0
        peer.hold()
        assert kept.asked_s > 0
        client.is_gone = True
        peer.hold()  # what is wrong is said when it is asked for
        with pytest.raises(WireError):
            client.ask(PassAsk(), object)
    finally:
        service.close()
