"""The worked example of docs/format.md: one small file of each kind, the same bytes every time.

`python -m tests.format.worked_example` prints the page's blocks; with `--write` it puts them into the page.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from perdure.store import event, frame, mark, segment, session, snapshot_format
from perdure.store.control import ALONE, EpochStart, control_payload
from perdure.store.fold import Fold, record_of
from perdure.store.ids import NOWHERE, Position, StatePosition
from perdure.store.snapshot import SnapshotHead, write_snapshot

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format.md"

CLUSTER_ID = bytes(range(16))
KEY = frame.cluster_key(CLUSTER_ID)
NODE = "alpha"
TIME_MS = 1_700_000_000_000
OPERATION_ID = bytes.fromhex("a0a1a2a3a4a5a6a7a8a9aaabacadaeaf")
SESSION_KEY = b"s1"

LINE_BYTES = 16


def stored_session() -> bytes:
    """What the page's one session is stored as."""
    return session.encode_session(
        version=1,
        created_ms=TIME_MS,
        accessed_ms=TIME_MS,
        timeout_ms=3_600_000,
        cap_ms=0,
        metadata={"user": 7},
    )


def example_frames() -> tuple[list[bytes], list[StatePosition]]:
    """The frames of the segment, and where the log stands after each."""
    start, start_events = control_payload(EpochStart(NODE, "init"), ALONE)
    put = event.encode_event(
        event.Kind.PUT, event.Reason.CREATED, OPERATION_ID, SESSION_KEY, stored_session()
    )
    frames: list[bytes] = []
    at = NOWHERE
    places: list[StatePosition] = []
    fold = Fold(lambda key: None)
    for payload, count, flushed_lsn in ((start, start_events, 0), (put, 1, 2)):
        fold.apply(event.decode_events(payload, count))
        data, chain = frame.encode_frame(
            payload,
            count,
            key=KEY,
            previous_chain=at.chain,
            shard=0,
            epoch=1,
            time_ms=TIME_MS + len(frames),
            first_lsn=at.lsn + 1,
            flushed_lsn=flushed_lsn,
            digest=fold.digest,
            session_count=fold.session_count,
        )
        at = StatePosition(1, at.lsn + count, chain, fold.digest, fold.session_count)
        frames.append(data)
        places.append(at)
    return frames, places


def example_header() -> segment.SegmentHeader:
    return segment.SegmentHeader(CLUSTER_ID, 0, 1, NODE, NODE, 1, NOWHERE, TIME_MS)


def example_segment() -> bytes:
    """A sealed segment: EPOCH_START and CONFIG in one frame, then a PUT."""
    frames, places = example_frames()
    data = segment.encode_header(example_header()) + b"".join(frames)
    footer = segment.SegmentFooter(
        places[-1],
        len(data),
        frame.xxh3_64(data),
        (segment.IndexEntry(1, segment.HEADER_BYTES, TIME_MS),),
    )
    return data + segment.encode_footer(footer)


def example_mark() -> bytes:
    """The mark after two syncs: one of each frame."""
    first, second = [place.position for place in example_frames()[1]]
    slots = mark.Mark(second, 0, 2), mark.Mark(first, 0, 1)
    return b"".join(mark.encode_slot(slot, KEY) for slot in slots)


def example_position() -> Position:
    return example_frames()[1][-1].position


def example_head() -> SnapshotHead:
    at = example_frames()[1][-1]
    return SnapshotHead(CLUSTER_ID, 0, NODE, at, TIME_MS + 1, TIME_MS + 1000, is_compressed=False)


def example_snapshot() -> bytes:
    """A snapshot of the log's end, without compression."""
    record = record_of(SESSION_KEY, stored_session())
    with tempfile.TemporaryDirectory() as directory:
        path = write_snapshot(Path(directory), example_head(), [(SESSION_KEY, record)], compress=False)
        return path.read_bytes()


def blocks() -> dict[str, str]:
    """The page's hex blocks by name."""
    return {
        "segment": "\n".join(_segment_lines(example_segment())),
        "mark": "\n".join(_mark_lines(example_mark())),
        "snapshot": "\n".join(_snapshot_lines(example_snapshot())),
    }


def with_blocks(page: str) -> str:
    """`page` with every block that stands between its two marks made anew."""
    for name, text in blocks().items():
        begin, end = f"<!-- example: {name} -->\n```text\n", "\n```\n<!-- end -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the page has no block {name!r}")
        page = before + begin + text + end + after
    return page


