"""Short time slices: how a thread that others wait for asks the system to run it soon.

Owns the one call for it. Linux lets a thread of the normal policy say for how long it wants to run at a time
(from 6.12 on): who asks for little is let in front of those that compute, and gets no larger a share. A
shipper and a receiver work for a fraction of a millisecond, and then wait for the disk or a peer; on a busy
machine most of a synchronous write's time is their waiting for a processor. Needs no privilege. Where the
system knows none of this nothing changes.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

SLICE_NS: Final = 100_000
"""The shortest that there is."""
_SETATTR: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""Number of the system call sched_setattr."""
_ATTR: Final = struct.Struct("=IIQiIQQQ")
"""Size, policy, flags, nice value, priority, runtime (ns), deadline, period."""
_CALLING_THREAD: Final = 0


def ask_for_short_slices() -> bool:
    """Have the calling thread run sooner, and shorter at a time; says whether the system took it.

    Older systems take it, too, and do nothing. Not for a thread of another policy than the normal one.
    """
    number = _SETATTR.get(platform.machine())
    if number is None or os.sched_getscheduler(_CALLING_THREAD) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, _CALLING_THREAD)
    attributes = _ATTR.pack(_ATTR.size, os.SCHED_OTHER, 0, nice, 0, SLICE_NS, 0, 0)
    try:
        call = ctypes.CDLL(None).syscall
    except (OSError, AttributeError):
        return False
    return bool(call(ctypes.c_long(number), _CALLING_THREAD, attributes, 0) == 0)
