"""Processes that never outlive the demo: a child that ends when its parent does, however that ends.

Owns the request to the kernel for that. `python -m perdure.cli.demo.leash ARGS...` runs the command `perdure`
with these arguments on such a leash; with `--` in front of them they are another command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT_VARIABLE = "PERDURE_DEMO_PARENT"
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it has died.

    The parent's pid stands in PERDURE_DEMO_PARENT: if it died before this call, this process ends here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.environ.get(PARENT_VARIABLE, str(os.getppid())) != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    end_with_parent()
    if sys.argv[1] == "--":
        os.execvp(sys.argv[2], sys.argv[2:])
    from ..app import main

    sys.argv[0] = "perdure"
    main()
