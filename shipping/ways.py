"""What a node process was told of the way to the other nodes, for applications and commands on the same node.

Owns the file `ways` in a store's directory: addresses, and where the secret and the certificates are, never
the secret itself. It is a memory: what the log says of members and what a configuration says win over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.errors import FormatError
from ..store.option import split_address
from ..store.smallfile import publish_small, read_small_file
from .credentials import Secret, TlsFiles, secret_of, tls_of

MAGIC: Final = b"PDRWAYS1"
VERSION: Final = 1


class NodeWays(msgspec.Struct, frozen=True):
    """Receivers of other nodes as HOST:PORT by name, and what opens them. Paths are absolute, or empty."""

    peers: dict[str, str] = {}
    has_secret: bool = False
    """The nodes share a secret."""
    secret_file: str = ""
    """Where the node process read it; empty if it was in its environment."""
    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""
    allow_plain: bool = False
    listen_host: str = ""
    """Where its receiver and its server listen."""
    monitor_host: str = ""
    """Where its monitor listens."""

    @property
    def tls(self) -> TlsFiles | None:
        """The certificates' files, None if links are plain."""
        return TlsFiles(self.tls_cert, self.tls_key, self.tls_ca) if self.tls_ca else None

    def addresses(self, own: str) -> dict[str, tuple[str, int]]:
        """(host, port) of all nodes but `own`. Raises UsageError for what is no address."""
        return {node: split_address(address) for node, address in self.peers.items() if node != own}


def ways_of(
    peers: Mapping[str, str],
    secret: Secret,
    secret_file: Path | None,
    *,
    listen_host: str = "",
    monitor_host: str = "",
) -> NodeWays:
    """What is to be remembered of a node's addresses and credentials; `secret_file` is where these stand."""
    tls = tls_of(secret)
    has_secret = bool(secret_of(secret))
    return NodeWays(
        dict(peers),
        has_secret,
        _absolute(secret_file) if has_secret and secret_file is not None else "",
        _absolute(tls.cert) if tls else "",
        _absolute(tls.key) if tls else "",
        _absolute(tls.ca) if tls else "",
        allow_plain=not isinstance(secret, bytes) and secret.allow_plain,
        listen_host=listen_host,
        monitor_host=monitor_host,
    )


def write_ways(store: Path, ways: NodeWays) -> None:
    """Replace what is known; only this user can read it. Raises StorageError."""
    publish_small(store / names.WAYS, MAGIC, VERSION, ways)


def read_ways(store: Path) -> NodeWays:
    """What the node process was told last; nothing if it never ran here, or if the file is damaged.

    Raises StorageError if this user may not read it.
    """
    try:
        return read_small_file(store / names.WAYS, MAGIC, VERSION, NodeWays) or NodeWays()
    except FormatError:
        return NodeWays()  # the next start of the node makes it anew


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())
