"""The keeper of the policy `available`: it looks, and takes the steps that availability decides.

Owns the primary's way to its witnesses, and the appends of the two CONFIGs. One step a look; what goes wrong
is tried again at the next one. It does nothing on a replica, with the policy strict, or without witnesses,
but for saying to a witness that all replicas are in sync again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from ..shipping.asking import NodeClient
from ..shipping.credentials import Secret
from ..shipping.messages_witness import InSyncAsk
from ..shipping.nodelog import NodeLog, open_node_log
from ..shipping.roster import node_addresses
from ..store.errors import PerdureError, PoisonedError, PromiseRefusedError, WireError
from ..store.page import Word
from ..store.promise import Promise
from ..store.witness import InSync
from .availability import ALONE_AFTER_MS, Act, Scene, Step, config_after, next_step

logger = logging.getLogger(__name__)

LOOK_MS: Final = 100
ASK_TIMEOUT_MS: Final = 1_000


class Witnesses(Protocol):
    """The way to the witnesses."""

    def record(self, witness: str, reign: Promise, expected: InSync, nodes: tuple[str, ...]) -> InSync:
        """Have `nodes` recorded if `expected` is what is held; answers what is held then, durably.

        Without nodes it only asks. Raises WireError if the witness does not answer, PromiseRefusedError if
        the reign is over.
        """
        ...


class WireWitnesses:
    """The Witnesses port over TCP. `addresses` gives (host, port) by name, at each call anew."""

    def __init__(
        self, addresses: Callable[[], Mapping[str, tuple[str, int]]], *, cluster_id: bytes, secret: Secret
    ) -> None:
        self._addresses = addresses
        self._cluster_id = cluster_id
        self._secret = secret

    def record(self, witness: str, reign: Promise, expected: InSync, nodes: tuple[str, ...]) -> InSync:
        """As the port says; UsageError for a bad secret, ForeignError for a node of another cluster."""
        address = self._addresses().get(witness)
        if address is None:
            raise WireError("the address of a witness is not known", node=witness)
        with NodeClient(
            *address,
            cluster_id=self._cluster_id,
            secret=self._secret,
            timeout_ms=ASK_TIMEOUT_MS,
            node=witness,
        ) as client:
            if client.status().node != witness:
                raise WireError(f"{address[0]}:{address[1]} is another node", node=witness)
            asked = InSyncAsk(reign.epoch, reign.candidate, expected.epoch, expected.number, nodes)
            reply = client.record_in_sync(asked)
        return InSync(reply.epoch, reply.number, reply.nodes)


class AvailabilityKeeper:
    """The keeper of one node. `look` is to be called again and again, on a node of any role."""

    def __init__(
        self,
        node: NodeLog,
        witnesses: Witnesses,
        *,
        alone_after_ms: int = ALONE_AFTER_MS,
        monotonic_ms: Callable[[], int] | None = None,
    ) -> None:
        """`alone_after_ms`: so long fewer than k replicas follow before the primary goes on alone."""
        self._node = node
        self._alone_after_ms = alone_after_ms
        self._witnesses = witnesses
        self._clock = monotonic_ms or (lambda: time.monotonic_ns() // 1_000_000)
        self._held: dict[str, InSync] = {}
        self._epoch = 0
        self._is_enough: bool | None = None
        self._since_ms = 0
        self._failed_with = ""
        """What the last step failed with: a witness that is away for long is not told of at each look."""

    @property
    def has_failed(self) -> bool:
        """Could the last step that was due not be taken? It stays due."""
        return bool(self._failed_with)

    def look(self) -> Step:
        """Look, and take the step that is due; answers which. Raises as NodeLog's calls."""
        log = self._node.log
        self._node.keep_up()
        if not log.is_primary:
            self._epoch = 0
            return Step(Act.NOTHING)
        step = next_step(self.scene())
        failed = self._take(step) if step.act is not Act.NOTHING else ""
        if failed and failed != self._failed_with:
            logger.warning("cannot %s: %s", step.act.value, failed)
        self._failed_with = failed
        return step

    def scene(self) -> Scene:
        """What this primary sees now."""
        node, log = self._node, self._node.log
        words, config, epoch = log.words, log.config, log.cursor.at.epoch
        now_ms = self._clock()
        if epoch != self._epoch:
            self._epoch, self._is_enough = epoch, None
            self._held.clear()
        following = int(words[Word.VOTERS_CONNECTED]) if words[Word.SHIPPER] else 0
        is_enough = following >= config.electors.sync_replicas
        if is_enough != self._is_enough:
            self._is_enough, self._since_ms = is_enough, now_ms
        began = max(config.changed_lsn, self._epoch_start())
        return Scene(
            primary=node.node,
            config=config,
            is_config_committed=config.is_committed(node.committed_lsn()),
            is_caught_up=config.sync_replicas > 0 and node.committed_lsn() >= began,
            following=following,
            since_ms=now_ms - self._since_ms,
            held={name: held for name, held in self._held.items() if name in config.witnesses},
            alone_after_ms=self._alone_after_ms,
        )

    def _take(self, step: Step) -> str:
        """Take a step; answers why that failed, if it did."""
        try:
            if step.act in (Act.GO_ALONE, Act.GO_BACK):
                self._append(step)
                return ""
            reign = Promise(self._epoch, self._node.node)
            # Until the answer is here, what the witness holds is not known.
            self._held.pop(step.witness, None)
            held = self._witnesses.record(step.witness, reign, step.expected, step.nodes)
            self._held[step.witness] = held
            logger.info("told a witness: node=%s in_sync=%s", step.witness, held.nodes)
        except PromiseRefusedError as error:
            return f"a witness has promised a later epoch: node={step.witness} error={error}"
        except PoisonedError:
            raise
        except (PerdureError, OSError) as error:
            return f"witness={step.witness} error={error}"
        return ""

    def _append(self, step: Step) -> None:
        """The CONFIG, if under the write lock the decision is still the same."""
        log = self._node.log
        log.lock()
        try:
            if next_step(self.scene()) == step:
                position = log.change_config(config_after(log.config, step, log.cursor.at.lsn))
                logger.warning("%s: lsn=%d", step.act.value, position.lsn)
        finally:
            log.unlock()

    def _epoch_start(self) -> int:
        return next((first for epoch, first in self._node.epochs() if epoch == self._epoch), 0)


def keep_available(
    store: str | os.PathLike[str],
    replicas: Mapping[str, tuple[str, int]],
    secret: Secret,
    should_stop: Callable[[], bool],
    *,
    alone_after_ms: int = ALONE_AFTER_MS,
) -> None:
    """Run the keeper of a node until `should_stop` says so. Raises PoisonedError, and as open_node_log.

    `replicas` gives (host, port) of nodes whose address the log does not say; `alone_after_ms` is how long
    the primary waits for its replicas before it goes on without them.
    """
    node = open_node_log(Path(store), [])
    try:
        witnesses = WireWitnesses(
            lambda: node_addresses(node.log.config, node.node, replicas),
            cluster_id=node.identity.cluster_id,
            secret=secret,
        )
        keeper = AvailabilityKeeper(node, witnesses, alone_after_ms=alone_after_ms)
        while not should_stop():
            step = keeper.look()
            if step.act is Act.NOTHING or keeper.has_failed:
                time.sleep(LOOK_MS / 1000)
    finally:
        node.close()
