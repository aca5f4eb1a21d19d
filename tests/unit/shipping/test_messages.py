"""The codec: what goes in comes out, in whatever pieces; hostile bytes give WireError and little memory."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import strategies as st

from perdure.shipping import (
    messages,
    messages_forward,
    messages_health,
    messages_members,
    messages_ops,
    messages_rejoin,
    messages_server,
    messages_switchover,
    messages_witness,
)
from perdure.shipping.messages import (
    ENVELOPE,
    GREETING_BYTES_MAX,
    KINDS,
    MESSAGE_BYTES_MAX,
    WITH_PAYLOAD,
    Ack,
    Decoder,
    Frames,
    Greet,
    Message,
    encode_message,
    pack_payload,
    unpack_payload,
)
from perdure.store import WireError
from perdure.store.frame import FRAME_BYTES_MAX
from tests.support.fuzz import fuzz

POSITION = (3, 2**40, 2**64 - 1)
STATE = (3, 2**40, 2**64 - 1, 2**63, 17)
EXAMPLES: list[Message] = [
    messages.Greet("shipper", bytes(32)),
    messages.Challenge(bytes(32)),
    messages.Proof(bytes(32), bytes(32)),
    messages.Refusal("fenced", "no", 4, "n2"),
    messages.ShipHello("n1", 0, 3, False, POSITION, 7, [(1, 1), (3, 90)], ("n1", "n2"), 1),
    messages.ShipWelcome("n2", POSITION, 6, 5, [(1, 1)], 1),
    messages.Start(POSITION),
    messages.Cut(POSITION),
    messages.Frames(100, False, 9),
    messages.Heartbeat(9, 10, 1_700_000_000_000, 5),
    messages.Ack(POSITION, 8, 5),
    messages.Pause("full"),
    messages.Peers([("n2", 5, "streaming")]),
    messages.SnapshotOffer("x.snap", STATE, 1000, 1, 3, "n1", STATE, 50),
    messages.SnapshotWant(0, 5),
    messages.Piece(1, 0, 10, True),
    messages.PieceAck(0, 5),
    messages.StatusAsk(),
    messages.StatusReply("n2", 0, "replica", POSITION, 1, 1, 3, "n1", ("n1",), 1, 1, "n1", -1, ""),
    messages.PromiseAsk(4, "n2"),
    messages.PromiseReply(4, "n2", POSITION, 9, ""),
    messages.FetchAsk(POSITION, 1000),
    messages.FetchReply(0, POSITION),
    messages_rejoin.Parted("two primaries", True),
    messages_rejoin.KeysOffer(POSITION, STATE),
    messages_rejoin.KeysAsk(2),
    messages_rejoin.KeysReply(2),
    messages_rejoin.FactsAsk(),
    messages_rejoin.FactsReply("n1", True, POSITION, [(1, 1)], 1, [(1, 500)], 88, [(90, 80)], 70),
    messages_server.Failed("LockTimeoutError", "no", path="/p", lsn=4, position=POSITION, actual=3),
    messages_forward.PositionAsk(True, 100),
    messages_forward.ForwardAsk(bytes(16), 1, 3, True),
    messages_forward.ForwardReply(POSITION, True, False),
    messages_forward.OutcomeAsk(bytes(16), POSITION, 2, None, 100),
    messages_forward.OutcomeReply("lost"),
    messages_forward.RefreshAsk(),
    messages_forward.RefreshReply(5),
    messages_forward.SweepAsk(0),
    messages_forward.SweepReply(3, POSITION),
    messages_forward.PositionReply("n1", True, POSITION),
    messages_members.MemberAsk(messages_members.MemberStep.MEMBER, "n4", "10.0.0.4:7001", 2, "strict", 90),
    messages_members.MemberReply("n1"),
    messages_ops.ReportAsk(True),
    messages_ops.ReportReply("n1"),
    messages_ops.LocateAsk(POSITION),
    messages_ops.LocateReply("n2", POSITION, True, False, "why"),
    messages_ops.PassAsk(),
    messages_ops.PassReply(bytes(8), STATE),
    messages_ops.AlignAsk(bytes(8), STATE),
    messages_ops.AlignReply(True, STATE),
    messages_ops.BucketsAsk(bytes(8), 1000),
    messages_ops.BucketsReply(1000, True),
    messages_ops.KeysAsk(bytes(8), 1000),
    messages_ops.KeysReply(1000, False),
    messages_ops.RecordsAsk(bytes(8)),
    messages_ops.RecordsReply(3),
    messages_ops.MendAsk(STATE, "n1"),
    messages_ops.MendReply(2, 1),
    messages_ops.PassEnd(bytes(8)),
    messages_health.Beat("n1", True, 3, 9, 3, "n1", "n1", 3, False, True, "active", ("n9",), 5),
    messages_health.HealthAsk(),
    messages_health.HealthReply(
        [messages_health.HealthRow("n1", "alive", 0, 0, 9, True, "primary", 3, 9, "n1", False, "active")],
        "quorum",
        "why",
    ),
    messages_health.StandAsk("failover", True),
    messages_health.StandReply(4, False),
    messages_witness.InSyncAsk(3, "n1", 2, 7, ("n1",)),
    messages_witness.InSyncReply(3, 8, ("n1",)),
    messages_switchover.SwitchAsk(5),
    messages_switchover.SwitchReply("n1", True, STATE, 9, 8, 3, "n1", ("n1", "n2"), (), 1, 0, True, -1, ""),
    messages_switchover.DrainAsk(2**64 - 1, 1000),
    messages_switchover.Drained(STATE, [(b"key", 2**64 - 1)]),
    messages_switchover.UndrainAsk(2**63),
    messages_switchover.Undrained(True),
    messages_switchover.TakeOverAsk("n1", STATE, [(b"key", 0)], 500),
    messages_switchover.TookOver(4, POSITION, POSITION, True, 3, 20),
]


def test_there_is_an_example_of_every_kind() -> None:
    assert {type(example) for example in EXAMPLES} == set(KINDS.values())


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    number = next(number for number, kind in KINDS.items() if kind is type(message))
    payload = b"frames" if number in WITH_PAYLOAD else b""
    decoder = Decoder(MESSAGE_BYTES_MAX)
    decoder.feed(encode_message(message, payload))
    assert list(decoder.messages()) == [(message, payload)]
    assert decoder.held_bytes == 0


@fuzz(100, chosen=st.lists(st.sampled_from(EXAMPLES), min_size=1, max_size=8), step=st.integers(1, 50))
def test_messages_come_back_in_order_in_whatever_pieces_they_arrive(chosen: list[Message], step: int) -> None:
    data = b"".join(encode_message(message) for message in chosen)
    decoder = Decoder(MESSAGE_BYTES_MAX)
    got: list[Message] = []
    for start in range(0, len(data), step):
        decoder.feed(data[start : start + step])
        got += [message for message, _ in decoder.messages()]
    assert got == chosen


@fuzz(500, data=st.binary(max_size=2000), limit=st.sampled_from([GREETING_BYTES_MAX, MESSAGE_BYTES_MAX]))
def test_hostile_bytes_give_wire_error_and_nothing_else(data: bytes, limit: int) -> None:
    decoder = Decoder(limit)
    decoder.feed(data)
    with contextlib.suppress(WireError):
        list(decoder.messages())


@fuzz(
    500,
    message=st.sampled_from(EXAMPLES),
    at=st.integers(0, 10_000),
    bit=st.integers(0, 7),
    tail=st.binary(max_size=20),
)
def test_damaged_messages_give_wire_error_and_nothing_else(
    message: Message, at: int, bit: int, tail: bytes
) -> None:
    data = bytearray(encode_message(message) + tail)
    data[at % len(data)] ^= 1 << bit
    decoder = Decoder(MESSAGE_BYTES_MAX)
    decoder.feed(bytes(data))
    with contextlib.suppress(WireError):
        list(decoder.messages())


def test_a_stranger_may_not_announce_a_large_message() -> None:
    decoder = Decoder(GREETING_BYTES_MAX)
    decoder.feed(ENVELOPE.pack(1 << 24, messages.PROTOCOL, 20, 10))
    with pytest.raises(WireError, match="at most 1024"):
        list(decoder.messages())


def test_another_protocol_version_is_named() -> None:
    data = bytearray(encode_message(Greet("client", bytes(32))))
    data[4] = 9
    decoder = Decoder()
    decoder.feed(bytes(data))
    with pytest.raises(WireError, match="protocol 9"):
        list(decoder.messages())


def test_a_payload_where_none_belongs_is_refused() -> None:
    decoder = Decoder(MESSAGE_BYTES_MAX)
    decoder.feed(encode_message(Ack(POSITION, 1), b"payload"))
    with pytest.raises(WireError, match="with a payload"):
        list(decoder.messages())


def test_a_message_beyond_the_limit_is_not_made() -> None:
    with pytest.raises(WireError, match="too large"):
        encode_message(Frames(1, False, 0), bytes(FRAME_BYTES_MAX + 1))


@fuzz(50, raw=st.binary(max_size=5000), compress=st.booleans())
def test_a_payload_comes_back_compressed_or_not(raw: bytes, compress: bool) -> None:
    payload, compressed = pack_payload(raw, compress)
    assert len(payload) <= len(raw)
    assert unpack_payload(payload, len(raw), compressed) == raw


def test_a_compressed_payload_that_is_larger_than_announced_is_refused() -> None:
    payload, compressed = pack_payload(bytes(1 << 20), True)
    assert compressed
    for announced in (0, 100, (1 << 20) - 1, (1 << 20) + 1, FRAME_BYTES_MAX + 1):
        with pytest.raises(WireError):
            unpack_payload(payload, announced, compressed)


def test_no_two_kinds_of_messages_share_a_number_when_the_tables_are_merged() -> None:
    tables = (
        messages_forward.KINDS,
        messages_health.KINDS,
        messages_members.KINDS,
        messages_ops.KINDS,
        messages_rejoin.KINDS,
        messages_server.KINDS,
        messages_switchover.KINDS,
        messages_witness.KINDS,
    )
    numbers = [number for table in tables for number in table]
    assert len(numbers) == len(set(numbers))
    assert min(numbers) > 13
    assert len(KINDS) == len(numbers) + sum(number not in numbers for number in KINDS)
    assert all(KINDS[number] is kind for table in tables for number, kind in table.items())
