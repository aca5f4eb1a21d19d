"""Crash images follow the rules of durability, and LMDB itself agrees with them."""

from __future__ import annotations

import struct
from pathlib import Path

import lmdb
import pytest

from tests.support.faults.content import CONTENT_BYTES_MAX, Content, ContentTooLargeError
from tests.support.faults.explore import explore, rebuild
from tests.support.faults.images import CrashImages, Shape
from tests.support.faults.ledger import History
from tests.support.faults.trace import Base, Kind, Model, Trace
from tests.support.faults.workload import Recording, Workload, record

PROGRAMS = "tests.crash.programs:"
DIRECTORY = 100


def trace_of(tmp_path: Path, *rows: tuple[Kind, str, int, int, bytes], base: Base | None = None) -> Trace:
    """A trace from (kind, path, inode, offset, data) rows, by one process."""
    blob = b""
    for kind, path, inode, offset, data in rows:
        name = path.encode()
        head = struct.pack("<IHHIIqQ", 32 + len(name) + len(data), kind, len(name), 1, 1, offset, inode)
        blob += head + name + data
    (tmp_path / "trace").write_bytes(blob)
    return Trace.load(tmp_path / "trace", base)


def synced(path: str, inode: int) -> list[tuple[Kind, str, int, int, bytes]]:
    return [(Kind.SYNC_BEGIN, path, inode, 0, b""), (Kind.SYNC_END, path, inode, 0, b"")]


def created(path: str, inode: int, data: bytes = b"") -> list[tuple[Kind, str, int, int, bytes]]:
    rows = [(Kind.CREATE, path, inode, 0, b"")]
    return [*rows, (Kind.WRITE, path, inode, 0, data)] if data else rows


def at_the_end(trace: Trace, mode: str, model: Model = Model.STRICT) -> dict[str, bytes]:
    image = CrashImages(trace, model=model).build(Shape(len(trace.ops), mode))
    return image.files


def test_a_synced_file_without_its_directory_is_lost_in_the_strict_model_only(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, *created("a", 1, b"data"), *synced("a", 1))
    assert at_the_end(trace, "none") == {}
    assert at_the_end(trace, "none", Model.EXT4) == {"a": b"data"}
    trace = trace_of(tmp_path, *created("a", 1, b"data"), *synced("a", 1), *synced(".", DIRECTORY))
    assert at_the_end(trace, "none") == {"a": b"data"}


def test_a_rename_without_a_sync_of_the_file_may_leave_it_empty(tmp_path: Path) -> None:
    base = Base({"a": Content(b"old")}, [], {"a": 9})
    rows = [*created("a.tmp", 1, b"new"), (Kind.RENAME, "a.tmp", 0, 0, b"a")]
    trace = trace_of(tmp_path, *rows, base=base)
    assert at_the_end(trace, "none") == {"a": b"old"}
    assert at_the_end(trace, "names") == {"a": b""}
    assert at_the_end(trace, "all") == {"a": b"new"}


def test_a_rename_between_directories_needs_both_of_them_synced(tmp_path: Path) -> None:
    base = Base({"x/a": Content(b"1")}, ["x", "y"], {"x/a": 1, "x": 2, "y": 3})
    rename = (Kind.RENAME, "x/a", 0, 0, b"y/a")
    assert at_the_end(trace_of(tmp_path, rename, *synced("y", 3), base=base), "none") == {"x/a": b"1"}
    both = trace_of(tmp_path, rename, *synced("y", 3), *synced("x", 2), base=base)
    assert at_the_end(both, "none") == {"y/a": b"1"}


def test_a_write_before_a_failed_sync_stays_unsure_after_a_good_one(tmp_path: Path) -> None:
    base = Base({"a": Content(b"")}, [], {"a": 1})
    failed = (Kind.SYNC_FAIL, "a", 1, 0, b"")
    first, second = (Kind.WRITE, "a", 1, 0, b"1" * 4096), (Kind.WRITE, "a", 1, 4096, b"2" * 4096)
    trace = trace_of(tmp_path, first, failed, second, *synced("a", 1), base=base)
    assert at_the_end(trace, "none") == {"a": bytes(4096) + b"2" * 4096}
    assert at_the_end(trace, "all") == {"a": b"1" * 4096 + b"2" * 4096}


