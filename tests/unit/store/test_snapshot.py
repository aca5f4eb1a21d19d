"""Snapshot files: to and fro, bounded, published whole or not at all, and no damage that goes unseen."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from perdure.store import snapshot, snapshot_format, snapshot_writer, zstd
from perdure.store.errors import (
    CorruptError,
    ForeignError,
    FormatError,
    FormatVersionError,
    StorageError,
    StorageFullError,
    StoreInUseError,
    StoreMissingError,
    UsageError,
)
from perdure.store.event import KEY_BYTES_MAX, VALUE_BYTES_MAX
from perdure.store.fold import hash_of, record_of
from perdure.store.frame import cluster_key, xxh3_64
from perdure.store.ids import MASK64, StatePosition
from perdure.store.names import parse_snapshot_name, snapshot_name
from perdure.store.session import encode_session
from perdure.store.snapshot import (
    ChunkRange,
    SnapshotHead,
    SnapshotReader,
    list_snapshots,
    read_head,
    remove_unfinished,
    verify_snapshot,
    write_snapshot,
)
from perdure.store.snapshot_format import (
    CHUNK_HEADER_BYTES,
    CHUNK_RAW_BYTES,
    CHUNK_RAW_BYTES_MAX,
    HEAD_BYTES,
    TRAILER_BYTES,
    Trailer,
    decode_head,
    encode_chunk,
    encode_head,
    encode_trailer,
    first_chain,
    pack_entry,
)
from tests.support.descriptors import descriptors_below
from tests.support.fuzz import cuts, damaged, flips, fuzz

CLUSTER_ID = b"c" * 16
Records = list[tuple[bytes, bytes]]


def value(number: int, extra: str = "") -> bytes:
    return encode_session(
        version=1,
        created_ms=1000,
        accessed_ms=2000 + number,
        timeout_ms=600_000,
        cap_ms=0,
        metadata={"number": number, "extra": extra},
    )


def some_records(count: int, extra: str = "") -> Records:
    keys = [f"session-{number:06d}".encode() for number in range(count)]
    return [(key, record_of(key, value(number, extra))) for number, key in enumerate(keys)]


def head_of(records: Records, lsn: int = 77, epoch: int = 3) -> SnapshotHead:
    digest = sum(hash_of(key, record[8:]) for key, record in records) & MASK64
    at = StatePosition(epoch, lsn, 0xABCD, digest, len(records))
    return SnapshotHead(CLUSTER_ID, 0, "alpha", at, 5000, 6000, is_compressed=False)


def write(directory: Path, records: Records, *, compress: bool = False, **head: Any) -> Path:
    return write_snapshot(directory, head_of(records, **head), iter(records), compress=compress)


@pytest.fixture(params=[False, True], ids=["plain", "zstd"])
def compress(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A file in memory, for contents that change thousands of times."""
    descriptor = os.memfd_create("snapshot")
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few sessions, so that a small file has several."""
    monkeypatch.setattr(snapshot_writer, "CHUNK_RAW_BYTES", 200)


# -- to and fro ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 3000])
def test_snapshot_when_written_and_read_has_every_session_and_its_head(
    tmp_path: Path, compress: bool, count: int
) -> None:
    records = some_records(count, "x" * 700)
    path = write(tmp_path, records, compress=compress)
    assert path == tmp_path / snapshot_name(77, 3)
    assert os.listdir(tmp_path) == [path.name]
    expected = msgspec.structs.replace(head_of(records), is_compressed=compress)
    with SnapshotReader(path, CLUSTER_ID) as reader:
        assert reader.head == expected
        assert list(reader) == [(key, record[8:]) for key, record in records]
        assert list(reader.records()) == records
        assert len(list(reader.chunks())) == (0 if count == 0 else 1 if count < 3000 else 3)
    assert read_head(path, CLUSTER_ID) == expected
    assert verify_snapshot(path, CLUSTER_ID) == expected.at


@fuzz(
    40,
    keys=st.sets(st.binary(min_size=1, max_size=20), max_size=12),
    seed=st.integers(0, 1 << 32),
    is_compressed=st.booleans(),
    chunk_bytes=st.sampled_from([1, 100, 500, CHUNK_RAW_BYTES]),
    numbers=st.tuples(st.integers(0, (1 << 62) - 1), st.integers(0, 0xFFFFFFFF), st.integers(0, MASK64)),
)
def test_snapshot_when_its_sessions_and_chunk_size_are_random_gives_them_back(
    tmp_path_factory: pytest.TempPathFactory,
    keys: set[bytes],
    seed: int,
    is_compressed: bool,
    chunk_bytes: int,
    numbers: tuple[int, int, int],
) -> None:
    source = random.Random(seed)
    values = {key: value(0) + source.randbytes(source.randrange(300)) for key in sorted(keys)}
    records = [(key, record_of(key, data)) for key, data in values.items()]
    lsn, epoch, log_time = numbers
    head = msgspec.structs.replace(head_of(records, lsn, epoch), log_time_ms=log_time)
    directory = tmp_path_factory.mktemp("random")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot_writer, "CHUNK_RAW_BYTES", chunk_bytes)
        path = write_snapshot(directory, head, records, compress=is_compressed)
    assert verify_snapshot(path) == head.at
    with SnapshotReader(path) as reader:
        assert dict(reader) == values
        assert reader.head == msgspec.structs.replace(head, is_compressed=is_compressed)


def test_snapshot_when_key_and_value_are_as_long_as_allowed_is_read(tmp_path: Path, compress: bool) -> None:
    long_key = b"k" * KEY_BYTES_MAX
    largest = value(0).ljust(VALUE_BYTES_MAX, b"\0")
    before = [(b"a", record_of(b"a", value(1).ljust(CHUNK_RAW_BYTES - 100, b"\0")))]
    records = [*before, (long_key, record_of(long_key, largest)), (b"l", record_of(b"l", value(2)))]
    path = write(tmp_path, records, compress=compress)
    with SnapshotReader(path) as reader:
        assert list(reader.records()) == records
        assert len(list(reader.chunks())) == 2


def test_snapshot_when_read_holds_one_chunk_in_memory(tmp_path: Path, compress: bool) -> None:
    records = some_records(12_000, "x" * 900)
    path = write(tmp_path, records, compress=compress)
    del records
    tracemalloc.start()
    try:
        with SnapshotReader(path) as reader:
            assert sum(1 for _ in reader) == 12_000
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_snapshot_when_compressed_is_smaller(tmp_path: Path) -> None:
    records = some_records(2000)
    plain = write(tmp_path, records, lsn=1)
    packed = write(tmp_path, records, lsn=2, compress=True)
    assert packed.stat().st_size < plain.stat().st_size / 3


def test_progress_when_a_chunk_is_done_is_told_the_sessions_so_far(
    tmp_path: Path, small_chunks: None
) -> None:
    records = some_records(10)
    written: list[int] = []
    path = write_snapshot(tmp_path, head_of(records), records, compress=True, progress=written.append)
    verified: list[int] = []
    verify_snapshot(path, progress=verified.append)
    assert written == verified == [3, 6, 9, 10]


def test_chunks_when_put_together_with_head_and_trailer_are_the_file(
    tmp_path: Path, small_chunks: None, compress: bool
) -> None:
    path = write(tmp_path, some_records(10), compress=compress)
    data = path.read_bytes()
    with SnapshotReader(path) as reader:
        chunks = list(reader.chunks())
    assert [chunk.number for chunk in chunks] == [0, 1, 2, 3]
    at = HEAD_BYTES
    for chunk in chunks:
        assert chunk.offset == at
        assert chunk.chain == int.from_bytes(data[at : at + 8], "little")
        at += chunk.size_bytes
    assert at == len(data) - TRAILER_BYTES


# -- publishing ------------------------------------------------------------------------------------


def test_write_when_a_snapshot_of_that_name_is_there_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, some_records(3))
    path = write(tmp_path, some_records(5))
    assert verify_snapshot(path).session_count == 5


def test_write_when_it_succeeds_syncs_file_then_renames_then_syncs_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)

        def recorded(*given: Any, _name: str = name, _real: Callable[..., None] = real) -> None:
            is_directory = isinstance(given[0], int) and os.path.isdir(f"/proc/self/fd/{given[0]}")
            seen.append(f"{_name} directory" if is_directory else _name)
            _real(*given)

        monkeypatch.setattr(os, name, recorded)
    write(tmp_path, some_records(3))
    assert seen == ["fsync", "rename", "fsync directory"]


def bad_hash(records: Records) -> Records:
    key, record = records[1]
    return [records[0], (key, bytes([record[0] ^ 1]) + record[1:]), *records[2:]]


def bad_value(records: Records) -> Records:
    key, record = records[1]
    return [records[0], (key, record[:-1] + b"\x7f"), *records[2:]]


def doubled(records: Records) -> Records:
    return [*records[:2], records[1], *records[2:]]


def swapped(records: Records) -> Records:
    return [records[1], records[0], *records[2:]]


def too_short(records: Records) -> Records:
    return [(b"a", record_of(b"a", bytes(47))), *records]


def too_long_a_key(records: Records) -> Records:
    key = b"a" * (KEY_BYTES_MAX + 1)
    return [(key, record_of(key, value(0))), *records]


def empty_key(records: Records) -> Records:
    return [(b"", record_of(b"", value(0))), *records]


def one_missing(records: Records) -> Records:
    return records[:-1]


def one_more(records: Records) -> Records:
    return [*records, (b"z", record_of(b"z", value(1)))]


def one_other(records: Records) -> Records:
    return [*records[:-1], (b"z", record_of(b"z", value(1)))]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (bad_hash, "'session-000001' does not match its hash"),
        (bad_value, "'session-000001' does not match its hash"),
        (doubled, "'session-000001' comes after b'session-000001'"),
        (swapped, "'session-000000' comes after b'session-000001'"),
        (too_short, "'a' has an impossible size"),
        (too_long_a_key, "has an impossible size"),
        (empty_key, "comes after"),
        (one_missing, "gave 9 sessions"),
        (one_more, "gave 11 sessions"),
        (one_other, "gave 10 sessions"),
    ],
)
def test_write_when_the_state_is_damaged_refuses_and_leaves_nothing(
    tmp_path: Path, harm: Callable[[Records], Records], words: str
) -> None:
    records = some_records(10)
    with pytest.raises(CorruptError, match=words) as caught:
        write_snapshot(tmp_path, head_of(records), harm(records), compress=False)
    assert caught.value.lsn == 77
    assert "rebuilt" in caught.value.hint
    assert os.listdir(tmp_path) == []


def test_write_when_its_head_is_no_head_refuses(tmp_path: Path) -> None:
    for changes in ({"node": "Not A Node"}, {"node": ""}, {"cluster_id": b"short"}):
        with pytest.raises(UsageError):
            write_snapshot(tmp_path, msgspec.structs.replace(head_of([]), **changes), [], compress=False)
    assert os.listdir(tmp_path) == []


def test_write_when_the_source_breaks_off_leaves_nothing_and_an_older_snapshot_as_it_was(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, some_records(3))

    def breaking() -> Iterator[tuple[bytes, bytes]]:
        yield from some_records(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_snapshot(tmp_path, head_of(some_records(5)), breaking(), compress=True)
    assert os.listdir(tmp_path) == [path.name]
    assert verify_snapshot(path).session_count == 3


@pytest.fixture
def small_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_write_when_the_file_may_not_be_that_large_refuses_and_leaves_nothing(
    tmp_path: Path, small_files: None
) -> None:
    with pytest.raises(StorageError):
        write(tmp_path, some_records(100))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_write_when_the_disk_is_full_says_so_leaves_nothing_and_works_once_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, call, refuse)
        with pytest.raises(StorageFullError) as caught:
            write(tmp_path, some_records(100))
    assert caught.value.path is not None
    assert os.listdir(tmp_path) == []
    assert verify_snapshot(write(tmp_path, some_records(100))).session_count == 100


def test_write_when_the_directory_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreMissingError):
        write(tmp_path / "missing", [])


def test_write_when_the_same_snapshot_is_being_written_refuses_and_leaves_that_one_alone(
    tmp_path: Path,
) -> None:
    records = some_records(3)

    def meanwhile() -> Iterator[tuple[bytes, bytes]]:
        with pytest.raises(StoreInUseError, match="writing this snapshot"):
            write(tmp_path, records)
        assert remove_unfinished(tmp_path) == []
        yield from records

    path = write_snapshot(tmp_path, head_of(records), meanwhile(), compress=False)
    assert verify_snapshot(path).session_count == 3


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.store.test_snapshot import head_of, some_records
from perdure.store.snapshot import write_snapshot
def records():
    yield from some_records(3)
    os.kill(os.getpid(), signal.SIGKILL)
write_snapshot(Path(sys.argv[1]), head_of(some_records(5)), records(), compress=False)
"""


