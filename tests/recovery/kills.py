"""Death at a chosen system call: a child that kills itself before its n-th call that changes files."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

CALLS = ("write", "pwrite", "fsync", "fdatasync", "rename", "unlink", "ftruncate", "mkdir")


def killed(action: Callable[[], object], before_call: int) -> bool:
    """Run `action` in a forked child that dies by SIGKILL before that call; False if it ended first.

    Only calls of Python's own os module are counted, not those inside an engine's library.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _arm(before_call)
            action()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _arm(left: int) -> None:
    counter = {"left": left}

    def wrap(call: Callable[..., object]) -> Callable[..., object]:
        def struck(*args: object, **more: object) -> object:
            if counter["left"] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            counter["left"] -= 1
            return call(*args, **more)

        return struck

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))
