"""docs/protocol.md says what the code does: kinds of messages, their numbers, fields with payload, limits."""

from __future__ import annotations

import re
from pathlib import Path

from perdure.shipping import (
    auth,
    bootstrap,
    credentials,
    link,
    messages,
    peer,
    receiver,
    reign,
    sender,
    visitor,
    wake,
    window,
    wire_types,
)
from perdure.store import ids

PAGE = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")


def rows() -> list[list[str]]:
    """The cells of every table row of the page."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_names_every_kind_with_its_number_and_payload() -> None:
    told = {int(row[0]): (row[1], bool(row[3])) for row in rows() if row[0].isdigit()}
    assert told == {
        number: (kind.__name__, number in messages.WITH_PAYLOAD) for number, kind in messages.KINDS.items()
    }


def test_the_limits_are_the_codes() -> None:
    told = {row[0]: row[1] for row in rows() if len(row) == 2}
    assert told["message before the proof"] == f"{messages.GREETING_BYTES_MAX:,} bytes"
    assert told["message after it"] == (
        f"{messages.PAYLOAD_BYTES_MAX >> 20} MiB of payload, {messages.BODY_BYTES_MAX:,} bytes of body"
    )
    assert told["log under way to one replica"].startswith(f"{sender.CREDIT_BYTES >> 20} MiB")
    assert told["unsent bytes for one peer"] == (
        f"no new frames from {peer.UNSENT_BYTES_MAX >> 20} MiB on; "
        f"the connection ends at {link.OUT_BYTES_MAX >> 20} MiB"
    )
    assert told["newest log kept in the shipper's memory"] == f"{window.WINDOW_BYTES_MAX >> 20} MiB"
    assert told["log read and flushed at once"].endswith(f"{sender.CATCH_UP_BYTES >> 20} MiB in catch-up")
    assert told["connections to a receiver"] == (
        f"{receiver.VISITORS_MAX}, of which {receiver.STRANGERS_MAX} strangers"
    )


def test_limits_of_what_messages_hold_are_the_codes() -> None:
    told = {row[0]: row[1] for row in rows() if len(row) == 2}
    assert told["LSNs, counts and sizes in messages"] == f"below 2^{ids.LSN_LIMIT.bit_length() - 1}"
    assert told["times in messages and frames"] == f"below 2^{wire_types.TIME_MS_LIMIT.bit_length() - 1} ms"
    assert told["nodes that a primary tells of"] == str(wire_types.NODES_MAX)
    epochs = (
        f"{ids.EPOCH_MAX:,}; a node that knows one takes none more than {ids.EPOCH_JUMP_MAX:,} ahead of it"
    )
    assert told["epochs in messages"] == epochs


def test_numbers_in_the_text_are_the_codes() -> None:
    flat = re.sub(r"\s+", " ", PAGE)
    for said in (
        f"Version {messages.PROTOCOL}",
        f"at least {credentials.SECRET_BYTES_MIN} bytes",
        f"({peer.RETRY_MS_MIN} ms to {peer.RETRY_MS_MAX // 1000} s apart",
        f"{peer.REFUSED_RETRY_MS // 1000} s after a refusal",
        f"{auth.NONCE_BYTES} random bytes",
        f"the handshake {visitor.HANDSHAKE_MS // 1000} s, and {receiver.STRANGERS_MAX} strangers",
        f"the newest {messages.EPOCHS_MAX:,} epochs",
        f"({reign.SLOT_BUDGET_BYTES >> 30} GiB unless told otherwise)",
        f"every {peer.HEARTBEAT_MS} ms",
        f"After {reign.SILENCE_MS // 1000} s without an ack",
        f"after {visitor.SHIPPER_IDLE_MS // 1000} s without a heartbeat",
        f"in pieces of {bootstrap.PIECE_BYTES >> 20} MiB",
        f"{bootstrap.CREDIT_BYTES >> 20} MiB may be under way",
        f"at most {receiver.FETCH_BYTES_MAX >> 20} MiB of frames",
        f"a poll every {wake.POLL_MS} ms",
        f"not needed for {wake.WATCH_IDLE_S:.0f} s",
    ):
        assert said in flat, said


def test_every_refusal_that_the_page_quotes_exists() -> None:
    quoted = set(re.findall(r"`(fenced|foreign|diverged|refused|protocol)`", PAGE))
    assert quoted <= messages.REFUSALS
    assert {"fenced", "foreign", "diverged"} <= quoted