def test_write_when_its_process_was_killed_leaves_a_temporary_file_that_the_next_one_or_cleaning_removes(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    left = [tmp_path / (snapshot_name(77, 3) + ".tmp")]
    assert [tmp_path / name for name in os.listdir(tmp_path)] == left
    assert list_snapshots(tmp_path) == []
    again = tmp_path.with_name("again")
    shutil.copytree(tmp_path, again)
    assert remove_unfinished(again) == [again / left[0].name]
    assert os.listdir(again) == []
    path = write(tmp_path, some_records(5))
    assert os.listdir(tmp_path) == [path.name]
    assert verify_snapshot(path).session_count == 5


# -- listing ---------------------------------------------------------------------------------------


def test_list_when_a_directory_holds_other_things_gives_the_snapshots_in_order(tmp_path: Path) -> None:
    for lsn, epoch in ((100, 2), (9, 7), (100, 1)):
        write(tmp_path, some_records(1), lsn=lsn, epoch=epoch)
    for name in (snapshot_name(5, 5) + ".tmp", "notes.txt", "x" + snapshot_name(6, 6)):
        (tmp_path / name).write_bytes(b"")
    found = list_snapshots(tmp_path)
    assert [(file.lsn, file.epoch) for file in found] == [(9, 7), (100, 1), (100, 2)]
    for file in found:
        assert parse_snapshot_name(file.name) == (file.lsn, file.epoch)
        assert file.size_bytes == file.path.stat().st_size
    assert remove_unfinished(tmp_path) == [tmp_path / (snapshot_name(5, 5) + ".tmp")]
    assert (tmp_path / "notes.txt").exists()
    assert list_snapshots(tmp_path / "missing") == []


# -- damage ----------------------------------------------------------------------------------------

REFUSALS = (CorruptError, ForeignError, FormatVersionError)


@pytest.fixture
def small(tmp_path: Path, small_chunks: None, compress: bool) -> bytes:
    """A snapshot of ten sessions in four chunks."""
    path = write(tmp_path, some_records(10), compress=compress)
    data = path.read_bytes()
    path.unlink()
    return data


def read_all(path: Path) -> list[tuple[bytes, bytes]]:
    """Every session that is given out before the end or an error, which is raised with them."""
    given: list[tuple[bytes, bytes]] = []
    try:
        with SnapshotReader(path, CLUSTER_ID) as reader:
            given.extend(reader)
    finally:
        good = [(key, record[8:]) for key, record in some_records(10)]
        assert given == good[: len(given)], "wrong sessions were given out"
    return given


def refused(reading: Callable[[Path], object], path: Path) -> FormatError:
    """The error of a reading that must not succeed, which names the file."""
    with pytest.raises(REFUSALS) as caught:
        reading(path)
    assert caught.value.path == str(path)
    return caught.value


def test_snapshot_when_any_byte_is_changed_is_refused_and_gives_no_wrong_session(
    scratch: Path, small: bytes
) -> None:
    for offset, bad in flips(small):
        scratch.write_bytes(bad)
        error = refused(read_all, scratch)
        assert error.offset is not None
        assert error.offset <= offset or error.offset == len(bad) - TRAILER_BYTES


def test_snapshot_when_it_is_cut_anywhere_is_refused_when_it_is_opened(scratch: Path, small: bytes) -> None:
    for cut in cuts(small):
        scratch.write_bytes(cut)
        with pytest.raises(CorruptError, match=r"ends inside its head|cut short|zeros") as caught:
            SnapshotReader(scratch)
        assert caught.value.path == str(scratch)


@pytest.mark.parametrize("zeros", [1, TRAILER_BYTES, 4096])
def test_snapshot_when_zeros_follow_it_says_so(tmp_path: Path, small: bytes, zeros: int) -> None:
    path = tmp_path / "some.file"
    path.write_bytes(small + bytes(zeros))
    with pytest.raises(CorruptError, match="ends with zeros" if zeros >= 8 else "trailer"):
        SnapshotReader(path)


def chunk_pieces(data: bytes) -> tuple[bytes, list[bytes], bytes]:
    """(head, chunks, trailer)."""
    chunks: list[bytes] = []
    at = HEAD_BYTES
    while at < len(data) - TRAILER_BYTES:
        size = CHUNK_HEADER_BYTES + snapshot_format.CHUNK.unpack_from(data, at)[5]
        chunks.append(data[at : at + size])
        at += size
    return data[:HEAD_BYTES], chunks, data[-TRAILER_BYTES:]


def test_snapshot_when_chunks_are_missing_doubled_swapped_or_from_another_file_says_which(
    tmp_path: Path, small: bytes, small_chunks: None, compress: bool
) -> None:
    other_path = write(tmp_path, some_records(10), compress=compress, lsn=78)
    _, other, _ = chunk_pieces(other_path.read_bytes())
    head, chunks, trailer = chunk_pieces(small)
    assert len(chunks) == 4
    assert b"".join([head, *chunks, trailer]) == small
    wrong: dict[str, tuple[list[bytes], int | None]] = {
        "missing first": (chunks[1:], 0),
        "missing middle": ([chunks[0], *chunks[2:]], 1),
        "missing last": (chunks[:-1], None),
        "all missing": ([], None),
        "doubled": ([*chunks[:2], chunks[1], *chunks[2:]], 2),
        "swapped": ([chunks[0], chunks[2], chunks[1], chunks[3]], 1),
        "from another": ([chunks[0], other[1], *chunks[2:]], 1),
        "all from another": (other, 0),
    }
    path = tmp_path / "some.file"
    for what, (pieces, number) in wrong.items():
        path.write_bytes(b"".join([head, *pieces, trailer]))
        words = "missing" if number is None else f"chunk {number}"
        error = refused(verify_snapshot, path)
        assert words in error.message, what
        if number is not None:
            assert error.offset == HEAD_BYTES + sum(map(len, chunks[:number])), what


def forge(
    records: Records,
    *,
    raw: bytes | None = None,
    is_compressed: bool = False,
    count: int | None = None,
    head_count: int | None = None,
    chunk: Callable[[bytes], bytes] = lambda data: data,
) -> bytes:
    """A snapshot of one chunk whose every check fits, whatever it says."""
    head = msgspec.structs.replace(head_of(records), is_compressed=is_compressed)
    if head_count is not None:
        head = msgspec.structs.replace(head, at=head.at._replace(session_count=head_count))
    if raw is None:
        raw = b"".join(pack_entry(len(key), len(record) - 8) + key + record[8:] for key, record in records)
    key = cluster_key(CLUSTER_ID)
    entries = len(records) if count is None else count
    data, _ = encode_chunk(raw, entries, 0, previous_chain=first_chain(head), key=key, compress=is_compressed)
    body = chunk(data)[8:]
    chain = xxh3_64(body, first_chain(head) ^ key)
    whole = encode_head(head) + struct.pack("<Q", chain) + body
    trailer = Trailer(1, head.at.session_count, head.at.digest, chain, xxh3_64(whole))
    return whole + encode_trailer(trailer)


def entry(key: bytes, data: bytes) -> bytes:
    return pack_entry(len(key), len(data)) + key + data


def change(offset: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[:offset] + new + data[offset + len(new) :]


TWO = some_records(2)
GOOD = value(0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (forge(TWO, raw=entry(b"b", GOOD) + entry(b"a", GOOD)), "b'a' is not above"),
        (forge(TWO, raw=entry(b"b", GOOD) + entry(b"b", GOOD)), "b'b' is not above"),
        (forge(TWO, raw=entry(b"", GOOD) + entry(b"b", GOOD)), "is not above"),
        (forge(TWO, raw=entry(b"a", bytes(47)) + entry(b"b", GOOD + GOOD)), "impossible size"),
        (forge(TWO, raw=entry(b"a" * 1025, GOOD) + entry(b"b", GOOD)), "impossible size"),
        (forge(TWO, raw=pack_entry(1, 0xFFFFFFFF) + b"a" + GOOD * 2), "impossible size"),
        (forge(TWO, raw=entry(b"a", GOOD) + entry(b"b", GOOD) + b"x"), "bytes behind its last entry"),
        (forge(TWO, raw=entry(b"a", GOOD * 3) + b"\1\0\0\0"), "ends inside an entry"),
        (forge(TWO, raw=entry(b"a", GOOD) + entry(b"b", GOOD)), "holds 2 sessions with digest"),
        (forge(TWO, count=1), "bytes behind its last entry"),
        (forge(TWO, count=3), "ends inside an entry"),
        (forge(TWO, count=300), "impossible size"),
        (forge(TWO, count=0), "impossible size"),
        (forge(TWO, head_count=3), "holds 2 sessions"),
        (forge(TWO, chunk=change(20, struct.pack("<I", 300))), "not as long as announced"),
        (forge(TWO, chunk=change(20, struct.pack("<I", CHUNK_RAW_BYTES_MAX + 1))), "impossible size"),
        (forge(TWO, chunk=change(24, struct.pack("<I", 0xFFFFFFFF))), "impossible size"),
        (forge(TWO, chunk=change(24, struct.pack("<I", 100_000))), "ends inside chunk 0"),
        (forge(TWO, chunk=change(28, b"\1")), "not where it should be"),
        (forge(TWO, chunk=change(12, b"\1")), "not where it should be"),
        (forge(TWO, is_compressed=True, chunk=change(20, struct.pack("<I", 300))), "that are announced"),
        (forge(TWO, is_compressed=True, chunk=change(32, b"not zstd")), "do not decompress"),
    ],
)
def test_snapshot_when_it_says_what_cannot_be_is_refused_though_every_check_fits(
    tmp_path: Path, data: bytes, words: str
) -> None:
    assert forge(TWO) != data
    path = tmp_path / "some.file"
    path.write_bytes(forge(TWO))
    assert verify_snapshot(path) == head_of(TWO).at
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=words) as caught:
        verify_snapshot(path)
    assert caught.value.path == str(path)


