"""Challenge and response: only who knows the secret gets through, in its own role and cluster."""

from __future__ import annotations

import pytest

from perdure.shipping.auth import CLIENT, SHIPPER, Connecting, Listening
from perdure.shipping.credentials import Credentials, check_secret, is_loopback
from perdure.shipping.link import LinkClosed
from perdure.shipping.messages import Challenge, Greet, Proof
from perdure.store import ForeignError, UsageError, WireError

SECRET = b"0123456789abcdef"
OTHER = b"fedcba9876543210"
CLUSTER = bytes(range(16))
ONE, TWO = b"1" * 32, b"2" * 32


def meet(
    connecting_secret: bytes = SECRET,
    listening_secret: bytes = SECRET,
    connecting_cluster: bytes = CLUSTER,
    listening_cluster: bytes = CLUSTER,
    role: str = SHIPPER,
) -> str:
    """Both sides through; the role that the listening side saw."""
    connecting = Connecting(connecting_secret, connecting_cluster, role, ONE)
    listening = Listening(listening_secret, listening_cluster, TWO)
    proof = connecting.answer(listening.challenge(connecting.greet()))
    connecting.check(listening.check(proof))
    return listening.role


@pytest.mark.parametrize("role", [SHIPPER, CLIENT])
def test_who_knows_the_secret_gets_through_in_its_role(role: str) -> None:
    assert meet(role=role) == role


def test_no_secret_on_both_sides_is_the_same_secret() -> None:
    assert meet(b"", b"") == SHIPPER


@pytest.mark.parametrize("secrets", [(SECRET, OTHER), (OTHER, SECRET), (b"", SECRET), (SECRET, b"")])
def test_another_secret_is_refused(secrets: tuple[bytes, bytes]) -> None:
    with pytest.raises(WireError, match="does not know the shared secret"):
        meet(*secrets)


def test_another_cluster_with_the_same_secret_is_named_as_such() -> None:
    with pytest.raises(ForeignError, match="another cluster"):
        meet(listening_cluster=bytes(16))


def test_another_cluster_with_another_secret_learns_only_that_the_secret_is_wrong() -> None:
    with pytest.raises(WireError):
        meet(SECRET, OTHER, CLUSTER, bytes(16))


def test_a_listener_that_does_not_know_the_secret_is_found_out() -> None:
    connecting = Connecting(SECRET, CLUSTER, SHIPPER, ONE)
    connecting.answer(Challenge(TWO))
    with pytest.raises(WireError):
        connecting.check(Proof(bytes(32), bytes(32)))


def test_a_proof_cannot_be_reflected() -> None:
    connecting = Connecting(SECRET, CLUSTER, SHIPPER, ONE)
    own = connecting.answer(Challenge(TWO))
    with pytest.raises(WireError):
        connecting.check(own)
    with pytest.raises(WireError, match="bad nonce"):
        connecting.answer(Challenge(ONE))


def test_a_proof_does_not_serve_in_another_role_or_for_another_nonce() -> None:
    proof = Connecting(SECRET, CLUSTER, CLIENT, ONE).answer(Challenge(TWO))
    for role, own in ((SHIPPER, TWO), (CLIENT, b"3" * 32)):
        listening = Listening(SECRET, CLUSTER, own)
        listening.challenge(Greet(role, ONE))
        with pytest.raises(WireError):
            listening.check(proof)


@pytest.mark.parametrize("greet", [Greet("admin", ONE), Greet(SHIPPER, b"short"), Greet(SHIPPER, TWO)])
def test_a_bad_greeting_is_refused(greet: Greet) -> None:
    with pytest.raises(WireError):
        Listening(SECRET, CLUSTER, TWO).challenge(greet)


def test_neither_secret_nor_cluster_id_is_in_what_is_sent() -> None:
    connecting = Connecting(SECRET, CLUSTER, SHIPPER, ONE)
    listening = Listening(SECRET, CLUSTER, TWO)
    proof = connecting.answer(listening.challenge(connecting.greet()))
    sent = proof.mac + proof.cluster_tag
    assert SECRET not in sent
    assert CLUSTER not in sent


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("n2", False),
    ],
)
def test_loopback_is_known_by_its_address(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    if expected:
        check_secret(b"", host)
    else:
        with pytest.raises(UsageError, match="loopback"):
            check_secret(b"", host)


def test_a_secret_without_tls_is_for_loopback_unless_told_otherwise() -> None:
    check_secret(SECRET, "127.0.0.1")
    for credentials in (SECRET, Credentials(SECRET)):
        with pytest.raises(UsageError, match=r"without TLS") as refused:
            check_secret(credentials, "10.0.0.1")
        assert "--allow-plain" in refused.value.hint
    check_secret(Credentials(SECRET, allow_plain=True), "10.0.0.1")
    with pytest.raises(UsageError, match="without certificates or a shared secret"):
        check_secret(Credentials(b"", allow_plain=True), "10.0.0.1")


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(UsageError, match="15 bytes"):
        check_secret(b"x" * 15, "127.0.0.1")


@pytest.mark.parametrize(
    ("secret", "why"),
    [(SECRET, "the other side seems to have another one, or none"), (b"", "this side has none")],
)
def test_an_end_of_the_connection_at_the_proof_names_the_secret_as_the_likely_cause(
    secret: bytes, why: str
) -> None:
    connecting = Connecting(secret, CLUSTER, CLIENT, ONE)
    closed = LinkClosed("n2 closed the connection", node="n2")
    assert connecting.explained(closed) is closed  # it was not asked for a proof yet
    listening = Listening(secret, CLUSTER, TWO)
    proof = connecting.answer(listening.challenge(connecting.greet()))
    told = connecting.explained(closed)
    assert told.message.startswith("n2 closed the connection at the proof of the shared secret")
    assert why in told.message
    assert "--secret-file" in told.hint
    connecting.check(listening.check(proof))
    assert connecting.explained(closed) is closed  # the secret was right
