"""A certificate authority for tests and small clusters, made from nothing. Needs the package `cryptography`.

Owns what such certificates hold: a P-256 key, the node's name as DNS name and as URI, and use by both sides.
Keys are written with mode 0600 and nothing that is there is ever written over. It cannot take a certificate
back: a key that got into wrong hands means a new CA.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..store.errors import UsageError
from ..store.files import sync_directory, translated, write_all
from ..store.names import is_node_name
from .tls import NAME_URI

CA_NAME: Final = "perdure test CA, not for production"
CA_CERT: Final = "ca.crt"
CA_KEY: Final = "ca.key"
DAYS: Final = 365
DAYS_MAX: Final = 3650
_BACKDATED: Final = timedelta(hours=1)
"""Clocks of nodes may be behind this one's so far."""
_USES: Final = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
_CA_USES: Final = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
_Key: TypeAlias = ec.EllipticCurvePrivateKey


class NodeFiles(msgspec.Struct, frozen=True):
    """What one node gets, and until when its certificate is in force."""

    node: str
    cert: str
    key: str
    not_after: str


class TestCa(msgspec.Struct, frozen=True):
    """What was made."""

    __test__ = False

    ca: str
    ca_key: str
    is_new_ca: bool
    nodes: tuple[NodeFiles, ...]


def make_test_ca(
    directory: Path,
    nodes: Sequence[str],
    hosts: Sequence[str] = (),
    *,
    days: int = DAYS,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> TestCa:
    """Make a CA in `directory`, if there is none, and a certificate and key for each node.

    `hosts` are further names or addresses for every certificate. They are in force for `days`, from an hour
    ago. Raises UsageError, before anything is written, for a node that has files there already, or that is
    no name; StorageError if a file cannot be written.
    """
    _check(directory, nodes, days)
    begins = now() - _BACKDATED
    ends = begins + timedelta(days=days)
    with translated("cannot make the directory", directory):
        directory.mkdir(parents=True, exist_ok=True)
    is_new = not (directory / CA_CERT).exists()
    if is_new:
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca = _make_ca(ca_key, begins, ends)
        _write(directory / CA_KEY, _key_bytes(ca_key), 0o600)
        _write(directory / CA_CERT, ca.public_bytes(serialization.Encoding.PEM), 0o644)
    else:
        ca_key, ca = _read_ca(directory)
        ends = min(ends, ca.not_valid_after_utc)
    made: list[NodeFiles] = []
    for node in nodes:
        key = ec.generate_private_key(ec.SECP256R1())
        cert = make_certificate(ca_key, ca, key, [node, *hosts], begins, ends, node=node)
        paths = _node_files(directory, node)
        _write(paths[1], _key_bytes(key), 0o600)
        _write(paths[0], cert.public_bytes(serialization.Encoding.PEM), 0o644)
        made.append(NodeFiles(node, str(paths[0]), str(paths[1]), ends.isoformat(timespec="seconds")))
    with translated("cannot sync the directory", directory):
        sync_directory(directory)
    return TestCa(str(directory / CA_CERT), str(directory / CA_KEY), is_new, tuple(made))


def make_certificate(
    ca_key: _Key,
    ca: x509.Certificate,
    key: _Key,
    hosts: Sequence[str],
    begins: datetime,
    ends: datetime,
    *,
    node: str,
) -> x509.Certificate:
    """A certificate for a node, by both names of it, and for `hosts`; for clients and servers."""
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(NAME_URI + node)]
    names += [_host_name(host) for host in dict.fromkeys(hosts)]
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(node))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_USES, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )


def _make_ca(key: _Key, begins: datetime, ends: datetime) -> x509.Certificate:
    name = _subject(CA_NAME)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_CA_USES, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _check(directory: Path, nodes: Sequence[str], days: int) -> None:
    if not nodes:
        raise UsageError("there is no node to make a certificate for", hint="Give --node NAME for each.")
    if not 0 < days <= DAYS_MAX:
        raise UsageError(f"a certificate is in force for 1 to {DAYS_MAX} days, not {days}")
    for node in nodes:
        if not is_node_name(node) or node == "ca":
            raise UsageError(f"{node!r} is no name for a node's files")
    if len(set(nodes)) < len(nodes):
        raise UsageError("a node is given twice")
    there = [path for node in nodes for path in _node_files(directory, node) if path.exists()]
    if (directory / CA_CERT).exists() != (directory / CA_KEY).exists():
        there.append(directory / (CA_CERT if (directory / CA_CERT).exists() else CA_KEY))
    if there:
        raise UsageError(
            f"{there[0].name} is there already, and nothing is written over",
            path=there[0],
            hint="Give another directory, or take the file away yourself.",
        )


def _node_files(directory: Path, node: str) -> tuple[Path, Path]:
    return directory / f"{node}.crt", directory / f"{node}.key"


def _read_ca(directory: Path) -> tuple[_Key, x509.Certificate]:
    path = directory / CA_KEY
    with translated("cannot read the CA", path):
        key_bytes, cert_bytes = path.read_bytes(), (directory / CA_CERT).read_bytes()
    try:
        key = serialization.load_pem_private_key(key_bytes, None)
        ca = x509.load_pem_x509_certificate(cert_bytes)
    except (ValueError, TypeError) as error:
        raise UsageError("the CA that is there cannot be read", path=path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or ca.subject != _subject(CA_NAME):
        raise UsageError("the CA that is there was not made by this command", path=path)
    return key, ca


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise UsageError(f"{host!r} is no name of a host") from error


def _key_bytes(key: _Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    with translated("cannot write it", path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
