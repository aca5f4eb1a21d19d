"""Links with TLS: both sides show a certificate of the cluster's CA, for the name that they go by."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Self

import pytest

from perdure.recovery.voters import WireVoters
from perdure.shipping import Credentials, NodeClient, Server, ServerClient, Task, TlsFiles
from perdure.shipping.credentials import CertificateError
from perdure.shipping.link import begin_connect
from perdure.shipping.messages import FetchAsk, FetchReply, Message
from perdure.shipping.tls import HANDSHAKE_BYTES_MAX, TlsStream
from perdure.store import Position, Promise, StorageError, UsageError, WireError
from tests.cluster.nodes import CLUSTER, HOST, SECRET, Cluster, cluster_of, until
from tests.support.certificates import certificates, expired, with_tls

NODES = ("n1", "n2", "n3")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, TlsFiles]:
    return certificates(tmp_path / "tls", *NODES, "operator")


class Tap:
    """Stands between two nodes, passes everything on, and keeps it."""

    def __init__(self) -> None:
        self.seen = bytearray()
        self.to = 0
        self._server = socket.create_server((HOST, 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._server.accept()
                other = socket.create_connection((HOST, self.to))
                for source, target in ((one, other), (other, one)):
                    threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with source, contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.seen += data
                target.sendall(data)


def asked(cluster: Cluster, node: str, credentials: Credentials | bytes, *, expected: str = "") -> str:
    """The name that a node answers with."""
    port = cluster.ports[node]
    with NodeClient(HOST, port, cluster_id=CLUSTER, secret=credentials, node=expected) as client:
        return client.status().node


@pytest.mark.parametrize("secret", [b"", SECRET], ids=["tls", "tls-and-secret"])
def test_processes_with_certificates_replicate_and_commit(
    tmp_path: Path, files: dict[str, TlsFiles], secret: bytes
) -> None:
    with cluster_of(tmp_path / "nodes", 2, sync_replicas=1) as cluster:
        path = {name: str(cluster.path(name)) for name in NODES[:2]}
        cluster.start(("receiver:n2", Task("receiver", path["n2"], HOST, 0, with_tls(files["n2"], secret))))
        cluster.start(cluster.folder_of("n2"))
        cluster.start(cluster.shipper("n1", ("n2",), secret=with_tls(files["n1"], secret)))
        store = cluster.open("n1")
        ids = [store.create({"n": number, "text": "x" * 30_000}) for number in range(100)]
        until(lambda: cluster.state_of("n2") == cluster.state_of("n1"), "n2 has the same state")
        assert len(ids) == cluster.state_of("n2")[2]
        assert asked(cluster, "n2", with_tls(files["operator"], secret), expected="n2") == "n2"


def test_frames_larger_than_a_record_go_both_ways(tmp_path: Path, files: dict[str, TlsFiles]) -> None:
    with cluster_of(tmp_path / "nodes", 2) as cluster:
        cluster.serve_here("n2", secret=with_tls(files["n2"]))
        store = cluster.open("n1", max_session_size_bytes=8 << 20)
        value = os.urandom(7 << 20)
        store.create({"value": value})
        cluster.ship_here("n1", secret=with_tls(files["n1"]))
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has the large frame")
        with NodeClient(
            HOST, cluster.ports["n2"], cluster_id=CLUSTER, secret=with_tls(files["n1"])
        ) as client:
            raw = b"".join(client.fetch(Position(0, 0, 0)))
        assert value in raw


def test_nothing_readable_is_on_the_wire(tmp_path: Path, files: dict[str, TlsFiles]) -> None:
    """A tap between both sides sees neither session nor cluster id nor frames."""
    with cluster_of(tmp_path / "nodes", 2) as cluster, Tap() as tap:
        cluster.serve_here("n2", secret=with_tls(files["n2"], SECRET))
        tap.to = cluster.ports["n2"]
        cluster.ports["n2"] = tap.port
        store = cluster.open("n1")
        store.create({"text": "a text that can be recognised " * 10})
        cluster.ship_here("n1", secret=with_tls(files["n1"], SECRET))
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has it")
        seen = bytes(tap.seen)
        assert len(seen) > 2000
        assert b"recognised" not in seen
        assert CLUSTER not in seen
        assert b"shipper" not in seen


def test_a_peer_without_a_certificate_or_of_another_ca_gets_nothing(
    tmp_path: Path, files: dict[str, TlsFiles]
) -> None:
    foreign = certificates(tmp_path / "foreign", "n1")["n1"]
    mixed = TlsFiles(foreign.cert, foreign.key, files["n1"].ca)
    with cluster_of(tmp_path / "nodes", 2) as cluster:
        cluster.serve_here("n2", secret=with_tls(files["n2"], SECRET))
        with pytest.raises(CertificateError, match=r"unable to get local issuer|self.signed"):
            asked(cluster, "n2", with_tls(foreign, SECRET))
        with pytest.raises(WireError, match=r"unknown ca|closed|broke"):
            asked(cluster, "n2", with_tls(mixed, SECRET))
        with pytest.raises(WireError, match=r"closed|broke"):
            asked(cluster, "n2", SECRET)
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.load_verify_locations(files["n1"].ca)
        bare.check_hostname = False
        with (
            socket.create_connection((HOST, cluster.ports["n2"]), timeout=5) as plain,
            pytest.raises((ssl.SSLError, ConnectionError), match=r"certificate required|reset"),
            bare.wrap_socket(plain) as connection,
        ):
            connection.recv(1)
        assert asked(cluster, "n2", with_tls(files["n1"], SECRET)) == "n2"


def test_an_older_tls_is_refused(tmp_path: Path, files: dict[str, TlsFiles]) -> None:
    with cluster_of(tmp_path / "nodes", 2) as cluster:
        cluster.serve_here("n2", secret=with_tls(files["n2"]))
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname = False
        old.load_verify_locations(files["n1"].ca)
        old.load_cert_chain(files["n1"].cert, files["n1"].key)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection((HOST, cluster.ports["n2"]), timeout=5) as plain,
            pytest.raises((ssl.SSLError, ConnectionError), match=r"protocol version|reset"),
        ):
            old.wrap_socket(plain).recv(1)


def test_certificates_without_the_secret_that_is_asked_for_do_not_do(
    tmp_path: Path, files: dict[str, TlsFiles]
) -> None:
    with cluster_of(tmp_path / "nodes", 2) as cluster:
        cluster.serve_here("n2", secret=with_tls(files["n2"], SECRET))
        with pytest.raises(WireError, match="closed"):
            asked(cluster, "n2", with_tls(files["n1"]))


def test_an_expired_certificate_is_refused_by_either_side(tmp_path: Path) -> None:
    # The CA of the expired ones is as old as they are: trust both CAs, so that only the date speaks.
    good = certificates(tmp_path / "tls", "n1", "n2")
    old = expired(tmp_path / "old", "n2")
    both = tmp_path / "both.crt"
    both.write_text(Path(good["n1"].ca).read_text() + Path(old.ca).read_text())
    trusting = {name: TlsFiles(files.cert, files.key, str(both)) for name, files in good.items()}
    stale = TlsFiles(old.cert, old.key, str(both))
    with cluster_of(tmp_path / "nodes", 2) as cluster:
        cluster.serve_here("n2", secret=with_tls(stale))
        with pytest.raises(CertificateError, match="expired"):
            asked(cluster, "n2", with_tls(trusting["n1"]))
        cluster.stop_here()
        cluster.serve_here("n2", secret=with_tls(trusting["n2"]))
        with pytest.raises(WireError, match=r"expired|closed|broke"):
            asked(cluster, "n2", with_tls(stale))


def test_a_node_must_have_the_certificate_of_its_name(tmp_path: Path, files: dict[str, TlsFiles]) -> None:
    with cluster_of(tmp_path / "nodes", 2) as cluster:
        cluster.serve_here("n2", secret=with_tls(files["n3"]))
        with pytest.raises(CertificateError, match="is that of n3, not of n2"):
            asked(cluster, "n2", with_tls(files["n1"]), expected="n2")
        voters = WireVoters(
            {"n2": (HOST, cluster.ports["n2"])}, cluster_id=CLUSTER, secret=with_tls(files["n1"])
        )
        with pytest.raises(CertificateError):
            voters.state("n2")
        cluster.ship_here("n1", secret=with_tls(files["n1"]))
        until(lambda: cluster.slot_state("n1", "n2")[0] == "refused", "the shipper refuses n2's certificate")
        assert "is that of n3" in cluster.slot_state("n1", "n2")[1]


def test_nobody_ships_or_stands_under_another_nodes_name(tmp_path: Path, files: dict[str, TlsFiles]) -> None:
    with cluster_of(tmp_path / "nodes", 2) as cluster:
        cluster.serve_here("n2", secret=with_tls(files["n2"]))
        before = asked(cluster, "n2", with_tls(files["operator"]))
        cluster.ship_here("n1", secret=with_tls(files["operator"]))
        until(lambda: "is that of operator" in cluster.slot_state("n1", "n2")[1], "n2 refuses the shipper")
        with (
            NodeClient(HOST, cluster.ports["n2"], cluster_id=CLUSTER, secret=with_tls(files["n3"])) as client,
            pytest.raises(WireError, match="is that of n3, not of n1"),
        ):
            client.promise(Promise(9, "n1"))
        with NodeClient(
            HOST, cluster.ports["n2"], cluster_id=CLUSTER, secret=with_tls(files["operator"])
        ) as client:
            status = client.status()
        assert (status.node, status.promise_epoch, status.end[1]) == (before, 0, 0)


def test_a_certificate_that_is_replaced_serves_new_connections(
    tmp_path: Path, files: dict[str, TlsFiles]
) -> None:
    renewed = certificates(tmp_path / "renewed", "n1", "n2")
    with cluster_of(tmp_path / "nodes", 2) as cluster:
        cluster.serve_here("n2", secret=with_tls(files["n2"]))
        first = NodeClient(HOST, cluster.ports["n2"], cluster_id=CLUSTER, secret=with_tls(files["n1"]))
        with first:
            Path(files["n2"].cert).write_text("half of a certificate")
            assert asked(cluster, "n2", with_tls(files["n1"])) == "n2", "the old one serves meanwhile"
            for old, new in zip(("cert", "key", "ca"), ("cert", "key", "ca"), strict=True):
                data = Path(getattr(renewed["n2"], new)).read_bytes()
                Path(getattr(files["n2"], old)).write_bytes(data)
            # files["n1"].ca is the same file as n2's: it trusts the new CA only.
            assert asked(cluster, "n2", with_tls(renewed["n1"])) == "n2"
            with pytest.raises(WireError):
                asked(cluster, "n2", with_tls(files["n1"]))
            assert first.status().node == "n2", "what stands goes on"


def test_the_server_and_who_asks_it_show_certificates_too(files: dict[str, TlsFiles]) -> None:
    def echo(message: FetchAsk, payload: bytes) -> tuple[Message, bytes]:
        return FetchReply(message.limit_bytes, message.after), bytes(message.limit_bytes)

    stopping = threading.Event()
    server = Server(HOST, 0, cluster_id=CLUSTER, secret=with_tls(files["n2"]), handlers={FetchAsk: echo})
    thread = threading.Thread(target=server.run, args=(stopping.is_set,))
    thread.start()

    def ask(credentials: Credentials | bytes, node: str) -> int:
        with ServerClient(HOST, server.port, cluster_id=CLUSTER, secret=credentials, node=node) as client:
            for size in (0, 1, 5 << 20):
                answer, payload = client.ask(FetchAsk((1, 2, 3), size), FetchReply)
                assert (answer.raw_bytes, len(payload)) == (size, size)
        return size

    try:
        assert ask(with_tls(files["n1"]), "n2") == 5 << 20
        with pytest.raises(CertificateError):
            ask(with_tls(files["n1"]), "n3")
        with pytest.raises(WireError):
            ask(SECRET, "n2")
    finally:
        stopping.set()
        thread.join(10)
        server.close()


@pytest.mark.parametrize("broken", ["cert", "key", "ca"])
def test_files_that_cannot_be_used_are_told_before_anything_listens(
    tmp_path: Path, files: dict[str, TlsFiles], broken: str
) -> None:
    with cluster_of(tmp_path / "nodes", 2) as cluster:
        path = Path(getattr(files["n2"], broken))
        path.write_text("nothing of use")
        with pytest.raises(UsageError) as refused:
            cluster.serve_here("n2", secret=with_tls(files["n2"]))
        assert str(path) in str(refused.value)
        path.unlink()
        with pytest.raises(StorageError):
            cluster.serve_here("n2", secret=with_tls(files["n2"]))


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(
    tmp_path: Path, files: dict[str, TlsFiles]
) -> None:
    from cryptography.hazmat.primitives import serialization

    key = Path(files["n2"].key)
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with cluster_of(tmp_path / "nodes", 2) as cluster, pytest.raises(UsageError, match="password"):
        cluster.serve_here("n2", secret=with_tls(files["n2"]))


def test_a_handshake_that_does_not_end_is_cut_off_by_size(files: dict[str, TlsFiles]) -> None:
    stream = TlsStream(files["n1"], "someone", is_listening=True)
    hello = b"\x16\x03\x01\x3f\xff\x01\x00\xff\xff" + bytes(
        16 << 10
    )  # the first of many parts of a ClientHello
    with pytest.raises(WireError):
        feed_for_ever(stream, hello)


def feed_for_ever(stream: TlsStream, data: bytes) -> None:
    for _ in range(HANDSHAKE_BYTES_MAX // len(data) + 2):
        stream.take(data)


def test_a_link_waits_for_the_handshake_without_being_writable_all_the_time(
    files: dict[str, TlsFiles],
) -> None:
    with socket.create_server((HOST, 0)) as server:
        link = begin_connect(HOST, server.getsockname()[1], "n2", with_tls(files["n1"]), node="n2")
        accepted, _ = server.accept()
        with accepted:
            deadline = time.monotonic() + 5
            while link.has_unsent and time.monotonic() < deadline:
                link.flush()
            assert not link.has_unsent
            assert accepted.recv(5)[:3] == b"\x16\x03\x01"
            link.close()