def test_snapshot_when_a_chunk_would_become_gigabytes_is_refused_within_bounds(tmp_path: Path) -> None:
    bomb = zstd.compress(bytes(64 << 20), 19)

    def with_bomb(data: bytes) -> bytes:
        header = bytearray(data[:CHUNK_HEADER_BYTES])
        header[24:28] = struct.pack("<I", len(bomb))
        return bytes(header) + bomb

    path = tmp_path / "some.file"
    path.write_bytes(forge(TWO, is_compressed=True, chunk=with_bomb))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError, match="announced"):
            verify_snapshot(path)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", CorruptError, "ends inside its head"),
        (bytes(4096), CorruptError, "all zeros"),
        (b"SQLite format 3\0" * 100, ForeignError, "not a snapshot"),
    ],
)
def test_file_when_it_is_no_snapshot_says_what_it_is_instead(
    tmp_path: Path, data: bytes, error: type[Exception], words: str
) -> None:
    path = tmp_path / snapshot_name(77, 3)
    path.write_bytes(data)
    for reading in (read_head, verify_snapshot, SnapshotReader):
        with pytest.raises(error, match=words):
            reading(path)


def test_snapshot_when_it_is_of_a_newer_format_says_which(tmp_path: Path, small: bytes) -> None:
    newer = bytearray(small[:HEAD_BYTES])
    newer[8:10] = (2).to_bytes(2, "little")
    newer[-8:] = struct.pack("<Q", xxh3_64(bytes(newer[:-8])))
    path = tmp_path / "some.file"
    path.write_bytes(bytes(newer) + small[HEAD_BYTES:])
    with pytest.raises(FormatVersionError, match="format 2 is newer than 1") as caught:
        SnapshotReader(path)
    assert "version of perdure" in caught.value.hint


