"""A thread that asks for short slices: what the system then says of it, and of the others."""

from __future__ import annotations

import ctypes
import os
import platform
import threading

import pytest

from perdure.shipping.slices import _ATTR, SLICE_NS, ask_for_short_slices

_GETATTR = {"x86_64": 315, "aarch64": 275, "riscv64": 275}.get(platform.machine())
_RUNTIME = 5


def attributes() -> tuple[int, ...]:
    """The calling thread's scheduling attributes."""
    assert _GETATTR is not None
    buffer = ctypes.create_string_buffer(_ATTR.size)
    if ctypes.CDLL(None).syscall(ctypes.c_long(_GETATTR), 0, buffer, _ATTR.size, 0):
        pytest.skip("the system does not tell a thread's attributes")
    return tuple(_ATTR.unpack(buffer.raw))


@pytest.mark.skipif(_GETATTR is None, reason="the numbers of the calls are not known here")
def test_only_the_thread_that_asks_changes_and_only_its_slice() -> None:
    before, told, nice = attributes(), list[tuple[int, ...]](), os.getpriority(os.PRIO_PROCESS, 0)

    def ask() -> None:
        assert ask_for_short_slices()
        told.append(attributes())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert len(told) == 1
    after = told[0]
    assert after[_RUNTIME] in (SLICE_NS, before[_RUNTIME])  # an older system has no slices of a thread's own
    assert after[:_RUNTIME] == before[:_RUNTIME]
    assert os.getpriority(os.PRIO_PROCESS, 0) == nice
    assert attributes() == before


def test_where_the_call_is_not_known_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "another")
    assert not ask_for_short_slices()
