"""Access logs of web servers in Apache's common and combined format, plain or gzip, as a stream of hits.

Owns the reading of such a file and the order of its hits in time. Does not know what a hit means for a
session. Invariant: memory is bounded whatever the file holds; a line that is no request is counted and
passed over; only a file that cannot be read to its end, or not be put in order, is an error.

The format: https://httpd.apache.org/docs/2.4/mod/mod_log_config.html
"""

from __future__ import annotations

import gzip
import heapq
import re
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias, cast

import msgspec

from ...store import FormatError, StorageError

LINE_BYTES_MAX = 65_536
"""Apache's own limits (8,190 bytes for the request line and for each header) leave a line well below."""
CHUNK_BYTES = 65_536
REORDER_HITS_MAX = 200_000
EXCERPT_BYTES_MAX = 80
EXAMPLES_MAX = 5

Reason: TypeAlias = Literal["too long", "not the format", "no request", "no such time"]


class AccessLogError(FormatError):
    """The file as a whole is no access log that can be read; single bad lines are only counted."""


class AccessLogDamagedError(AccessLogError):
    """The gzip stream ends early or is corrupt; the hits before that place were right."""


class AccessLogOrderError(AccessLogError):
    """A hit is earlier than hits that lie further back than the bounded sort can reach."""


class Hit(msgspec.Struct, frozen=True, gc=False):
    """One request. Texts stand as they are logged, with the server's own escapes left in."""

    line: int
    client: str
    time_ms: int
    method: str
    url: str
    status: int
    referer: str
    agent: str


class Malformed(msgspec.Struct, frozen=True, gc=False):
    """One line that is no request, and why."""

    line: int
    reason: Reason
    excerpt: bytes


class LineCounts(msgspec.Struct):
    """What a reading met so far; the reading adds to it, everybody else only looks."""

    hits: int = 0
    malformed: int = 0
    earlier_than_before: int = 0
    examples: list[Malformed] = []


_QUOTED = r'"((?:[^"\\]++|\\.)*+)"'  # possessive: a quote that never closes costs linear time, not more
_LINE = re.compile(
    r"([^ ]{1,255}) [^ ]{1,255} [^ ]{1,255} \[([^\]]{26})\] "
    + _QUOTED
    + r" ([1-5][0-9]{2}) (?:[0-9]{1,19}|-)"
    + rf"(?: {_QUOTED} {_QUOTED})?"
)
_METHOD = re.compile(r"[A-Z][A-Z_-]{0,31}")
_PROTOCOL = re.compile(r"HTTP/[0-9]\.?[0-9]?")
_TIME = re.compile(
    r"([0-9]{2})/([A-Z][a-z]{2})/([0-9]{4}):([0-9]{2}):([0-9]{2}):([0-9]{2}) ([+-])([0-9]{2})([0-9]{2})"
)
_MONTHS = {
    name: n for n, name in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), start=1)
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def read_hits(path: str | Path, counts: LineCounts) -> Iterator[Hit]:
    """Yield the hits of an access log in the order of its lines, plain or gzip (told by its first bytes).

    `counts` is kept up to date while the hits are drawn. Raises StorageError when the file system refuses,
    AccessLogDamagedError at the place where a gzip stream breaks, AccessLogError at the end when no line
    at all was a request.
    """
    before_ms = 0
    for record in parse(open_log(path)):
        if isinstance(record, Malformed):
            counts.malformed += 1
            if len(counts.examples) < EXAMPLES_MAX:
                counts.examples.append(record)
            continue
        counts.hits += 1
        counts.earlier_than_before += record.time_ms < before_ms
        before_ms = record.time_ms
        yield record
    if counts.hits == 0:
        raise AccessLogError(
            f"no request in {counts.malformed:,} lines",
            path=path,
            hint="Give a log in Apache's common or combined format, plain or gzip.",
        )