def test_a_write_during_a_sync_is_not_covered_by_it(tmp_path: Path) -> None:
    base = Base({"a": Content(b"")}, [], {"a": 1})
    begin, end = synced("a", 1)
    trace = trace_of(tmp_path, begin, (Kind.WRITE, "a", 1, 0, b"late"), end, base=base)
    assert at_the_end(trace, "none") == {"a": b""}


def test_an_inode_that_is_used_again_is_another_file(tmp_path: Path) -> None:
    rows = [*created("a", 1, b"first"), *synced("a", 1), *synced(".", DIRECTORY)]
    rows += [(Kind.UNLINK, "a", 0, 0, b""), *created("b", 1, b"second"), *synced("b", 1)]
    trace = trace_of(tmp_path, *rows)
    assert at_the_end(trace, "none") == {"a": b"first"}
    assert at_the_end(trace, "all") == {"b": b"second"}


def test_pages_survive_as_they_stood_after_some_write(tmp_path: Path) -> None:
    base = Base({"a": Content(b"")}, [], {"a": 1})
    appends = [(Kind.WRITE, "a", 1, 10 * i, b"%010d" % i) for i in range(20)]
    trace = trace_of(tmp_path, *appends, base=base)
    images = CrashImages(trace)
    whole = b"".join(b"%010d" % i for i in range(20))
    lengths: set[int] = set()
    for variant in range(200):
        content = bytes(images.build(Shape(20, "rand", variant)).files["a"])
        kept = content.rstrip(b"\0")
        assert whole.startswith(kept), (
            "within a page and a sector a later write never comes without an earlier"
        )
        lengths.add(len(kept))
    assert len(lengths) > 10


def test_large_writes_lose_pages_in_any_order_and_tear_at_sectors(tmp_path: Path) -> None:
    base = Base({"a": Content(b"0" * 16384)}, [], {"a": 1})
    trace = trace_of(tmp_path, (Kind.WRITE, "a", 1, 0, b"1" * 16384), base=base)
    images = CrashImages(trace)
    patterns: set[tuple[str, ...]] = set()
    for variant in range(300):
        content = bytes(images.build(Shape(1, "rand", variant)).files["a"])
        patterns.add(tuple(content[i : i + 512].decode()[0] for i in range(0, 16384, 512)))
        assert all(len(set(content[i : i + 512])) == 1 for i in range(0, 16384, 512))
    assert any(pattern[0] == "0" and pattern[8] == "1" for pattern in patterns)
    assert any(len(set(pattern[:8])) == 2 for pattern in patterns)


def test_a_torn_image_keeps_all_before_the_torn_write(tmp_path: Path) -> None:
    base = Base({"a": Content(b"")}, [], {"a": 1})
    trace = trace_of(
        tmp_path, (Kind.WRITE, "a", 1, 0, b"a" * 100), (Kind.WRITE, "a", 1, 100, b"b" * 5000), base=base
    )
    lengths: list[int] = []
    for seed in range(20):
        content = CrashImages(trace, seed=seed).build(Shape(2, "torn")).files["a"]
        assert content[:100] == b"a" * 100
        assert set(content[100:]) <= {ord("b")}
        lengths.append(len(content))
    at_sectors = [length for length in lengths if length % 512 == 0]
    assert 3 <= len(at_sectors) < 20


def test_what_another_machine_wrote_is_kept_when_one_loses_power(tmp_path: Path) -> None:
    base = Base({}, ["one", "two"], {"one": 1, "two": 2})
    trace = trace_of(tmp_path, *created("one/a", 3, b"1"), *created("two/a", 4, b"2"), base=base)
    image = CrashImages(trace, subtree="one").build(Shape(len(trace.ops), "none"))
    assert image.files == {"two/a": b"2"}


