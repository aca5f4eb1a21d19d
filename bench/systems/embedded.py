"""What is common to systems that live in the processes that use them: a folder, no process of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .ports import Address


class EmbeddedRunning:
    """A folder with what the clients' processes keep in it."""

    def __init__(self, folder: Path, address: Address, parts: Mapping[str, tuple[str, ...]]) -> None:
        """`parts` are the parts of its disk use, each as glob patterns below the folder."""
        self._folder = folder
        self._parts = parts
        self.address = address

    @property
    def pids(self) -> tuple[int, ...]:
        return ()

    def disk_bytes(self) -> Mapping[str, int]:
        return {part: allocated_bytes(self._folder, *patterns) for part, patterns in self._parts.items()}

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def start_again(self) -> None:
        pass

    def close(self) -> None:
        pass


def allocated_bytes(folder: Path, *patterns: str) -> int:
    """What the disk gives to these files; a sparse one counts with its blocks."""
    found = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return sum(file.stat().st_blocks * 512 for file in found)
