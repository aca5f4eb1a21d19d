"""A process that has no descriptor left, for the tests of what it does then."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
from collections.abc import Iterator
from pathlib import Path


def descriptors_below(folder: Path) -> int:
    """How many descriptors this process has of what stands in a folder."""
    found, below = 0, str(folder.resolve()) + os.sep
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # another thread closed it meanwhile
            found += os.readlink(link).startswith(below)
    return found


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """While this lasts every open, accept and socket of this process fails with EMFILE."""
    gc.collect()  # what is collected later would free some
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
