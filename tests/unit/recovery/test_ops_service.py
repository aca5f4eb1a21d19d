"""What a server answers to operators: bounded, in errors of the tree; images that nobody asks for go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.recovery import OpsService, ops_service
from perdure.recovery.report import NodeReport
from perdure.recovery.state_pass import BUCKETS, Buckets, StatePass, pack_bits
from perdure.shipping.messages_ops import (
    AlignAsk,
    BucketsAsk,
    KeysAsk,
    LocateAsk,
    MendAsk,
    PassAsk,
    PassEnd,
    RecordsAsk,
    ReportAsk,
)
from perdure.store import BusyError, PerdureError, PositionGoneError, SessionStore, UsageError, WireError

COUNT = 300
STATE = (1, 5, 7, 9, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with SessionStore.open(tmp_path / "store") as store:
        for number in range(COUNT):
            store.put(f"s{number:03}", {"n": number})
    return tmp_path / "store"


@pytest.fixture
def service(path: Path) -> Iterator[OpsService]:
    made = OpsService(path)
    yield made
    made.close()


def ask(service: OpsService, message: Any, payload: bytes = b"") -> tuple[Any, bytes]:
    return service.handlers()[type(message)](message, payload)


def test_a_report_comes_back_as_it_went(service: OpsService) -> None:
    reply, data = ask(service, ReportAsk(False))
    report = msgspec.msgpack.decode(data, type=NodeReport)
    assert (reply.node, report.node, report.sessions, report.is_primary) == ("local", "local", COUNT, True)


def test_an_image_is_summed_named_and_read(service: OpsService) -> None:
    token = ask(service, PassAsk())[0].token
    reads = 0
    while True:
        reply, sums = ask(service, BucketsAsk(token, 70))
        reads += 1
        if reply.is_complete:
            break
    assert (reads, reply.records) == (COUNT // 70 + 1, COUNT)
    assert Buckets.unpack(sums).session_count == COUNT
    reply, data = ask(service, KeysAsk(token, COUNT + 1), pack_bits(range(BUCKETS)))
    keys = [key for key, _ in msgspec.msgpack.decode(data, type=list[tuple[bytes, int]])]
    assert (reply.is_complete, len(keys), keys) == (True, COUNT, sorted(keys))
    reply, data = ask(service, RecordsAsk(token), msgspec.msgpack.encode([b"s001", b"none"]))
    found = msgspec.msgpack.decode(data, type=list[bytes | None])
    assert reply.count == 2 and found[0] is not None and found[1] is None
    ask(service, PassEnd(token))
    with pytest.raises(PositionGoneError):
        ask(service, BucketsAsk(token, 1))


def test_more_images_than_are_kept_are_refused(service: OpsService) -> None:
    tokens = [ask(service, PassAsk())[0].token for _ in range(ops_service.PASSES_MAX)]
    with pytest.raises(BusyError):
        ask(service, PassAsk())
    ask(service, PassEnd(tokens[0]))
    ask(service, PassAsk())


def test_an_image_that_nobody_asks_for_is_given_up_by_itself(
    service: OpsService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops_service, "PASS_IDLE_S", 0.05)
    token = ask(service, PassAsk())[0].token
    deadline = time.monotonic() + 10
    while service._passes:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(PositionGoneError):
        ask(service, BucketsAsk(token, 1))


def test_an_image_that_takes_long_to_take_is_not_given_up_before_it_is_there(
    service: OpsService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops_service, "PASS_IDLE_S", -1.0)  # whatever is there has been idle for too long
    token = b""

    class Slow(StatePass):
        def __init__(self, store: Path) -> None:
            nonlocal token
            service._give_up_idle()
            (token,) = service._passes
            super().__init__(store)

    monkeypatch.setattr(ops_service, "StatePass", Slow)
    assert ask(service, PassAsk())[0].token == token


def test_an_image_that_is_there_when_the_server_has_ended_is_closed(
    service: OpsService, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[StatePass] = []

    class Late(StatePass):
        def __init__(self, store: Path) -> None:
            super().__init__(store)
            service.close()

        def close(self) -> None:
            closed.append(self)
            super().close()

    monkeypatch.setattr(ops_service, "StatePass", Late)
    with pytest.raises(BusyError, match="the server ends"):
        ask(service, PassAsk())
    assert len(closed) == 1


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x91", b"\xdc\xff\xff", b"\x93\x01\x02\x03", b"\xff" * 99]
)
def test_a_payload_that_is_none_is_refused_and_changes_nothing(
    service: OpsService, path: Path, payload: bytes
) -> None:
    token = ask(service, PassAsk())[0].token
    for message in (KeysAsk(token, 10), RecordsAsk(token), MendAsk(STATE, "n1")):
        with pytest.raises(WireError):
            ask(service, message, payload)
    assert not (path / "audit.log").exists()


@pytest.mark.parametrize("keys", [[], [b""], [b"k" * 1025], [b"k"] * 1001])
def test_keys_that_are_none_or_too_many_are_refused(service: OpsService, keys: list[bytes]) -> None:
    token = ask(service, PassAsk())[0].token
    with pytest.raises(UsageError):
        ask(service, RecordsAsk(token), msgspec.msgpack.encode(keys))
    with pytest.raises(UsageError):
        ask(service, MendAsk(STATE, "n1"), msgspec.msgpack.encode([(key, None) for key in keys]))


def test_absurd_positions_are_refused_in_errors_of_the_tree(service: OpsService) -> None:
    huge = (1 << 63, 1 << 63, 1 << 63, 1, 1)
    token = ask(service, PassAsk())[0].token
    assert not ask(service, AlignAsk(token, huge))[0].is_aligned
    with pytest.raises(PerdureError):
        ask(service, AlignAsk(token, (1, 0, 0, 0, 0)))
    assert not ask(service, LocateAsk((1 << 63, 1 << 63, 1)))[0].is_held
    with pytest.raises(PerdureError):
        ask(service, MendAsk(huge, "n1"), msgspec.msgpack.encode([(b"s001", None)]))
    with pytest.raises(PerdureError):
        ask(service, MendAsk((1, 3, 99, 0, 0), "n1"), msgspec.msgpack.encode([(b"s001", None)]))
