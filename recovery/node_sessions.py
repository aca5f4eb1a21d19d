"""The sessions of one node as a comparison asks for them: of this node, or of one behind its server.

Owns the port, and its two implementations. An image is taken, taken on to a common position, and read; both
kinds answer the same, so that what is compared does not depend on where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import msgspec

from ..shipping.messages_ops import (
    AlignAsk,
    AlignReply,
    BucketsAsk,
    BucketsReply,
    KeysAsk,
    KeysReply,
    MendAsk,
    MendReply,
    PassAsk,
    PassEnd,
    PassReply,
    RecordsAsk,
    RecordsReply,
)
from ..shipping.server_client import ServerClient
from ..store.errors import PerdureError, WireError
from ..store.ids import StatePosition
from ..store.ports import Record
from .mend import Mended, mend
from .ops_service import KEY_ANSWER_BYTES, RECORD_ANSWER_BYTES, decoded
from .state_pass import Buckets, StatePass, pack_bits

STEP_RECORDS: Final = 50_000
"""So many records are read between two words of progress, and for one answer."""
TIMEOUT_MS: Final = 30_000
_ANY_KEY: Final = b"\0"
OnRead = Callable[[int], object]
"""Told how many records were read."""


class NodeSessions(Protocol):
    """The sessions of one node."""

    node: str

    def take(self) -> StatePosition:
        """Take an image; says where it stands. An older one is given up."""
        ...

    def align(self, to: StatePosition) -> StatePosition | None:
        """Take it on to `to`: digest and count as the log says; None if the log does not reach it yet."""
        ...

    def add_up(self, on_read: OnRead) -> Buckets:
        """Read all of it, and sum it up."""
        ...

    def names(self, buckets: set[int], on_read: OnRead) -> Iterator[tuple[bytes, int]]:
        """(key, hash) of what is in these buckets, in key order."""
        ...

    def records(self, keys: list[bytes]) -> list[Record | None]:
        """The records of keys in the image."""
        ...

    def mend(self, at: StatePosition, right: list[tuple[bytes, Record | None]], source: str) -> Mended:
        """Put records that are right at `at` in place; see mend()."""
        ...

    def hold(self) -> None:
        """Say that the image is still wanted: a node gives one up that is not asked for. Raises nothing."""
        ...

    def close(self) -> None:
        """Give the image up. Idempotent, and raises nothing."""
        ...


class OwnSessions:
    """The sessions of the node in a directory of this machine."""

    def __init__(self, store: Path, node: str) -> None:
        self.node = node
        self._store = store
        self._taken: StatePass | None = None

    def take(self) -> StatePosition:
        self.close()
        self._taken = StatePass(self._store)
        return self._taken.at

    def align(self, to: StatePosition) -> StatePosition | None:
        return self._image.at if self._image.align(to) else None

    def add_up(self, on_read: OnRead) -> Buckets:
        image = self._image
        while not image.add_up(STEP_RECORDS):
            on_read(image.done)
        on_read(image.done)
        image.rewind()
        return image.buckets

    def names(self, buckets: set[int], on_read: OnRead) -> Iterator[tuple[bytes, int]]:
        image, is_complete = self._image, False
        image.rewind()
        while not is_complete:
            found, is_complete = image.names(buckets, STEP_RECORDS, KEY_ANSWER_BYTES)
            on_read(image.done)
            yield from found

    def records(self, keys: list[bytes]) -> list[Record | None]:
        return [self._image.get(key) for key in keys]

    def mend(self, at: StatePosition, right: list[tuple[bytes, Record | None]], source: str) -> Mended:
        return mend(self._store, at, right, source)

    def hold(self) -> None: ...

    def close(self) -> None:
        taken, self._taken = self._taken, None
        if taken is not None:
            taken.close()

    @property
    def _image(self) -> StatePass:
        if self._taken is None:
            raise WireError("no image was taken", node=self.node)
        return self._taken


class PeerSessions:
    """The sessions of a node behind its server."""

    def __init__(self, client: ServerClient, node: str) -> None:
        self.node = node
        self._client = client
        self._token = b""

    def take(self) -> StatePosition:
        self._give_up()
        reply, _ = self._client.ask(PassAsk(), PassReply, timeout_ms=TIMEOUT_MS)
        self._token = reply.token
        return StatePosition(*reply.at)

    def align(self, to: StatePosition) -> StatePosition | None:
        reply, _ = self._client.ask(AlignAsk(self._token, to), AlignReply, timeout_ms=TIMEOUT_MS)
        return StatePosition(*reply.at) if reply.is_aligned else None

    def add_up(self, on_read: OnRead) -> Buckets:
        while True:
            ask = BucketsAsk(self._token, STEP_RECORDS)
            reply, sums = self._client.ask(ask, BucketsReply, timeout_ms=TIMEOUT_MS)
            on_read(reply.records)
            if reply.is_complete:
                return Buckets.unpack(sums)

    def names(self, buckets: set[int], on_read: OnRead) -> Iterator[tuple[bytes, int]]:
        bits, is_complete = pack_bits(buckets), False
        while not is_complete:
            ask = KeysAsk(self._token, STEP_RECORDS)
            reply, found = self._client.ask(ask, KeysReply, bits, timeout_ms=TIMEOUT_MS)
            is_complete = reply.is_complete
            on_read(reply.records)
            yield from decoded(found, list[tuple[bytes, int]])

    def records(self, keys: list[bytes]) -> list[Record | None]:
        found: list[Record | None] = []
        while len(found) < len(keys):
            asked = msgspec.msgpack.encode(keys[len(found) :])
            reply, data = self._client.ask(
                RecordsAsk(self._token), RecordsReply, asked, timeout_ms=TIMEOUT_MS
            )
            some = decoded(data, list[bytes | None])
            if not some or len(some) != reply.count:
                raise WireError("a node gave no records for what it was asked", node=self.node)
            found += some
        return found

    def mend(self, at: StatePosition, right: list[tuple[bytes, Record | None]], source: str) -> Mended:
        mended = unchanged = 0
        for part in parts_of(right):
            data = msgspec.msgpack.encode(part)
            reply, _ = self._client.ask(MendAsk(at, source), MendReply, data, timeout_ms=TIMEOUT_MS)
            mended, unchanged = mended + reply.mended, unchanged + reply.unchanged
        return Mended(mended, unchanged)

    def hold(self) -> None:
        with suppress(PerdureError):  # what is wrong is said when it is asked for
            self.records([_ANY_KEY])

    def close(self) -> None:
        self._give_up()
        self._client.close()

    def _give_up(self) -> None:
        token, self._token = self._token, b""
        if token:
            with suppress(PerdureError):  # it goes by itself, too
                self._client.ask(PassEnd(token), PassEnd)


def parts_of(right: list[tuple[bytes, Record | None]]) -> Iterator[list[tuple[bytes, Record | None]]]:
    """Records in pieces that fit into one message: at least one, even if it is large."""
    part: list[tuple[bytes, Record | None]] = []
    size = 0
    for key, record in right:
        if part and size + len(key) + len(record or b"") > RECORD_ANSWER_BYTES:
            yield part
            part, size = [], 0
        part.append((key, record))
        size += len(key) + len(record or b"")
    if part:
        yield part
