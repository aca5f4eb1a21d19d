"""The primary's word, from wherever one asks: this node's own files if it is the primary, else its server.

Owns finding the primary among the peers, and following it when the role moves. What it says is its report.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from ..shipping.messages import StatusReply
from ..shipping.messages_ops import ReportAsk, ReportReply
from ..shipping.server_client import ServerClient
from ..store.errors import NotPrimaryError, PerdureError, WireError
from ..store.identity import read_identity
from .ops_service import decoded
from .reach import Reach
from .report import NodeReport, report_node

Store: TypeAlias = "str | os.PathLike[str]"


class Primary:
    """A way to the primary's report."""

    def __init__(self, store: Store, reach: Reach) -> None:
        self._store = store
        self._reach = reach
        self._cluster_id = read_identity(Path(store)).cluster_id
        self._server: ServerClient | None = None

    def look(self, *, is_brief: bool = True) -> NodeReport:
        """What the primary says of itself now. Raises NotPrimaryError if there is none that can be asked."""
        own = report_node(self._store, is_brief=is_brief)
        if own.is_primary:
            return own
        return self._ask(own, is_brief=is_brief)

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def __enter__(self) -> Primary:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, own: NodeReport, *, is_brief: bool) -> NodeReport:
        problems: list[str] = []
        for _ in range(2):  # the second time when the role has moved since the first
            try:
                said = self._ask_server(is_brief=is_brief) if self._server else None
            except WireError as error:
                problems.append(error.message)
                said = None
            if said is not None and said.is_primary:
                return said
            self.close()
            self._find(own, problems)
            if self._server is None:
                break
        raise NotPrimaryError(
            f"{own.node} is not the primary, and no other node answered as one"
            + (f": {'; '.join(problems)}" if problems else ""),
            path=os.fspath(self._store),
            node=own.node,
            hint=f"Ask the primary, which was {own.primary} last, or give its address with --peer."
            if own.primary
            else "Ask the primary, or give its address with --peer.",
        )

    def _ask_server(self, *, is_brief: bool) -> NodeReport | None:
        if self._server is None:
            return None
        _, data = self._server.ask(ReportAsk(is_brief), ReportReply, timeout_ms=self._reach.timeout_ms)
        return decoded(data, NodeReport)

    def _find(self, own: NodeReport, problems: list[str]) -> None:
        """The peer of the highest epoch that says it is the primary."""

        def ask(node: str) -> StatusReply:
            with self._reach.connect(node, self._cluster_id) as client:
                return client.status()

        claims: list[tuple[int, str]] = []
        for node, answer in self._reach.ask_all(ask).items():
            if isinstance(answer, PerdureError):
                problems.append(f"{node}: {answer.message}")
            elif answer.role == "primary" and answer.node == node and answer.end[0] >= own.epoch:
                claims.append((answer.end[0], node))
        if not claims:
            return
        node = max(claims)[1]
        try:
            self._server = self._reach.server(node, self._cluster_id)
        except PerdureError as error:
            problems.append(f"{node}: {error.message}")