@pytest.mark.parametrize(
    ("offset", "new", "words"),
    [
        (8, b"\0\0", "check"),
        (112, b"\2", "check"),
        (116, b"\1", "check"),
        (32, b"\xff", "names no node"),
        (64, b"\xff" * 8, "impossible LSN"),
    ],
)
def test_head_when_it_says_what_cannot_be_is_refused_though_its_check_fits(
    offset: int, new: bytes, words: str
) -> None:
    data = bytearray(encode_head(head_of([])))
    data[offset : offset + len(new)] = new
    data[-8:] = struct.pack("<Q", xxh3_64(bytes(data[:-8])))
    with pytest.raises(CorruptError, match=words):
        decode_head(bytes(data), path="x")


def test_snapshot_when_it_is_of_another_cluster_is_foreign_and_names_both(tmp_path: Path) -> None:
    path = write(tmp_path, some_records(1))
    for reading in (read_head, verify_snapshot, SnapshotReader):
        with pytest.raises(ForeignError, match=(b"c" * 16).hex()) as caught:
            reading(path, b"d" * 16)
        assert (b"d" * 16).hex() in str(caught.value)


def test_snapshot_when_it_was_renamed_to_another_position_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, some_records(1))
    for lsn, epoch in ((76, 3), (77, 4)):
        moved = path.rename(tmp_path / snapshot_name(lsn, epoch))
        with pytest.raises(CorruptError, match="its name says otherwise"):
            read_head(moved)
        moved.rename(path)
    assert verify_snapshot(path.rename(tmp_path / "a copy")).lsn == 77


