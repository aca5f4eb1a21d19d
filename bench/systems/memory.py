"""How much memory processes take that nobody else could give back: what counts as a system's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable


def own_bytes(pids: Iterable[int]) -> int:
    """Anonymous and shared memory (not mapped files), what several of them share counted once.

    One that has ended meanwhile counts as nothing. Raises PermissionError for another user's.
    """
    total_kb = 0
    for pid in pids:
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file,
        ):
            for line in file:
                name, _, rest = line.partition(":")
                if name in ("Pss_Anon", "Pss_Shmem"):
                    total_kb += int(rest.split()[0])
    return total_kb * 1024