def _segment_lines(data: bytes) -> Iterator[str]:
    yield "header"
    yield from _fields(
        data,
        0,
        segment.HEADER,
        "magic, version, shard, epoch, cluster id, node, primary, first LSN, previous chain, previous epoch, "
        "reserved, digest before, session count before, created, reserved, check",
    )
    at = segment.HEADER_BYTES
    for number in (1, 2):
        _, decoded = frame.decode_frame(data, at, KEY)
        if decoded is None:
            raise ValueError("the example's frame does not decode")
        yield f"frame {number}"
        yield from _fields(
            data,
            at,
            frame.HEADER,
            "chain, previous chain, magic, flags, shard, payload length, event count, epoch, reserved, time, "
            "first LSN, flushed, digest, session count",
        )
        inside = at + frame.HEADER_BYTES
        at += decoded.size_bytes
        while inside < at:
            kind, _, key_bytes, value_bytes, _ = event.HEADER.unpack_from(data, inside)
            yield f"event {event.Kind(kind).name}"
            yield from _fields(
                data, inside, event.HEADER, "kind, reason, key length, value length, operation id"
            )
            inside += event.HEADER_BYTES
            yield from _piece(data, inside, key_bytes, "key")
            yield from _value(data, inside + key_bytes, value_bytes, kind)
            inside += key_bytes + value_bytes
    yield "footer"
    yield from _fields(
        data,
        at,
        segment.FOOTER_HEAD,
        "magic, last LSN, end chain, digest, session count, end of the frames, hash of the file, "
        "index entries, epoch",
    )
    at += segment.FOOTER_HEAD.size
    yield from _fields(data, at, segment.INDEX_ENTRY, "LSN, offset, time")
    yield from _fields(
        data, at + segment.INDEX_ENTRY.size, segment.FOOTER_END, "check, footer length, end magic"
    )


def _value(data: bytes, at: int, size: int, kind: int) -> Iterator[str]:
    if kind != event.Kind.PUT:
        yield from _piece(data, at, size, "value")
        return
    yield from _stored(data, at, size)


def _stored(data: bytes, at: int, size: int) -> Iterator[str]:
    yield from _fields(
        data,
        at,
        session.HEADER,
        "format, flags, priority, home node length, group length, tags length, version, created, "
        "last accessed, idle timeout, expires at the latest",
    )
    yield from _piece(data, at + session.HEADER_BYTES, size - session.HEADER_BYTES, "metadata")


def _mark_lines(data: bytes) -> Iterator[str]:
    for number in (0, 1):
        yield f"slot {number}"
        yield from _fields(
            data,
            number * mark.SLOT_BYTES,
            mark.SLOT,
            "magic, epoch, reserved, LSN, chain, committed LSN, sequence, cluster key, check",
        )


def _snapshot_lines(data: bytes) -> Iterator[str]:
    yield "head"
    yield from _fields(
        data,
        0,
        snapshot_format.HEAD,
        "magic, version, shard, epoch, cluster id, node, LSN, chain, digest, session count, time of the log, "
        "created, flags, reserved, check",
    )
    at = snapshot_format.HEAD_BYTES
    yield "chunk 0"
    yield from _fields(
        data,
        at,
        snapshot_format.CHUNK,
        "chain, magic, number, entry count, raw bytes, stored bytes, reserved",
    )
    at += snapshot_format.CHUNK_HEADER_BYTES
    yield "entry"
    yield from _fields(data, at, snapshot_format.ENTRY, "key length, value length")
    key_bytes, value_bytes = snapshot_format.ENTRY.unpack_from(data, at)
    at += snapshot_format.ENTRY_HEADER_BYTES
    yield from _piece(data, at, key_bytes, "key")
    yield from _stored(data, at + key_bytes, value_bytes)
    yield "trailer"
    yield from _fields(
        data,
        at + key_bytes + value_bytes,
        snapshot_format.TRAILER,
        "magic, chunk count, reserved, session count, digest, chain, hash of the file, check",
    )


def _fields(data: bytes, at: int, layout: struct.Struct, names: str) -> Iterator[str]:
    """A line for each field of a header, named in order."""
    named = names.split(", ")
    sizes = field_sizes(layout)
    if len(named) != len(sizes):
        raise ValueError(f"{len(named)} names for {len(sizes)} fields: {names}")
    values = layout.unpack_from(data, at)
    for name, size, value in zip(named, sizes, values, strict=True):
        yield from _piece(data, at, size, f"{name} {value}" if isinstance(value, int) and value else name)
        at += size


def _piece(data: bytes, at: int, size: int, name: str) -> Iterator[str]:
    for start in range(0, size, LINE_BYTES):
        part = data[at + start : at + min(start + LINE_BYTES, size)]
        yield f"{at + start:04x}  {part.hex(' '):<47}  {name if start == 0 else ''}".rstrip()


def field_sizes(layout: struct.Struct) -> list[int]:
    """The size of each field of a struct, in bytes."""
    return [struct.calcsize("<" + item) for item in _items(layout.format.removeprefix("<"))]


def _items(text: str) -> Iterable[str]:
    count = ""
    for letter in text:
        if letter.isdigit():
            count += letter
        elif letter == "s":
            yield count + letter
            count = ""
        else:
            yield from [letter] * int(count or "1")
            count = ""


def main(arguments: list[str]) -> None:
    if "--write" in arguments:
        PAGE.write_text(with_blocks(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for name, text in blocks().items():
        print(f"-- {name}\n{text}")


if __name__ == "__main__":
    main(sys.argv[1:])
