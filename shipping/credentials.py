"""What a node proves itself with to other nodes: the shared secret, certificates, or both.

Owns these values and what they are compared with: whether they are enough for an address. A `secret` that is
passed on anywhere is the bare bytes, or Credentials where there are certificates as well.
"""

from __future__ import annotations

import ipaddress
from typing import Final, TypeAlias

import msgspec

from ..store.errors import UsageError, WireError

SECRET_BYTES_MIN: Final = 16


class TlsFiles(msgspec.Struct, frozen=True):
    """Paths of this node's certificate (with what leads to the CA), its key, and the cluster's CA; PEM."""

    cert: str
    key: str
    ca: str


class Credentials(msgspec.Struct, frozen=True):
    """What a node proves itself with."""

    secret: bytes = b""
    tls: TlsFiles | None = None
    allow_plain: bool = False
    """A secret without TLS will do on addresses that others can reach, too."""


Secret: TypeAlias = bytes | Credentials


class CertificateError(WireError):
    """A peer's certificate was not accepted here, or this node's was not accepted there."""


def secret_of(secret: Secret) -> bytes:
    """The shared secret itself, empty if there is none."""
    return secret.secret if isinstance(secret, Credentials) else secret


def tls_of(secret: Secret) -> TlsFiles | None:
    """The certificates, None if links are plain."""
    return secret.tls if isinstance(secret, Credentials) else None


def check_secret(secret: Secret, host: str) -> None:
    """Refuse a secret that is too short, and what is not enough on an address that others can reach.

    There it takes TLS, or a secret and the word that a plain link will do. Raises UsageError; certificates
    that cannot be read are a UsageError or a StorageError.
    """
    bare, tls = secret_of(secret), tls_of(secret)
    if bare and len(bare) < SECRET_BYTES_MIN:
        raise UsageError(
            f"the shared secret has {len(bare)} bytes, at least {SECRET_BYTES_MIN} are needed",
            hint="Make one with `openssl rand -hex 32`.",
        )
    if tls is not None:
        from .tls import check_files  # noqa: PLC0415 - ssl doubles the time of `import perdure`

        check_files(tls)
        return
    if is_loopback(host):
        return
    if not bare:
        raise UsageError(
            f"without certificates or a shared secret only loopback addresses are allowed, not {host!r}",
            hint="Set tls_cert, tls_key and tls_ca in [node] (`perdure tls test-ca` makes some to try).",
        )
    if not (isinstance(secret, Credentials) and secret.allow_plain):
        raise UsageError(
            f"a shared secret without TLS is allowed on loopback addresses only, not {host!r}",
            hint="Set tls_cert, tls_key and tls_ca in [node]; or, where nobody else can read or change what "
            "is on the wire, allow_plain = true (--allow-plain).",
        )


def is_loopback(host: str) -> bool:
    """Is a host name or address surely this machine's own?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
