"""Finding the primary: every other node is asked what it is, until one says that it is the primary.

Owns the asking, and which answer counts: the primary of the highest epoch. Nodes that have answered are asked
again while another one stays silent, because an election may end meanwhile: who is silent holds up nobody.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final

from ..store.errors import NotPrimaryError, PerdureError
from .asking import NodeClient
from .credentials import Secret
from .messages import StatusReply

OTHERS_S: Final = 0.1
"""Once one node says that it is the primary, the others have so long to say that there is a newer one."""
AGAIN_S: Final = 0.05
"""So long after an answer that helps nobody a node is asked again, if another one is still silent."""


class Search:
    """One search for the primary."""

    def __init__(
        self,
        addresses: Mapping[str, tuple[str, int]],
        cluster_id: bytes,
        secret: Secret,
        timeout_ms: int,
        is_over: Callable[[], bool],
    ) -> None:
        """`addresses` are host and port of receivers by node; no node is waited for longer than the timeout.

        `is_over` is asked while a node is silent: may the primary be none of these?
        """
        self._addresses = addresses
        self._cluster_id = cluster_id
        self._secret = secret
        self._timeout_ms = timeout_ms
        self._is_over = is_over
        self._until = monotonic() + timeout_ms / 1000
        self._answers: queue.SimpleQueue[tuple[str, StatusReply | None, str]] = queue.SimpleQueue()
        self._asked: set[str] = set()
        self._answered: set[str] = set()
        self._problem = ""

    def run(self) -> tuple[str, StatusReply]:
        """The primary, and what it says. Raises NotPrimaryError if no node says that it is the primary."""
        best: tuple[str, StatusReply] | None = None
        self._ask(self._addresses)
        while self._asked:
            left_s = self._until - monotonic()
            try:
                node, status, problem = (
                    self._answers.get(timeout=left_s if best else min(left_s, AGAIN_S))
                    if left_s > 0
                    else self._answers.get_nowait()  # what was answered in time counts
                )
            except queue.Empty:
                if left_s <= 0:
                    break
                if best is None:
                    if self._is_over():
                        break
                    self._ask(self._answered)
                continue
            self._asked.discard(node)
            self._answered.add(node)
            self._problem = problem or self._problem
            if status is None or status.role != "primary":
                continue
            if best is None or status.end[0] > best[1].end[0]:
                best = node, status
            self._until = min(self._until, monotonic() + OTHERS_S)
        if best is None:
            why = f": {self._problem}" if self._problem else ""
            raise NotPrimaryError(f"no node says that it is the primary{why}")
        return best

    def _ask(self, nodes: Mapping[str, object] | set[str]) -> None:
        for node in list(nodes):
            self._answered.discard(node)
            self._asked.add(node)
            threading.Thread(target=self._ask_one, args=(node,), name="perdure-find", daemon=True).start()

    def _ask_one(self, node: str) -> None:
        host, port = self._addresses[node]
        try:
            with NodeClient(
                host,
                port,
                cluster_id=self._cluster_id,
                secret=self._secret,
                timeout_ms=self._timeout_ms,
                node=node,
            ) as client:
                self._answers.put((node, client.status(), ""))
        except (PerdureError, OSError) as error:
            self._answers.put((node, None, str(error)))