def open_log(path: str | Path) -> Iterator[bytes]:
    """Yield the bytes of a log in chunks of at most CHUNK_BYTES, unpacked when it is gzip.

    Raises StorageError and AccessLogDamagedError as `read_hits` does.
    """
    try:
        with open(path, "rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            source = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            while chunk := source.read(CHUNK_BYTES):
                yield chunk
    except EOFError as error:
        raise AccessLogDamagedError(
            "the gzip stream ends before its end mark",
            path=path,
            hint="The file is cut short: fetch it again.",
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise AccessLogDamagedError(
            f"the gzip stream is corrupt: {error}", path=path, hint="The file is damaged: fetch it again."
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot read the access log: {error.strerror}",
            path=path,
            hint="Check the path and its permissions.",
        ) from error


def parse(chunks: Iterable[bytes]) -> Iterator[Hit | Malformed]:
    """Yield a Hit or a Malformed for each line that is not blank. Never raises, whatever the bytes are."""
    for number, line in enumerate(_lines(chunks), start=1):
        if line is None:
            yield Malformed(number, "too long", b"")
        elif line := line.rstrip(b"\r"):
            yield parse_line(line, number)


def parse_line(line: bytes, number: int) -> Hit | Malformed:
    """Return the hit that one line (without its end) tells of, or why it tells of none."""
    text = line.decode("utf-8", "backslashreplace")
    match = _LINE.fullmatch(text)
    if match is None:
        return Malformed(number, "not the format", line[:EXCERPT_BYTES_MAX])
    client, stamp, request, status, referer, agent = match.groups()
    method, _, rest = request.partition(" ")
    url, _, protocol = rest.rpartition(" ")
    if _PROTOCOL.fullmatch(protocol) is None:
        url = rest  # HTTP/0.9, whose requests name no protocol
    if not url or _METHOD.fullmatch(method) is None:
        return Malformed(number, "no request", line[:EXCERPT_BYTES_MAX])
    time_ms = parse_time(stamp)
    if time_ms is None:
        return Malformed(number, "no such time", line[:EXCERPT_BYTES_MAX])
    return Hit(number, client, time_ms, method, url, int(status), _given(referer), _given(agent))


@lru_cache(maxsize=256)  # a busy server writes many lines a second, and the clock in them moves slowly
def parse_time(stamp: str) -> int | None:
    """Return the ms since 1970 (UTC) of a stamp such as `17/May/2015:10:05:03 +0000`, None if it is no time.

    The offset is taken into account, so logs of servers in several zones can be told apart. A leap second
    (`:60`) is the second that follows. Times before 1970 are no time that a web server can have seen.
    """
    match = _TIME.fullmatch(stamp)
    if match is None or match[2] not in _MONTHS:
        return None
    day, year, hour, minute, second, offset_h, offset_min = (int(match[n]) for n in (1, 3, 4, 5, 6, 8, 9))
    if second > 60 or offset_h > 23 or offset_min > 59:
        return None
    try:
        local = datetime(year, _MONTHS[match[2]], day, hour, minute, tzinfo=UTC)
    except ValueError:
        return None
    east_ms = (offset_h * 3600 + offset_min * 60) * 1000 * (1 if match[7] == "+" else -1)
    time_ms = (local - _EPOCH) // _MILLISECOND + second * 1000 - east_ms
    return time_ms if time_ms >= 0 else None


def in_time_order(hits: Iterable[Hit], *, reorder_hits_max: int = REORDER_HITS_MAX) -> Iterator[Hit]:
    """Yield the same hits in the order of their times; hits of one second keep the order of their lines.

    A server writes a line when a request ends and stamps it with when it began, so lines are often a little
    earlier than the line before. Up to `reorder_hits_max` hits are held back to be sorted: a log of so many
    lines may be in any order, in a longer one a line may lie that many lines too late. Raises
    AccessLogOrderError beyond that, before it yields a hit in the wrong place.
    """
    held: list[tuple[int, int, Hit]] = []
    newest_ms = 0
    stream = iter(hits)
    for hit in stream:
        held.append((hit.time_ms, hit.line, hit))
        if len(held) >= reorder_hits_max:
            heapq.heapify(held)
            break
    for hit in stream:
        time_ms, _, first = heapq.heappushpop(held, (hit.time_ms, hit.line, hit))
        if time_ms < newest_ms:
            raise AccessLogOrderError(
                f"line {first.line:,} is {newest_ms - time_ms:,} ms earlier than lines more than "
                f"{reorder_hits_max:,} lines before it",
                hint="Sort the log by time first.",
            )
        newest_ms = time_ms
        yield first
    held.sort()
    for _, _, hit in held:
        yield hit


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes | None]:
    """Split at newlines; None stands for a line over LINE_BYTES_MAX, which is never held in memory."""
    rest = b""
    is_skipping = False
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield None if is_skipping or len(line) > LINE_BYTES_MAX else line
            is_skipping = False
        if is_skipping or len(rest) > LINE_BYTES_MAX:
            is_skipping = True
            rest = b""
    if is_skipping:
        yield None
    elif rest:
        yield rest


def _given(field: str | None) -> str:
    """Return the text of a field that the common format lacks and that a dash leaves empty."""
    return "" if field is None or field == "-" else field
