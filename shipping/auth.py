"""Proving knowledge of the shared secret, both ways. Pure: the random bytes are given in.

Owns the challenge and response. The secret is never sent; each side sends a nonce, and an HMAC-SHA256
under the secret over both nonces, its direction, the connecting side's role and a cluster tag. The tag
is itself an HMAC of the cluster id: a peer with the secret sees whether the other belongs to its
cluster, one without it learns nothing. The listening side proves itself only after the other has.
"""

from __future__ import annotations

import hmac
from typing import Final

from ..store.errors import ForeignError, WireError
from .credentials import Secret, secret_of
from .link import LinkClosed
from .messages import Challenge, Greet, Proof

NONCE_BYTES: Final = 32
SHIPPER: Final = "shipper"
CLIENT: Final = "client"
MONITOR: Final = "monitor"
ROLES: Final = frozenset({SHIPPER, CLIENT, MONITOR})
SECRET_HINT: Final = (
    "Give every node and command the same shared secret: "
    "--secret-file, PERDURE_SECRET, or secret_file in [node]."
)
STRANGER_HINT: Final = "See what listens at that address: it has not proved that it is of this cluster."
_CONNECTING: Final = b"perdure 1 connecting"
_LISTENING: Final = b"perdure 1 listening"
_CLUSTER: Final = b"perdure 1 cluster"


class Connecting:
    """The connecting side: greets, answers the challenge, then checks the other's proof."""

    def __init__(self, secret: Secret, cluster_id: bytes, role: str, nonce: bytes) -> None:
        self._secret = secret_of(secret)
        self._cluster_id = cluster_id
        self._role = role
        self._nonce = nonce
        self._peer_nonce = b""
        self._is_proved = False

    def greet(self) -> Greet:
        return Greet(self._role, self._nonce)

    def answer(self, challenge: Challenge) -> Proof:
        """Raises WireError for a nonce of another length, or our own sent back."""
        _check_nonce(challenge.nonce, self._nonce)
        self._peer_nonce = challenge.nonce
        return _prove(self._secret, _CONNECTING, self._role, self._nonce, challenge.nonce, self._cluster_id)

    def check(self, proof: Proof) -> None:
        """Raises WireError for a wrong secret, ForeignError for another cluster."""
        _check(proof, self._secret, _LISTENING, self._role, self._nonce, self._peer_nonce, self._cluster_id)
        self._is_proved = True

    def explained(self, closed: LinkClosed) -> LinkClosed:
        """What the end of the connection most likely means: who hangs up on a proof has another secret.

        It is told from this side's steps alone; the other one says nothing to whom it does not know.
        """
        if not self._peer_nonce or self._is_proved:
            return closed
        why = (
            "the other side seems to have another one, or none"
            if self._secret
            else "this side has none, and the other one seems to ask for one"
        )
        return LinkClosed(
            f"{closed.message} at the proof of the shared secret: {why}", node=closed.node, hint=SECRET_HINT
        )


class Listening:
    """The listening side: challenges, checks the proof, and only then proves itself."""

    def __init__(self, secret: Secret, cluster_id: bytes, nonce: bytes) -> None:
        self._secret = secret_of(secret)
        self._cluster_id = cluster_id
        self._nonce = nonce
        self._peer_nonce = b""
        self.role = ""

    def challenge(self, greet: Greet) -> Challenge:
        """Raises WireError for an unknown role or a bad nonce."""
        if greet.role not in ROLES:
            raise WireError("a peer greeted in an unknown role")
        _check_nonce(greet.nonce, self._nonce)
        self.role, self._peer_nonce = greet.role, greet.nonce
        return Challenge(self._nonce)

    def check(self, proof: Proof) -> Proof:
        """This side's own proof. Raises WireError for a wrong secret, ForeignError for another cluster."""
        _check(proof, self._secret, _CONNECTING, self.role, self._peer_nonce, self._nonce, self._cluster_id)
        return _prove(self._secret, _LISTENING, self.role, self._peer_nonce, self._nonce, self._cluster_id)


def _check_nonce(nonce: bytes, own: bytes) -> None:
    if len(nonce) != NONCE_BYTES or hmac.compare_digest(nonce, own):
        raise WireError("a peer sent a bad nonce")


def _mac(secret: bytes, *parts: bytes) -> bytes:
    mac = hmac.new(secret, digestmod="sha256")
    for part in parts:
        mac.update(len(part).to_bytes(4, "little") + part)
    return mac.digest()


def _tag(secret: bytes, nonce: bytes, peer_nonce: bytes, cluster_id: bytes) -> bytes:
    return _mac(secret, _CLUSTER, nonce, peer_nonce, cluster_id)


def _prove(
    secret: bytes, direction: bytes, role: str, nonce: bytes, peer_nonce: bytes, cluster_id: bytes
) -> Proof:
    tag = _tag(secret, nonce, peer_nonce, cluster_id)
    return Proof(tag, _mac(secret, direction, role.encode(), nonce, peer_nonce, tag))


def _check(
    proof: Proof,
    secret: bytes,
    direction: bytes,
    role: str,
    nonce: bytes,
    peer_nonce: bytes,
    cluster_id: bytes,
) -> None:
    wanted = _mac(secret, direction, role.encode(), nonce, peer_nonce, proof.cluster_tag)
    if not hmac.compare_digest(proof.mac, wanted):
        raise WireError(
            "the peer does not know the shared secret", hint="Give every node of the cluster the same one."
        )
    if not hmac.compare_digest(proof.cluster_tag, _tag(secret, nonce, peer_nonce, cluster_id)):
        raise ForeignError(
            "the peer belongs to another cluster",
            hint="Look at the addresses of the replicas: one of them leads to another cluster's node.",
        )
