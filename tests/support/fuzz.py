"""Random bytes for decoders: hypothesis with a seed that can be given, and damage done to good bytes.

Owns how a fuzz test is seeded (PERDURE_SEED, as elsewhere) and the kinds of damage. It knows no format.
"""

from __future__ import annotations

import functools
import os
import random
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis

SEED_VARIABLE = "PERDURE_SEED"
SEED = int(os.environ[SEED_VARIABLE], 0) if os.environ.get(SEED_VARIABLE) else secrets.randbits(32)

Test = Callable[..., None]


def fuzz(max_examples: int, **strategies: Any) -> Callable[[Test], Test]:
    """hypothesis.given, seeded by PERDURE_SEED if that is set; a failure names its seed."""

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def noted(*args: Any, **kwargs: Any) -> None:
            try:
                test(*args, **kwargs)
            except Exception as error:
                error.add_note(f"{SEED_VARIABLE}={SEED}")
                raise

        given = hypothesis.given(**strategies)(noted)
        settings = hypothesis.settings(
            max_examples=max_examples,
            deadline=None,
            database=None,
            suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
        )
        seeded: Test = hypothesis.seed(SEED)(settings(given))
        return seeded

    return decorate


def flips(good: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, `good` with one bit there turned), for every byte; which bit changes from byte to byte."""
    for offset, byte in enumerate(good):
        yield offset, good[:offset] + bytes([byte ^ (1 << offset % 8)]) + good[offset + 1 :]


def cuts(good: bytes) -> Iterator[bytes]:
    """`good` cut to every shorter length."""
    for length in range(len(good)):
        yield good[:length]


def damaged(good: bytes, source: random.Random) -> bytes:
    """`good` with one to four random changes: bits, bytes, runs of zeros, cuts, repeats, insertions."""
    data = bytearray(good)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(data) + 1)
        kind = source.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << source.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = source.randrange(256)
        elif kind == 2:
            size = source.randrange(1, 40)
            data[at : at + size] = bytes(len(data[at : at + size]))
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at:at] = data[at : at + source.randrange(1, 100)]
        else:
            data[at:at] = source.randbytes(source.randrange(1, 20))
    return bytes(data)
