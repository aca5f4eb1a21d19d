"""TLS on links: contexts from files, and one connection's handshake and records. No socket here.

Owns what is accepted: TLS 1.3 only, both sides with a certificate that the cluster's CA signed, and the name
in it. Bytes go in and out through memory, so that a link stays a plain non-blocking socket. Certificates are
read again, for new connections, when one of their files has changed.

Invariant: no byte of a peer reaches the decoder, and none of ours leaves in the clear, before its certificate
was verified and holds the node's name where one is expected.
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
import threading
from typing import Any, Final, TypeAlias

from ..store.errors import PerdureError, StorageError, UsageError, WireError
from .credentials import CertificateError, TlsFiles

logger = logging.getLogger(__name__)

NAME_URI: Final = "perdure:"
"""A certificate names a node by the DNS name NODE or by the URI perdure:NODE."""
HANDSHAKE_BYTES_MAX: Final = 64 << 10
"""So much is taken from a peer before its handshake is done."""
_READ_BYTES: Final = 64 << 10
_NOT_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG", "BAD_RECORD_TYPE"}
)
_NOT_ITS_KEY: Final = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"})
_Stamp: TypeAlias = tuple[tuple[int, int, int], ...]


# -- contexts ----------------------------------------------------------------------------------------


class _Loaded:
    """The contexts of one set of files, as they were when they were read."""

    def __init__(self, files: TlsFiles, stamp: _Stamp) -> None:
        self.stamp = stamp
        self.connecting = _context(files, ssl.PROTOCOL_TLS_CLIENT)
        self.listening = _context(files, ssl.PROTOCOL_TLS_SERVER)


_loaded: dict[TlsFiles, _Loaded] = {}
_lock = threading.Lock()


def check_files(files: TlsFiles) -> None:
    """Read certificates, key and CA. Raises StorageError if a file is not there, UsageError for a bad one."""
    with _lock:
        _load(files)


def _contexts(files: TlsFiles) -> _Loaded:
    """The contexts as the files are now; as they were, if what stands there now is no good."""
    with _lock:
        try:
            return _load(files)
        except PerdureError as error:
            old = _loaded.get(files)
            if old is None:
                raise
            logger.error("certificates were not read anew, the old ones serve: %s", error)
            return old


def _load(files: TlsFiles) -> _Loaded:
    stamp = tuple(_stamp(path) for path in (files.cert, files.key, files.ca))
    found = _loaded.get(files)
    if found is None or found.stamp != stamp:
        if os.stat(files.key).st_mode & (stat.S_IROTH | stat.S_IWOTH):
            logger.warning("every user of this machine can read or change the key: path=%s", files.key)
        found = _loaded[files] = _Loaded(files, stamp)
    return found


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise StorageError(f"cannot read it: {error.strerror}", path=path) from error
    return found.st_mtime_ns, found.st_ino, found.st_size


def _context(files: TlsFiles, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names are nodes, which TlsStream compares itself
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nothing is resumed: each connection proves itself
    path = files.cert
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_password)
        path = files.ca
        context.load_verify_locations(cafile=files.ca)
    except ssl.SSLError as error:
        if error.reason in _NOT_ITS_KEY:
            raise UsageError(
                f"the key {files.key} does not belong to this certificate",
                path=path,
                hint="Name the certificate and the key that were made together (tls_cert, tls_key).",
            ) from error
        what = f"certificate and key ({files.key})" if path == files.cert else "CA"
        raise UsageError(
            f"not a {what} that can be used: {error.reason or error}",
            path=path,
            hint="PEM files: the certificate with its own key, which has no password, and the cluster's CA.",
        ) from error
    except OSError as error:
        raise StorageError(f"cannot read it: {error.strerror}", path=path) from error
    return context


def _no_password() -> str:
    raise UsageError(
        "the key has a password", hint="Store it without one, readable by the node's user alone."
    )


# -- one connection ----------------------------------------------------------------------------------


class TlsStream:
    """One side of one connection. Bytes of the wire in, bytes of messages out, and the other way round."""

    def __init__(self, files: TlsFiles, peer: str, *, is_listening: bool, node: str = "") -> None:
        """`peer` is for messages; `node`, if given, is whose certificate the other side must have."""
        loaded = _contexts(files)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = loaded.listening if is_listening else loaded.connecting
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=is_listening)
        self._peer = peer
        self._node = node
        self._taken_bytes = 0
        self._had_data = False
        self.is_ready = False
        """The handshake is done, the peer's certificate is good."""
        self.names: frozenset[str] = frozenset()
        """The nodes that the peer's certificate names."""

    def begin(self) -> None:
        """The first step of the handshake. Raises WireError."""
        self._handshake()

    def take(self, data: bytes) -> bytes:
        """Bytes from the wire; answers what they hold for the decoder. Raises WireError.

        There may be something to send afterwards (see to_send), after an error, too.
        """
        self._incoming.write(data)
        if not self.is_ready:
            self._taken_bytes += len(data)
            if self._taken_bytes > HANDSHAKE_BYTES_MAX:
                raise WireError(f"{self._peer} sent {self._taken_bytes} bytes and no end of a TLS handshake")
            self._handshake()
            if not self.is_ready:
                return b""
        parts: list[bytes] = []
        try:
            while part := self._object.read(_READ_BYTES):
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise self._refused(error) from error
        self._had_data = self._had_data or bool(parts)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encrypt(self, data: bytes) -> None:
        """Make records of it, to be sent. The handshake is done."""
        view = memoryview(data)
        while view:
            view = view[self._object.write(view) :]

    def to_send(self) -> bytes:
        """What is to go over the wire, in one piece; empty if nothing is."""
        return self._outgoing.read()

    def closed_hint(self) -> str:
        """Why the peer may have hung up, if it has said nothing yet."""
        if self._had_data:
            return ""
        return "Does the other node have TLS, and a CA that signed this node's certificate? See its log."

    def _handshake(self) -> None:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise self._refused(error) from error
        self.names = _names(self._object)
        self.check_name(self._node)
        self.is_ready = True

    def check_name(self, node: str) -> None:
        """Raise CertificateError unless the peer's certificate is that of `node`; "" is anyone."""
        if node and node not in self.names:
            told = ", ".join(sorted(self.names)) or "no node"
            raise CertificateError(
                f"the certificate of {self._peer} is that of {told}, not of {node}",
                node=node,
                hint=f"Give the node a certificate with the DNS name {node} or the URI {NAME_URI}{node}.",
            )

    def _refused(self, error: ssl.SSLError) -> WireError:
        reason = error.reason or ""
        if isinstance(error, ssl.SSLZeroReturnError):
            return WireError(f"{self._peer} ended the TLS connection")
        if isinstance(error, ssl.SSLCertVerificationError):
            return CertificateError(
                f"the certificate of {self._peer} is refused: {error.verify_message}",
                hint="The cluster's CA (tls_ca) must have signed it, and it must be in force.",
            )
        if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return CertificateError(f"{self._peer} has no certificate")
        if "ALERT" in reason:
            told = reason.partition("ALERT_")[2].replace("_", " ").lower()
            return CertificateError(
                f"{self._peer} refuses this node's TLS: {told}",
                hint="Its tls_ca must have signed this node's certificate, which must be in force.",
            )
        if reason in _NOT_TLS:
            return WireError(
                f"{self._peer} does not speak TLS",
                hint="Give all nodes of the cluster certificates, or none.",
            )
        return WireError(f"TLS with {self._peer} failed: {reason.replace('_', ' ').lower() or error}")


def _names(connection: ssl.SSLObject) -> frozenset[str]:
    found: Any = connection.getpeercert() or {}
    alternatives: tuple[tuple[str, str], ...] = found.get("subjectAltName", ())
    names: set[str] = set()
    for kind, value in alternatives:
        if kind == "DNS":
            names.add(value.lower())
        elif kind == "URI" and value.startswith(NAME_URI):
            names.add(value.removeprefix(NAME_URI))
    return frozenset(names)