def test_snapshot_when_it_is_missing_or_a_directory_raises_a_storage_error(tmp_path: Path) -> None:
    for reading in (read_head, verify_snapshot, SnapshotReader):
        with pytest.raises(StoreMissingError):
            reading(tmp_path / "missing")
        with pytest.raises(StorageError):
            reading(tmp_path)


def test_partial_snapshot_when_it_ends_anywhere_gives_the_chunks_that_are_good(
    scratch: Path, small: bytes
) -> None:
    head, chunks, _ = chunk_pieces(small)
    ends = [HEAD_BYTES + sum(map(len, chunks[:number])) for number in range(len(chunks) + 1)]
    for size in range(HEAD_BYTES, ends[-1] + 1):
        scratch.write_bytes(small[:size])
        good = sum(end <= size for end in ends) - 1
        with SnapshotReader(scratch, CLUSTER_ID, is_partial=True) as reader:
            found: list[ChunkRange] = []
            walk = reader.chunks()
            if size in ends:
                found = list(walk)
            else:
                with pytest.raises(CorruptError, match="ends inside"):
                    found.extend(walk)
            assert len(found) == good
            assert all(found[number].offset == ends[number] for number in range(good))
            with pytest.raises(UsageError, match="partial"):
                list(reader)
    assert len(head) == HEAD_BYTES