def test_a_mapped_file_holds_anything_after_a_power_cut(tmp_path: Path) -> None:
    grow = (Kind.GROW, "page", 1, 4096, b"")
    rows = [*created("page", 1), grow, *synced("page", 1), *synced(".", DIRECTORY)]
    trace = trace_of(tmp_path, *rows)
    images = CrashImages(trace, blind=["page"], final={"page": Content(b"f" * 4096)})
    end = len(trace.ops)
    assert images.build(Shape(end, "none")).files["page"] == bytes(4096)
    assert images.build(Shape(end, "all")).files["page"] == b"f" * 4096
    assert len({bytes(images.build(Shape(end, "rand", i)).files["page"]) for i in range(30)}) > 5


def test_a_sparse_file_costs_no_memory_and_one_that_is_too_large_says_so(tmp_path: Path) -> None:
    huge = (Kind.TRUNC, "a", 1, 1 << 40, b"")
    rows = [*created("a", 1, b"data"), huge, *synced("a", 1), *synced(".", DIRECTORY)]
    image = CrashImages(trace_of(tmp_path, *rows)).build(Shape(len(rows), "all"))
    image.write(tmp_path / "image")
    assert (tmp_path / "image" / "a").stat().st_size == 1 << 40
    assert Base.capture(tmp_path / "image").files == {"a": Content(b"data", 1 << 40)}
    far = trace_of(tmp_path, *created("a", 1, b"data"), (Kind.WRITE, "a", 1, CONTENT_BYTES_MAX + 1, b"x"))
    with pytest.raises(ContentTooLargeError):
        CrashImages(far).build(Shape(3, "all"))


def test_an_image_is_rebuilt_from_its_name(lmdb_unsynced: Recording, workdir: Path) -> None:
    images = CrashImages(lmdb_unsynced.trace, seed=3)
    shape = Shape(60, "rand", 2)
    late = images.build(Shape(200, "all"))
    first = images.build(shape)
    rebuild(CrashImages(lmdb_unsynced.trace, seed=3), str(shape), workdir / "again")
    assert Base.capture(workdir / "again").files == first.contents
    assert late.digest() != first.digest()


def last_transaction(directory: Path, lines: list[bytes]) -> list[str]:
    acknowledged = History.of(lines).acknowledged
    try:
        environment = lmdb.open(str(directory / "state"), map_size=1 << 24, create=False)
    except lmdb.Error as error:
        return [f"(1) {acknowledged} lost: {error}"] if acknowledged else []
    try:
        with environment.begin() as transaction:
            found = int(transaction.get(b"last") or 0)
    finally:
        environment.close()
    return [f"(1) {acknowledged} acknowledged, {found} found"] if found < acknowledged else []


@pytest.fixture
def lmdb_unsynced(shim: Path, workdir: Path) -> Recording:
    return record(shim, Workload(PROGRAMS + "fill_lmdb", ["60", "nosync"]), workdir / "run")


def test_lmdb_with_its_syncs_keeps_every_transaction(shim: Path, workdir: Path) -> None:
    recording = record(shim, Workload(PROGRAMS + "fill_lmdb", ["15", "sync"]), workdir / "run")
    images = CrashImages(recording.trace, model=Model.EXT4, blind=["state/lock.mdb"])
    result = explore(images, last_transaction, limit=400)
    assert result.violations == []
    assert result.images > 50


def test_lmdb_without_syncs_loses_transactions(lmdb_unsynced: Recording) -> None:
    images = CrashImages(lmdb_unsynced.trace, model=Model.EXT4, blind=["state/lock.mdb"])
    assert explore(images, last_transaction, limit=100).violations
    result = explore(images, lambda directory, lines: [], limit=1000)
    assert result.violations == []
    print(f"{result.images} images of {len(lmdb_unsynced.trace.ops)} operations in {result.seconds:.1f} s")
    assert result.images > 500
