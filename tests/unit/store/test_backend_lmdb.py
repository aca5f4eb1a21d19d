"""What is LMDB's own: the direct get, growth of the map, blocks ahead, the engine, readers, damage."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from perdure.store import engine_lmdb
from perdure.store.backend_lmdb import LmdbBackend
from perdure.store.blocks import Tree, Work, pages_needed
from perdure.store.errors import CorruptError, FormatError, PerdureError, StorageError, StorageFullError
from perdure.store.ports import Change
from tests.contract.children import at, child

MIB = 1 << 20


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir()
    return directory


def many(count: int, start: int = 0) -> list[Change]:
    return [(b"%08d" % number, b"r" * 250) for number in range(start, start + count)]


def test_get_is_the_engine_s_own_function_while_no_id_is_long(place: Path) -> None:
    backend = LmdbBackend(place)
    backend.fold(many(10), [], [], at(1))
    backend.refresh()
    assert type(backend.get).__name__ == "builtin_function_or_method"
    backend.fold([(b"l" * 600, b"record-l")], [], [], at(2))
    backend.refresh()
    assert type(backend.get).__name__ == "method"
    assert backend.get(b"00000003") == b"r" * 250
    assert backend.get(b"l" * 600) == b"record-l"
    backend.fold([(b"l" * 600, None)], [], [], at(3))
    backend.refresh()
    assert type(backend.get).__name__ == "builtin_function_or_method"
    backend.close()


@pytest.mark.parametrize("mapped", [False, True])
def test_the_map_grows_and_a_process_that_has_the_old_size_follows(place: Path, mapped: bool) -> None:
    backend = LmdbBackend(place, map_bytes=MIB, mapped=mapped)
    words = [sys.executable, "-c", READ_TWICE, str(place), str(int(mapped))]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as reader:
        assert reader.stdout is not None
        assert reader.stdin is not None
        assert reader.stdout.readline() == b"0\n"
        backend.refresh()
        backend.fold(many(30_000), [], [], at(1))
        assert backend.refresh() == at(1)
        assert backend.get(b"00029999") == b"r" * 250
        reader.stdin.write(b"again\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == b"1\n"
    assert backend._shared.env.info()["map_size"] > MIB
    backend.close()


READ_TWICE = """
import sys
from pathlib import Path
from perdure.store.backend_lmdb import LmdbBackend
backend = LmdbBackend(Path(sys.argv[1]), map_bytes=1 << 20, mapped=sys.argv[2] == "1")
print(backend.refresh().lsn, flush=True)
sys.stdin.readline()
scan = backend.scan(b"00029998")
assert len(list(scan)) == 1
scan.close()
print(backend.refresh().lsn, flush=True)
assert backend.get(b"00029999") == b"r" * 250
backend.close()
"""


def test_the_map_does_not_move_under_a_scan(place: Path) -> None:
    backend = LmdbBackend(place, map_bytes=MIB)
    backend.fold(many(500), [], [], at(1))
    backend.refresh()
    scan = backend.scan()
    rows = iter(scan)
    next(rows)
    with pytest.raises(StorageFullError, match="map"):
        backend.fold(many(30_000), [], [], at(2))
    assert len(list(rows)) == 499
    scan.close()
    assert backend.refresh() == at(1)
    backend.fold(many(30_000), [], [], at(2))
    assert backend.refresh() == at(2)
    backend.close()


def test_no_transaction_takes_more_pages_than_were_allocated_for_it(
    place: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = random.Random(seed)
    bounds: list[int] = []

    def remember(tree: Tree, work: Work) -> int:
        bounds.append(tree.last_page + pages_needed(tree, work))
        return pages_needed(tree, work)

    monkeypatch.setattr(engine_lmdb, "pages_needed", remember)
    backend = LmdbBackend(place, mapped=True)
    present: list[bytes] = []
    scan = backend.scan()  # pins every page from now on, so that no page is taken from the free ones
    for lsn in range(1, 60):
        keys_max, records_max = chosen.choice([(8, 40), (32, 300), (511, 1900), (600, 9000)])
        changed: dict[bytes, bytes | None] = {
            chosen.randbytes(chosen.randint(1, keys_max)): b"r" * chosen.randint(8, records_max)
            for _ in range(chosen.choice([1, 30, 800]))
        }
        changed |= dict.fromkeys(chosen.sample(present, min(len(present), chosen.choice([0, 5, 700]))))
        armed = [(chosen.randrange(100_000), key) for key in changed]
        backend.fold(sorted(changed.items()), armed, backend.due(1 << 40, 50), at(lsn))
        assert backend._shared.env.info()["last_pgno"] <= bounds[-1]
        present = [*present, *changed][-3000:]
    scan.close()
    backend.close()


def test_the_file_is_no_larger_than_what_is_in_it_although_its_map_is(place: Path) -> None:
    data = place / engine_lmdb.DATA_FILE
    backend = LmdbBackend(place, mapped=True)
    assert data.stat().st_size < 16 * MIB
    backend.fold(many(1000), [], [], at(1))
    with child("demand", "lmdb-mapped", place) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write("go\n")
        other.stdin.flush()
        assert other.stdout.readline() == "1\n"
        backend.fold(many(1000), [], [], at(2))
        assert data.stat().st_size < 32 * MIB
    backend.close()
    assert data.stat().st_size < 8 * MIB
    assert data.stat().st_blocks * 512 >= data.stat().st_size - 4096
    again = LmdbBackend(place, mapped=True)
    assert again.refresh() == at(2)
    again.close()


def test_files_of_the_other_engine_are_refused(place: Path) -> None:
    lmdb.open(str(place), lib_version=1).close()
    with pytest.raises(FormatError, match="perdure repair"):
        LmdbBackend(place)


def test_files_that_are_no_database_are_refused(place: Path) -> None:
    (place / engine_lmdb.DATA_FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(CorruptError) as caught:
        LmdbBackend(place)
    assert caught.value.path == str(place / engine_lmdb.DATA_FILE)


def test_a_missing_directory_is_named(place: Path) -> None:
    with pytest.raises(StorageError) as caught:
        LmdbBackend(place / "not there")
    assert caught.value.path == str(place / "not there")


def test_a_killed_reader_does_not_pin_pages(place: Path) -> None:
    backend = LmdbBackend(place)
    backend.fold(many(2000), [], [], at(1))
    words = [sys.executable, "-c", HOLD_A_VIEW, str(place)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"viewing\n"
        reader.kill()
    assert f" {reader.pid} " in backend._shared.env.readers()
    for lsn in range(2, 3 + engine_lmdb.FOLDS_PER_READER_CHECK):
        backend.fold(many(1), [], [], at(lsn))
    assert f" {reader.pid} " not in backend._shared.env.readers()
    backend.close()


HOLD_A_VIEW = """
import sys, time
from pathlib import Path
from perdure.store.backend_lmdb import LmdbBackend
backend = LmdbBackend(Path(sys.argv[1]))
backend.refresh()
print("viewing", flush=True)
time.sleep(60)
"""


def test_handles_of_one_process_share_one_environment_until_the_last_is_closed(place: Path) -> None:
    first, second = LmdbBackend(place), LmdbBackend(place)
    assert first._shared is second._shared
    first.close()
    second.fold(many(3), [], [], at(1))
    assert second.refresh() == at(1)
    second.close()
    third = LmdbBackend(place)
    assert third._shared is not first._shared
    assert third.refresh() == at(1)
    third.close()


def test_errors_of_get_are_named_and_can_be_translated(place: Path) -> None:
    backend = LmdbBackend(place)
    backend.refresh()
    with pytest.raises(backend.engine_errors) as caught:
        backend.get(b"")
    assert isinstance(backend.translate(caught.value), PerdureError)
    backend.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (lmdb.CorruptedError("x"), CorruptError),
        (lmdb.PageNotFoundError("x"), CorruptError),
        (lmdb.PanicError("x"), CorruptError),
        (lmdb.InvalidError("x"), CorruptError),
        (lmdb.VersionMismatchError("x"), FormatError),
        (lmdb.MapFullError("x"), StorageFullError),
        (lmdb.DiskError("x"), StorageFullError),
        (lmdb.ReadersFullError("x"), StorageError),
        (lmdb.Error("x"), StorageError),
    ],
)
def test_each_error_of_the_engine_becomes_one_of_ours(
    error: lmdb.Error, kind: type[PerdureError], place: Path
) -> None:
    translated = engine_lmdb.translate_lmdb(error, place)
    assert isinstance(translated, kind)
    assert translated.path == str(place)