@fuzz(80, data=st.binary(max_size=600), tail=st.binary(max_size=100))
def test_arbitrary_bytes_when_read_as_a_snapshot_are_refused(scratch: Path, data: bytes, tail: bytes) -> None:
    good_head = encode_head(head_of(TWO))
    good_trailer = forge(TWO)[-TRAILER_BYTES:]
    for made in (data, good_head + data, good_head + data + good_trailer, good_head + tail):
        scratch.write_bytes(made)
        refused(verify_snapshot, scratch)
        try:
            with SnapshotReader(scratch, is_partial=True) as reader:
                assert list(reader.chunks()) == []
        except REFUSALS:
            continue


def test_damaged_snapshot_when_read_is_refused_or_unchanged(scratch: Path, small: bytes, seed: int) -> None:
    source = random.Random(seed)
    for _ in range(400):
        bad = damaged(small, source)
        scratch.write_bytes(bad)
        try:
            read_all(scratch)
        except REFUSALS:
            continue
        assert bad == small


def test_reader_when_closed_twice_or_left_by_an_error_closes_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, some_records(3))
    reader = SnapshotReader(path)
    assert descriptors_below(path.parent) == 1
    reader.close()
    assert descriptors_below(path.parent) == 0
    reader.close()
    path.write_bytes(path.read_bytes()[:-1])
    for _ in range(3):
        with pytest.raises(CorruptError):
            SnapshotReader(path)
    assert descriptors_below(path.parent) == 0
    assert snapshot.__all__ == sorted(snapshot.__all__)
