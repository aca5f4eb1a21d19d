"""A bell: a word of the control page at which processes wait until another one rings.

Owns the futex behind it. A wait ends at a ring or at its timeout, whatever became of who was to ring; where
there is no futex it is a short sleep.

Invariant: nothing is right or wrong because of a bell. Who has waited looks for itself.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import time
from collections.abc import Callable
from mmap import mmap
from typing import Final, TypeAlias

SLEEP_S: Final = 0.0001
"""How long a wait takes at most where no ring can end it."""
_NUMBERS: Final = {
    "x86_64": 202,
    "aarch64": 98,
    "riscv64": 98,
    "loongarch64": 98,
    "ppc64le": 221,
    "s390x": 238,
}
"""Of the system call, by machine, for processes of 64 bits."""
_WAIT: Final = 0
_WAKE: Final = 1
_EVERYBODY: Final = 0x7FFFFFFF
_MASK32: Final = 0xFFFFFFFF
_LOW_HALF: Final = 4 if sys.byteorder == "big" else 0
_ENDED: Final = (0, errno.EAGAIN, errno.ETIMEDOUT, errno.EINTR)

Futex: TypeAlias = Callable[[int, int, float], int]
"""(operation, value, timeout in s) -> 0 or the error's number."""


class Bell:
    """One process's handle of a bell. Its first wait or ring, not its making, costs an import."""

    def __init__(self, memory: mmap, words: memoryview, word: int) -> None:
        """`memory` is the mapping of the control page, `word` the number of the bell's among its `words`."""
        self._memory = memory
        self._words = words
        self._word = word
        self._is_made = False
        self._futex: Futex | None = None

    def heard(self) -> int:
        """What wait() takes: where the bell stands before the caller looks for itself."""
        return self._words[self._word] & _MASK32

    def wait(self, heard: int, timeout_s: float) -> None:
        """Sleep until it is rung after `heard`, for `timeout_s` at most; or shorter, for no reason."""
        futex = self._made()
        if futex is None:
            time.sleep(min(SLEEP_S, timeout_s))
        elif futex(_WAIT, heard, timeout_s) not in _ENDED:
            self._futex = None  # it is forbidden here

    def ring(self) -> None:
        """Wake all that wait."""
        words, word = self._words, self._word
        words[word] = (words[word] + 1) & _MASK32
        futex = self._made()
        if futex is not None:
            futex(_WAKE, _EVERYBODY, 0.0)

    def close(self) -> None:
        """Before the page is given back."""
        self._is_made, self._futex = True, None

    def _made(self) -> Futex | None:
        if not self._is_made:
            self._futex = _make_futex(self._memory, self._word * 8 + _LOW_HALF)
            self._is_made = True
        return self._futex


def _make_futex(memory: mmap, offset: int) -> Futex | None:
    """The futex at an offset of a mapping that processes share, None where there is none."""
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        return None
    number = _NUMBERS.get(os.uname().machine)
    try:
        import ctypes  # noqa: PLC0415 - most processes never wait for another one

        call = ctypes.CDLL(None, use_errno=True).syscall
    except (ImportError, OSError, AttributeError):
        return None
    if number is None:
        return None

    class TimeSpec(ctypes.Structure):
        _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))

    long, uint32, reference, get_errno = ctypes.c_long, ctypes.c_uint32, ctypes.byref, ctypes.get_errno
    call.restype = long
    # The address alone: what ctypes makes of the mapping itself would keep it from being closed.
    address = ctypes.c_void_p(ctypes.addressof(uint32.from_buffer(memory, offset)))
    call_number = long(number)

    def futex(operation: int, value: int, timeout_s: float) -> int:
        seconds = int(timeout_s)
        timeout = TimeSpec(seconds, int((timeout_s - seconds) * 1e9))
        done = call(call_number, address, operation, uint32(value), reference(timeout), None, 0)
        return 0 if done >= 0 else get_errno()

    return futex
