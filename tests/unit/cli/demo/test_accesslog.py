"""The access log parser: formats, times, bad lines, damaged files, order."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cli.demo.accesslog import (
    EXAMPLES_MAX,
    LINE_BYTES_MAX,
    AccessLogDamagedError,
    AccessLogError,
    AccessLogOrderError,
    Hit,
    LineCounts,
    Malformed,
    in_time_order,
    open_log,
    parse,
    parse_line,
    parse_time,
    read_hits,
)
from perdure.store import StorageError

SMALL_LOG = Path(__file__).parents[3] / "data" / "small_access.log"
LINE = (
    b'192.0.2.1 - - [03/Mar/2024:10:00:00 +0000] "GET /a HTTP/1.1" 200 12 "https://example.org/" "Agent One"'
)


def hit_at(time_ms: int, line: int = 1) -> Hit:
    return Hit(line, "192.0.2.1", time_ms, "GET", "/", 200, "", "Agent")


def hit_of(line: bytes) -> Hit:
    record = parse_line(line, 1)
    assert isinstance(record, Hit), record
    return record


def test_a_combined_line_gives_every_field() -> None:
    assert hit_of(LINE) == Hit(
        1, "192.0.2.1", 1_709_460_000_000, "GET", "/a", 200, "https://example.org/", "Agent One"
    )


def test_a_common_line_has_neither_referer_nor_agent() -> None:
    hit = hit_of(b'192.0.2.1 - frank [03/Mar/2024:10:00:00 +0000] "GET /a HTTP/1.1" 304 -')
    assert (hit.status, hit.referer, hit.agent) == (304, "", "")


def test_a_quote_inside_a_field_stays_as_it_was_escaped() -> None:
    assert hit_of(LINE.replace(b"Agent One", rb"Agent \"One\" \\")).agent == r"Agent \"One\" \\"


def test_a_url_with_blanks_reaches_up_to_the_protocol() -> None:
    assert hit_of(LINE.replace(b"/a ", b"/a b c ")).url == "/a b c"


def test_a_request_without_protocol_is_a_request() -> None:
    assert hit_of(LINE.replace(b" HTTP/1.1", b"")).url == "/a"


def test_bytes_that_are_no_utf8_are_kept_escaped() -> None:
    assert hit_of(LINE.replace(b"/a", b"/\xff\xe9")).url == r"/\xff\xe9"


def test_a_line_that_ends_with_a_carriage_return_is_the_same_line() -> None:
    assert list(parse([LINE + b"\r\n"])) == [hit_of(LINE)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (LINE[:-1], "not the format"),
        (LINE + b" extra", "not the format"),
        (LINE.replace(b" 200 ", b" 099 "), "not the format"),
        (LINE.replace(b"GET /a HTTP/1.1", b"-"), "no request"),
        (LINE.replace(b"GET /a HTTP/1.1", rb"\x16\x03\x01"), "no request"),
        (LINE.replace(b"GET /a HTTP/1.1", b"get /a HTTP/1.1"), "no request"),
        (LINE.replace(b"GET /a HTTP/1.1", b"GET"), "no request"),
        (LINE.replace(b"03/Mar", b"31/Feb"), "no such time"),
        (LINE.replace(b"2024", b"1969"), "no such time"),
        (b"garbage", "not the format"),
        (b"\x00\xff\x00", "not the format"),
    ],
)
def test_a_line_that_is_no_request_is_malformed_with_its_reason(line: bytes, reason: str) -> None:
    record = parse_line(line, 7)
    assert isinstance(record, Malformed)
    assert (record.line, record.reason) == (7, reason)
    assert line.startswith(record.excerpt)


@pytest.mark.parametrize(
    ("stamp", "time_ms"),
    [
        ("01/Jan/1970:00:00:00 +0000", 0),
        ("03/Mar/2024:10:00:00 +0000", 1_709_460_000_000),
        ("03/Mar/2024:12:00:00 +0200", 1_709_460_000_000),
        ("03/Mar/2024:04:30:00 -0530", 1_709_460_000_000),
        ("29/Feb/2024:00:00:00 +0000", 1_709_164_800_000),
        ("31/Dec/2016:23:59:60 +0000", 1_483_228_800_000),
        ("29/Feb/2023:00:00:00 +0000", None),
        ("03/mar/2024:10:00:00 +0000", None),
        ("03/Mar/2024:24:00:00 +0000", None),
        ("03/Mar/2024:10:60:00 +0000", None),
        ("03/Mar/2024:10:00:61 +0000", None),
        ("03/Mar/2024:10:00:00 +2400", None),
        ("03/Mar/2024:10:00:00 +0060", None),
        ("01/Jan/1970:00:00:00 +0100", None),
        ("03/Mar/2024 10:00:00 +0000", None),
        ("٠3/Mar/2024:10:00:00 +0000", None),
    ],
)
def test_a_stamp_is_read_with_its_zone(stamp: str, time_ms: int | None) -> None:
    assert parse_time(stamp) == time_ms


def test_blank_lines_count_as_lines_and_as_nothing_else() -> None:
    records = list(parse([b"\n\r\n" + LINE + b"\n\n" + LINE]))
    assert [record.line for record in records] == [3, 5]


def test_an_endless_line_is_malformed_and_never_held() -> None:
    def chunks() -> Iterator[bytes]:
        yield LINE + b"\n"
        for _ in range(512):
            yield b'x"' * 32_768
        yield b"\n" + LINE + b"\n"

    tracemalloc.start()
    try:
        records = list(parse(chunks()))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [type(record) for record in records] == [Hit, Malformed, Hit]
    assert records[1] == Malformed(2, "too long", b"")
    assert peak_bytes < 1 << 20  # of a line of 32 MiB


def test_a_line_at_the_limit_is_read_and_one_byte_more_is_not() -> None:
    room = LINE_BYTES_MAX - len(LINE)
    at_limit = LINE.replace(b"/a", b"/a" + b"b" * room)
    over = LINE.replace(b"/a", b"/a" + b"b" * (room + 1))
    assert [type(record) for record in parse([at_limit + b"\n" + over + b"\n"])] == [Hit, Malformed]
    assert [type(record) for record in parse([at_limit])] == [Hit]
    assert [type(record) for record in parse([over])] == [Malformed]


@pytest.mark.parametrize("packed", [False, True])
def test_a_small_log_gives_its_hits_and_counts_the_rest(tmp_path: Path, packed: bool) -> None:
    path = SMALL_LOG
    if packed:  # told by its first bytes, not by its name
        path = tmp_path / "access.log"
        path.write_bytes(gzip.compress(SMALL_LOG.read_bytes()))
    counts = LineCounts()
    hits = list(read_hits(path, counts))
    assert len(hits) == counts.hits == 14
    assert counts.malformed == 2
    assert [(bad.line, bad.reason) for bad in counts.examples] == [(6, "not the format"), (13, "no request")]
    assert counts.earlier_than_before == 2


def test_the_members_of_a_concatenated_gzip_are_read_one_after_another(tmp_path: Path) -> None:
    path = tmp_path / "access.log.gz"
    path.write_bytes(gzip.compress(LINE + b"\n") + gzip.compress(LINE + b"\n"))
    assert len(list(read_hits(path, LineCounts()))) == 2


def test_every_truncation_of_a_gzip_log_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(SMALL_LOG.read_bytes())
    path = tmp_path / "access.log.gz"
    for size in range(2, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(AccessLogDamagedError) as caught:
            list(read_hits(path, LineCounts()))
        assert caught.value.path == str(path)
        assert caught.value.hint


def test_every_flipped_byte_of_a_gzip_log_is_an_error_or_the_same_hits(tmp_path: Path) -> None:
    whole = gzip.compress(SMALL_LOG.read_bytes(), mtime=0)
    hits = list(read_hits(SMALL_LOG, LineCounts()))
    path = tmp_path / "access.log.gz"
    errors = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            assert list(read_hits(path, LineCounts())) == hits  # the header's time and system say nothing
        except AccessLogError:
            errors += 1
    assert errors > len(whole) - 10


def test_a_file_without_any_request_is_an_error_that_says_so(tmp_path: Path) -> None:
    for content in (b"", b"\n", b"name,value\na,1\n", bytes(100_000)):
        path = tmp_path / "other.csv"
        path.write_bytes(content)
        with pytest.raises(AccessLogError, match="no request") as caught:
            list(read_hits(path, LineCounts()))
        assert caught.value.path == str(path)


@pytest.mark.parametrize("name", ["absent.log", "."])
def test_a_path_that_cannot_be_read_is_a_storage_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError) as caught:
        list(read_hits(tmp_path / name, LineCounts()))
    assert caught.value.path == str(tmp_path / name)


def test_examples_of_malformed_lines_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(b"bad\n" * 1_000 + LINE)
    counts = LineCounts()
    list(read_hits(path, counts))
    assert counts.malformed == 1_000
    assert len(counts.examples) == EXAMPLES_MAX


def test_chunks_are_bounded_however_well_a_gzip_is_packed(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(32 << 20)))
    sizes = [len(chunk) for chunk in open_log(path)]
    assert sum(sizes) == 32 << 20
    assert max(sizes) <= 65_536


def test_hits_are_ordered_by_time_and_within_one_time_by_line() -> None:
    hits = [hit_at(3, 1), hit_at(1, 2), hit_at(3, 3), hit_at(1, 4), hit_at(2, 5)]
    assert [hit.line for hit in in_time_order(hits)] == [2, 4, 5, 1, 3]


def test_a_hit_beyond_the_reach_of_the_sort_is_an_error_that_names_its_line() -> None:
    hits = [hit_at(time_ms, line) for line, time_ms in enumerate([5, 6, 7, 8, 4], start=1)]
    assert [hit.time_ms for hit in in_time_order(hits, reorder_hits_max=4)] == [4, 5, 6, 7, 8]
    with pytest.raises(AccessLogOrderError, match="line 5"):
        list(in_time_order(hits, reorder_hits_max=3))


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 70))
def test_the_bounded_sort_gives_the_stable_sort_or_an_error(times_ms: list[int], reach: int) -> None:
    hits = [hit_at(time_ms, line) for line, time_ms in enumerate(times_ms, start=1)]
    given_out: list[Hit] = []
    try:
        given_out.extend(in_time_order(hits, reorder_hits_max=reach))
    except AccessLogOrderError:
        assert reach < len(hits)
    else:
        assert given_out == sorted(hits, key=lambda hit: hit.time_ms)


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_no_bytes_make_the_parser_raise(chunks: list[bytes]) -> None:
    lines = b"".join(chunks).count(b"\n") + 1
    records = list(parse(chunks))
    assert len(records) <= lines
    assert records == list(parse([b"".join(chunks)]))  # however the bytes were cut


@given(st.data())
def test_no_damage_to_a_line_makes_the_parser_raise(data: st.DataObject) -> None:
    line = bytearray(LINE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(line) - 1))
        line[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    record = parse_line(bytes(line).replace(b"\n", b""), 1)
    if isinstance(record, Hit):
        assert 100 <= record.status < 600
        assert record.time_ms >= 0
        assert record.url


@pytest.mark.parametrize("filler", [rb"\"a", b'"', b'" "', b" ", b"\\\\", b"[", b"x"])
def test_a_hostile_line_of_the_greatest_length_is_judged_at_once(filler: bytes) -> None:
    line = (LINE[:-1] + filler * LINE_BYTES_MAX)[:LINE_BYTES_MAX]
    started_s = time.process_time()
    assert isinstance(parse_line(line, 1), Malformed)
    assert time.process_time() - started_s < 1  # a pattern that backtracks would take minutes
