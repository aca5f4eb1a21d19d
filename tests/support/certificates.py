"""Certificates for the tests of TLS: a CA a test session, and good, foreign, expired and misnamed ones of it.

Owns how they are made. Making keys takes milliseconds; files are per directory, so tests never share any.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from perdure.shipping import Credentials, TlsFiles
from perdure.shipping.certificates import CA_CERT, make_test_ca


def certificates(folder: Path, *nodes: str) -> dict[str, TlsFiles]:
    """Files of each node under one CA, made in `folder` or by the CA that is there."""
    made = make_test_ca(folder, nodes)
    return {files.node: TlsFiles(files.cert, files.key, made.ca) for files in made.nodes}


def expired(folder: Path, node: str) -> TlsFiles:
    """Files of a node under the CA in `folder`, in force until yesterday. The CA's key is theirs too."""
    then = datetime.now(UTC) - timedelta(days=3)
    made = make_test_ca(folder, [node], days=2, now=lambda: then)
    return TlsFiles(made.nodes[0].cert, made.nodes[0].key, str(folder / CA_CERT))


def with_tls(files: TlsFiles, secret: bytes = b"") -> Credentials:
    return Credentials(secret, files)
