"""A full disk is an error like any other: on real small file systems, where this user may mount some."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.conftest import WAYS, is_shared

SIZE_MIB = 24
FILE_SYSTEMS = ("tmpfs", "ext4")


def command(*words: str | Path) -> bool:
    try:
        return subprocess.run([*map(str, words)], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def small_file_system(kind: str, directory: Path, size_mib: int = SIZE_MIB) -> Iterator[Path]:
    mounted = directory / "mounted"
    mounted.mkdir()
    if kind == "tmpfs":
        done = command("mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "none", mounted)
    else:
        image = directory / "image"
        with image.open("wb") as file:
            file.truncate(size_mib << 20)
        done = command("mkfs.ext4", "-q", "-F", "-m", "0", image) and command(
            "mount", "-o", "loop", image, mounted
        )
    if not done:
        pytest.skip(f"cannot mount a {kind} here")
    try:
        yield mounted
    finally:
        if not command("umount", mounted):
            command("umount", "-l", mounted)


def status_of(do: str, way: str, file_system: Path) -> int:
    place = file_system / "state"
    place.mkdir()
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    words = [sys.executable, "-m", "tests.unit.store.full_disk_process", do, way, str(place)]
    return subprocess.run(words, env=environment, check=False, timeout=60).returncode


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
@pytest.mark.parametrize("way", [way for way in WAYS if is_shared(way)])
def test_on_a_full_disk_folds_fail_reads_go_on_and_space_heals(way: str, kind: str, tmp_path: Path) -> None:
    with small_file_system(kind, tmp_path) as file_system:
        assert status_of("run", way, file_system) == 0


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
@pytest.mark.parametrize("way", [way for way in WAYS if is_shared(way)])
def test_opened_on_a_full_disk_it_fails_or_works_and_space_heals(way: str, kind: str, tmp_path: Path) -> None:
    with small_file_system(kind, tmp_path) as file_system:
        assert status_of("open", way, file_system) == 0


def test_without_blocks_allocated_ahead_a_full_disk_kills(tmp_path: Path) -> None:
    with small_file_system("tmpfs", tmp_path) as file_system:
        assert status_of("unreserved", "lmdb-mapped", file_system) == -signal.SIGBUS
