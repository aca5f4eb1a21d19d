"""Where a node's processes listen: what was really taken, told by the node process to all others.

Owns the file `ports` in a store's directory. It is a memory, not a lock: a port of a process that has ended
is refused when somebody connects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.errors import FormatError
from ..store.smallfile import publish_small, read_small_file

MAGIC: Final = b"PDRPORT1"
VERSION: Final = 1


class NodePorts(msgspec.Struct, frozen=True):
    """TCP ports of one node; 0 where nothing listens."""

    listen: int = 0
    """The receiver's."""
    serve: int = 0
    """The server's: forwarded writes and questions of other nodes."""
    monitor: int = 0
    """The monitor's: heartbeats."""


def write_ports(store: Path, ports: NodePorts) -> None:
    """Replace what is known. Raises StorageError."""
    publish_small(store / names.PORTS, MAGIC, VERSION, ports)


def read_ports(store: Path) -> NodePorts:
    """What the node process took last; zeros if it never ran, or if the file is damaged."""
    try:
        return read_small_file(store / names.PORTS, MAGIC, VERSION, NodePorts) or NodePorts()
    except FormatError:
        return NodePorts()  # it is made anew by the next start; nothing else depends on it
