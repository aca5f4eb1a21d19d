"""Which directory this is: device, inode, mount, and the type of its file system.

Owns what is asked of the kernel about that. The mount id is the one that the kernel never gives twice
within a boot (statx with STATX_MNT_ID_UNIQUE, Linux 6.8): the older id of /proc/self/mountinfo is
handed out again at once, so that a file system which was taken away and mounted again looks unmoved.
Older kernels and C libraries without statx give that older id.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import NamedTuple

from .files import translated

_AT_EMPTY_PATH = 0x1000
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_BYTES = 256
_MNT_ID_OFFSET = 0x90


class Place(NamedTuple):
    """Where a directory is."""

    device: int
    inode: int
    mount_id: int
    file_system: str
    """Type as in /proc/self/mountinfo ("ext4", "tmpfs"); empty if it cannot be told."""


def place_of(directory: Path) -> Place:
    """Where `directory` is now. Raises StorageError or StoreMissingError if it cannot be opened."""
    with translated("cannot look at a directory", directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            listed = _listed_mount_id(descriptor)
            unique = _unique_mount_id(descriptor)
        finally:
            os.close(descriptor)
    return Place(status.st_dev, status.st_ino, listed if unique is None else unique, _type_of_mount(listed))


def _unique_mount_id(descriptor: int) -> int | None:
    try:
        statx = ctypes.CDLL(None, use_errno=True).statx
    except (OSError, AttributeError):
        return None
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_MNT_ID_UNIQUE, answer) != 0:
        return None
    known: int = struct.unpack_from("=I", answer, 0)[0]
    mount_id: int = struct.unpack_from("=Q", answer, _MNT_ID_OFFSET)[0]
    return mount_id if known & _STATX_MNT_ID_UNIQUE else None


def _listed_mount_id(descriptor: int) -> int:
    for line in _read_lines(f"/proc/self/fdinfo/{descriptor}"):
        name, _, value = line.partition(":")
        if name == "mnt_id" and value.strip().isdigit():
            return int(value)
    return 0


def _type_of_mount(mount_id: int) -> str:
    for line in _read_lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        if before.split(" ", 1)[0] == str(mount_id):
            return after.split(" ", 1)[0]
    return ""


def _read_lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
