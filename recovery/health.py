"""Health of a cluster as one node's monitor sees it, and orders to an elector. Asked over the network.

Owns how a monitor is found: on this node by the file of its ports, on another one by its receiver. Decides
nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ..shipping.asking import NodeClient
from ..shipping.messages_health import HealthAsk, HealthReply, StandAsk, StandReply
from ..shipping.ports import read_ports
from ..shipping.server_client import ServerClient
from ..store.errors import WireError
from ..store.identity import read_identity
from .reach import Reach

STAND_TIMEOUT_MS: Final = 30_000


def ask_health(store: str | os.PathLike[str], host: str, reach: Reach) -> HealthReply:
    """What the monitor of this node sees; `host` is where the node listens.

    Raises WireError if the node does not run, StoreMissingError if there is none.
    """
    path = Path(store)
    identity = read_identity(path)
    port = read_ports(path).monitor
    if not port:
        raise WireError(
            "no monitor ever ran here", node=identity.node, hint="Start the node: `perdure node DIR`."
        )
    try:
        with ServerClient(
            host, port, cluster_id=identity.cluster_id, secret=reach.secret, node=identity.node
        ) as client:
            return client.ask(HealthAsk(), HealthReply, timeout_ms=reach.timeout_ms)[0]
    except WireError as error:
        raise WireError(
            f"the monitor of {identity.node} does not answer: {error.message}",
            node=identity.node,
            hint=error.hint or "Does `perdure node` run? Is its secret known here, are its certificates?",
        ) from error


def order_to_stand(
    node: str, address: tuple[str, int], cluster_id: bytes, reach: Reach, ask: StandAsk
) -> StandReply:
    """Tell a node to become primary; `address` is its receiver's. Returns once it is.

    Raises what its promotion raised; WireError if it cannot be asked, AnswerLost if what became of it is
    not known.
    """
    host, port = address
    with NodeClient(
        host, port, cluster_id=cluster_id, secret=reach.secret, node=node, timeout_ms=reach.timeout_ms
    ) as asked:
        status = asked.status()
    if status.node != node:
        raise WireError(f"{host}:{port} is node {status.node}, not {node}", node=node)
    if not status.monitor_port:
        raise WireError(
            f"{node} runs no monitor, which takes orders",
            node=node,
            hint="Start it with `perdure node`, or promote it there: `perdure promote DIR`.",
        )
    with ServerClient(
        host, status.monitor_port, cluster_id=cluster_id, secret=reach.secret, node=node
    ) as client:
        return client.ask(ask, StandReply, timeout_ms=STAND_TIMEOUT_MS)[0]
