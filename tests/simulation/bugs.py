"""Bugs that are put into the code on purpose: the simulator must find each of them.

Owns the patches. Each takes one safeguard away, in the modules of this process alone.
"""

from __future__ import annotations

from collections.abc import Callable


def put_in(name: str) -> None:
    """Put a bug into the code. Raises KeyError for a name that there is not."""
    BUGS[name]()


BUGS: dict[str, Callable[[], None]] = {}
