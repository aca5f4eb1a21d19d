"""Telling the init system how the node is: ready, its state, alive, stopping (the protocol of sd_notify).

Owns the datagrams to the socket that NOTIFY_SOCKET names, and when the next sign of life is due. Without that
variable nothing is sent. What cannot be sent is not tried again: the init system may be away.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic

SOCKET_VARIABLE = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE = "WATCHDOG_USEC"
WATCHDOG_PID_VARIABLE = "WATCHDOG_PID"


class Notifier:
    """The way to the init system."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        self._address = _address(variables.get(SOCKET_VARIABLE, ""))
        self._every_s = _watchdog_s(variables) / 2
        """Twice as often as it is asked for."""
        self._alive_s = 0.0
        self._status = ""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None

    def ready(self, status: str) -> None:
        """The node listens."""
        self._send("READY=1")
        self.status(status)

    def status(self, text: str) -> None:
        """One line for people; sent when it changes."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def alive(self) -> None:
        """A sign of life, if one is due."""
        now_s = monotonic()
        if self._every_s and now_s - self._alive_s >= self._every_s:
            self._alive_s = now_s
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The node ends in order. Nothing is sent after this."""
        self._send("STOPPING=1")
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto(text.encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)


def _address(name: str) -> str:
    """The socket's address; a name that begins with @ is in the abstract namespace."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _watchdog_s(variables: Mapping[str, str]) -> float:
    """How often a sign of life is asked for, 0 if not, or not from this process."""
    wanted = variables.get(WATCHDOG_PID_VARIABLE, "")
    text = variables.get(WATCHDOG_VARIABLE, "")
    if (wanted and wanted != str(os.getpid())) or not text.isdecimal():
        return 0.0
    return int(text) / 1_000_000
