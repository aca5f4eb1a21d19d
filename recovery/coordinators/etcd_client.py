"""What is asked of etcd (v3), through its JSON gateway with httpx. Blocking, with a deadline for each answer.

Owns the encoding, and trying one member after the other. An answer that did not come leaves it open whether
something was done; whoever asks looks again.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx
import msgspec

from ...store.errors import PerdureError

ASK_MS: Final = 1_000
"""One member may take so long; etcd's own election takes about as long."""


class EtcdError(PerdureError):
    """No member of etcd gave an answer that could be used."""


class KeyValue(msgspec.Struct, frozen=True):
    """A key as etcd has it."""

    value: bytes
    mod_revision: int
    lease: int


class EtcdClient:
    """A way to one etcd cluster. Not for two threads at once."""

    def __init__(self, endpoints: Sequence[str], *, timeout_ms: int = ASK_MS) -> None:
        """`endpoints` are URLs such as http://10.0.0.9:2379."""
        self._endpoints = list(endpoints)
        self._client = httpx.Client(timeout=timeout_ms / 1000, trust_env=False)

    def get(self, *keys: bytes) -> dict[bytes, KeyValue]:
        """Keys that are there, as a majority of etcd has them at one moment."""
        answer = self._ask("kv/txn", {"success": [_range(key) for key in keys]})
        return _found(answer)

    def grant(self, ttl_s: int) -> int:
        """A new lease; its number."""
        return _number(self._ask("lease/grant", {"TTL": str(ttl_s)}), "ID")

    def keep_alive(self, lease: int) -> bool:
        """Renew a lease; False if it is gone."""
        answer = self._ask("lease/keepalive", {"ID": str(lease)})
        result = answer.get("result", {})
        return bool(isinstance(result, Mapping) and int(result.get("TTL", 0) or 0) > 0)

    def revoke(self, lease: int) -> None:
        """End a lease now, with the keys that hang on it."""
        self._ask("lease/revoke", {"ID": str(lease)})

    def swap(
        self, expected: Mapping[bytes, int], puts: Mapping[bytes, tuple[bytes, int]]
    ) -> tuple[bool, dict[bytes, KeyValue]]:
        """One transaction: if each key has its expected mod_revision (0: is not there), put (value, lease).

        (was it done, the expected keys as they are if it was not).
        """
        compare = [
            {"key": _text(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
            for key, revision in expected.items()
        ]
        success = [
            {"request_put": {"key": _text(key), "value": _text(value), "lease": str(lease)}}
            for key, (value, lease) in puts.items()
        ]
        failure = [_range(key) for key in expected]
        answer = self._ask("kv/txn", {"compare": compare, "success": success, "failure": failure})
        return bool(answer.get("succeeded")), _found(answer)

    def close(self) -> None:
        self._client.close()

    def _ask(self, path: str, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer of the first member that gives one; the next question begins with that one.

        Raises EtcdError.
        """
        why = "no endpoint is given"
        for number, endpoint in enumerate(self._endpoints):
            try:
                reply = self._client.post(f"{endpoint.rstrip('/')}/v3/{path}", json=question)
                answer = reply.json() if reply.content else {}
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                why = f"{endpoint}: {type(error).__name__} {error}".rstrip()
                continue
            if reply.status_code == httpx.codes.OK and isinstance(answer, dict):
                self._endpoints.insert(0, self._endpoints.pop(number))
                return answer
            why = f"{endpoint}: {reply.status_code} {str(answer)[:200]}"
        raise EtcdError(
            f"etcd does not answer: {why}", hint="See etcd_endpoints in [failover], and etcd itself."
        )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _range(key: bytes) -> dict[str, Any]:
    return {"request_range": {"key": _text(key)}}


def _number(answer: Mapping[str, Any], field: str) -> int:
    try:
        return int(answer[field])
    except (KeyError, TypeError, ValueError) as error:
        raise EtcdError(f"etcd answered without {field}") from error


def _found(answer: Mapping[str, Any]) -> dict[bytes, KeyValue]:
    """The keys in a transaction's answer. Raises EtcdError for one that is no such answer."""
    found: dict[bytes, KeyValue] = {}
    try:
        for response in answer.get("responses", []):
            for pair in response.get("response_range", {}).get("kvs", []):
                key = base64.b64decode(pair["key"])
                value = base64.b64decode(pair.get("value", ""))
                found[key] = KeyValue(value, int(pair["mod_revision"]), int(pair.get("lease", 0)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EtcdError("etcd answered with something else than keys") from error
    return found
