"""The elector: takes what the monitor sees to the coordinator, and does what that says.

Owns the loop, the node's state, and the carrying out: a promotion, or giving up. It is there before it is
needed, with everything loaded. Invariant: it becomes primary by promote() and in no other way, so that
whatever it or a coordinator gets wrong is refused by those who promise.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic_ns, time_ns
from typing import Final

from ..shipping.credentials import Secret
from ..shipping.cut import finish_cut
from ..shipping.detection import PeerHealth
from ..shipping.messages_health import StandReply
from ..shipping.monitor_pipe import Done, Order, Pipe, Report, Told
from ..shipping.nodelog import NodeLog, open_node_log
from ..shipping.rebuild import why_unfit
from ..shipping.roster import node_addresses
from ..shipping.unmonitored import NOBODY
from ..shipping.wire_errors import failed
from ..store import names
from ..store.errors import PerdureError, PoisonedError
from ..store.page import Word
from .candidacy import candidacy, is_candidate
from .coordinators import Coordinator
from .election import Action, Kind, Own
from .node_state import NodeFacts, NodeState, NodeStates
from .promote import PromotionReport, promote
from .takeovers import Takeover, record_failure, record_takeover
from .voters import WireVoters

logger = logging.getLogger(__name__)

TICK_MS: Final = 20
TELL_MS: Final = 1_000
COMMIT_WAIT_MS: Final = 10_000
FAULT_MS: Final = 500
_PLANS: Final = (names.INSTALL_PLAN, names.CUT_PLAN)
_GENERATION: Final = int(Word.GENERATION)


class Elector:
    """The elector of one node."""

    def __init__(
        self,
        store: Path,
        peers: Mapping[str, tuple[str, int]],
        secret: Secret,
        pipe: Pipe,
        coordinator: Coordinator,
        on_state: Callable[[str], object] = lambda _state: None,
    ) -> None:
        self._store = store
        self._on_state = on_state
        self._secret = secret
        self._pipe = pipe
        self._coordinator = coordinator
        self._node: NodeLog = open_node_log(store, [])
        self._name = self._node.node
        self._configured = dict(peers)
        self._config = self._node.log.config
        self._peers = node_addresses(self._config, self._name, peers)
        self.states = NodeStates()
        self._report = Report(0, "", [], NOBODY)
        self._clock_ms = 0
        self._orders: list[Order] = []
        self._told: Told | None = None
        self._told_ms = 0
        self._fault = ""
        self._fault_ms = -FAULT_MS
        self._suspected: _Suspected | None = None
        self._begun: _Begun | None = None

    # -- the loop --------------------------------------------------------------------------------

    def run(self, should_stop: Callable[[], bool], lifeline: int | None = None) -> None:
        """Serve until `should_stop` says so. Raises PoisonedError, WireError once the node has ended."""
        poller = select.poll()
        poller.register(self._pipe, select.POLLIN)
        if lifeline is not None:
            poller.register(lifeline, select.POLLIN)
        while not should_stop():
            for descriptor, _ in poller.poll(TICK_MS):
                if descriptor == lifeline:
                    return
            self._take_all()
            try:
                self._look()
            except PoisonedError:
                raise
            except (PerdureError, OSError) as error:
                logger.error("cannot look: %s", error)

    def close(self) -> None:
        if self.states.become(NodeState.TERMINATING):
            self._tell("it ends")
        self._coordinator.close()
        self._node.close()
        self._pipe.close()

    def _take_all(self) -> None:
        """Take everything that the monitor said: only its newest look counts."""
        for message in self._pipe.receive():
            match message:
                case Report():
                    # A monitor that was started again begins its clock anew.
                    self._clock_ms += max(0, message.clock_ms - self._report.clock_ms)
                    self._report = message
                case Order():
                    self._orders.append(message)
                case _:
                    continue

    def _look(self) -> None:
        own = self._own()
        self._see_commit()
        for order in self._orders:
            self._pipe.send(self._obey(own, order))
        self._orders.clear()
        report = self._report
        action = self._coordinator.look(
            self._clock_ms, own, report.peers, frozenset(report.unmonitored.nodes)
        )
        self._note(own, action)
        match action.kind:
            case Kind.STAND:
                self._stand(own, action)
            case Kind.STEP_DOWN:
                self._give_up(own, action.why)
            case _:
                self._follow_state(own, action)
        self._tell(action.why)

    def _own(self) -> Own:
        """This node as its page and files say."""
        node, log = self._node, self._node.log
        node.keep_up()
        if log.config is not self._config:
            self._config = log.config
            self._peers = node_addresses(log.config, self._name, self._configured)
        words, header = log.words, log.cursor.header
        at_ms = monotonic_ns() // 1_000_000
        if at_ms - self._fault_ms >= FAULT_MS:
            self._fault_ms = at_ms
            self._finish_cut()
            plans = [name for name in _PLANS if (self._store / name).exists()]
            self._fault = f"{plans[0]} is under way" if plans else why_unfit(self._store)
        failing, epoch = self._report.failing, int(words[Word.EPOCH])
        has_given_up = bool(epoch) and words[Word.GIVEN_UP] == epoch
        if has_given_up and not failing:
            self._take_back()
        return Own(
            node=self._name,
            is_primary=log.is_primary,
            epoch=epoch,
            lsn=int(words[Word.FLUSHED]),
            primary=header.primary if header else "",
            promise_epoch=log.promise.epoch,
            promise_candidate=log.promise.candidate,
            config=log.config,
            committed_lsn=int(words[Word.COMMITTED]),
            fault=self._fault or failing,
            failing=failing,
        )

    def _finish_cut(self) -> None:
        """What a promotion of this node had begun when it was killed: nobody else may come to finish it."""
        if not (self._store / names.CUT_PLAN).exists() or is_candidate(self._store):
            return
        try:
            if finish_cut(self._store):
                self._node.end_on_disk()  # which the page does not say before somebody has looked
                logger.warning("finished a cut that was broken off: node=%s", self._name)
        except (PerdureError, OSError) as error:
            logger.error("cannot finish a cut: node=%s error=%s", self._name, error)

    # -- carrying out ----------------------------------------------------------------------------

    def _stand(self, own: Own, action: Action) -> None:
        if is_candidate(self._store):
            return  # a switchover, or a person, has this node promoted: the next look sees what came of it
        self._become(NodeState.FAILOVER)
        self._tell(f"stands: {action.why}")
        suspected = self._suspected or _Suspected(action.suspect, 0, monotonic_ns())
        heard = [peer.node for peer in self._report.peers if peer.verdict.is_heard]
        heard += own.config.witnesses  # which send no heartbeats
        began_ns = monotonic_ns()
        try:
            epoch_min = self._coordinator.claim(own)
            report = self._promote(heard, epoch_min=epoch_min)
        except PoisonedError:
            raise
        except (PerdureError, OSError) as error:
            logger.warning("candidacy failed: node=%s why=%s error=%s", self._name, action.why, error)
            self._coordinator.lost(self._clock_ms)
            record_failure(self._store)
            return
        self._coordinator.won(report.epoch)
        if report.was_primary:
            return
        self._begun = _Begun(report, suspected, action.why, began_ns, monotonic_ns())
        logger.warning("promoted: node=%s epoch=%d because=%s", self._name, report.epoch, action.why)

    def _obey(self, own: Own, order: Order) -> Done:
        """Stand because somebody asked; the coordinator's opinion does not count, its record does."""
        ask = order.ask
        self._become(NodeState.FAILOVER)
        self._tell(f"stands: {ask.reason}")
        began_ns = monotonic_ns()
        suspected = _Suspected(own.primary, 0, began_ns)
        try:
            report = self._promote(list(self._peers), accept_data_loss=ask.accept_data_loss)
        except PoisonedError:
            raise
        except PerdureError as error:
            logger.warning("order failed: node=%s reason=%s error=%s", self._name, ask.reason, error)
            return Done(order.number, error=failed(error))
        if not report.was_primary:
            self._begun = _Begun(report, suspected, ask.reason, began_ns, monotonic_ns())
        self._coordinator.won(report.epoch)
        return Done(order.number, StandReply(report.epoch, report.was_primary))

    def _promote(
        self, asked: list[str], *, epoch_min: int = 0, accept_data_loss: bool = False
    ) -> PromotionReport:
        """Ask those who are there: one that is not would hold up the others' answers."""
        identity = self._node.identity
        addresses = {node: self._peers[node] for node in asked if node in self._peers}
        voters = WireVoters(addresses, cluster_id=identity.cluster_id, secret=self._secret)
        with candidacy(self._store):
            return promote(
                self._store,
                voters,
                accept_data_loss=accept_data_loss,
                epoch_min=epoch_min,
                commit_timeout_ms=0,
            )

    def _give_up(self, own: Own, why: str) -> None:
        """Be primary no more, in every process of the node, without a disk."""
        log = self._node.log
        logger.error("gives up: node=%s epoch=%d because=%s", self._name, own.epoch, why)
        log.words[Word.GIVEN_UP] = own.epoch
        log.page.bump()
        self._become(NodeState.RECOVERING)

    def _take_back(self) -> None:
        """The disk answers again. If nobody was promoted meanwhile this node is primary as before."""
        log = self._node.log
        logger.warning("its disk answers again: node=%s", self._name)
        log.words[Word.GIVEN_UP] = 0
        log.page.bump()
        self._node.keep_up()

    def _see_commit(self) -> None:
        """Write a failover down once its EPOCH_START is committed."""
        begun = self._begun
        if begun is None:
            return
        words, now_ns = self._node.log.words, monotonic_ns()
        waited_ms = (now_ns - begun.ended_ns) // 1_000_000
        is_committed = words[Word.COMMITTED] >= begun.report.start.lsn
        if not is_committed and waited_ms < COMMIT_WAIT_MS:
            return
        self._begun = None
        suspected = begun.suspected
        failover = Takeover(
            epoch=begun.report.epoch,
            at_ms=time_ns() // 1_000_000,
            before=suspected.node,
            why=begun.why,
            detection_ms=suspected.silence_ms,
            waiting_ms=(begun.began_ns - suspected.since_ns) // 1_000_000,
            promotion_ms=(begun.ended_ns - begun.began_ns) // 1_000_000,
            commit_ms=waited_ms,
        )
        logger.warning("failover: node=%s %s", self._name, failover)
        record_takeover(self._store, failover)

    # -- saying ----------------------------------------------------------------------------------

    def _note(self, own: Own, action: Action) -> None:
        """Remember since when a primary is suspected, and how long it had been silent by then."""
        if action.kind is Kind.NOTHING or own.is_primary:
            self._suspected = None
        elif self._suspected is None or self._suspected.node != action.suspect:
            peer = _peer(self._report.peers, action.suspect)
            self._suspected = _Suspected(action.suspect, peer.silence_ms if peer else 0, monotonic_ns())
            logger.warning("suspects: node=%s primary=%s why=%s", self._name, action.suspect, action.why)

    def _follow_state(self, own: Own, action: Action) -> None:
        primary = max(
            (
                peer.beat
                for peer in self._report.peers
                if peer.beat and peer.beat.is_primary and peer.verdict.is_heard
            ),
            key=lambda beat: beat.epoch,
            default=None,
        )
        facts = NodeFacts(
            is_primary=own.is_primary,
            fault=own.fault,
            is_suspicious=bool(action.suspect),
            is_standing=False,
            hears=primary is not None,
            lag_events=max(0, primary.lsn - own.lsn) if primary else 0,
            is_empty=not own.lsn,
        )
        if self.states.state is NodeState.INITIALIZING and not (own.is_primary or self._report.clock_ms):
            return
        if self.states.follow(facts):
            self._say_state()

    def _become(self, state: NodeState) -> None:
        if self.states.become(state):
            self._say_state()

    def _say_state(self) -> None:
        logger.info("state: node=%s is=%s", self._name, self.states.state.value)
        self._on_state(self.states.state.value)

    def _tell(self, why: str) -> None:
        told = Told(self.states.state.value, self._coordinator.name, why, self._peers)
        at_ms = monotonic_ns() // 1_000_000
        if told != self._told or at_ms - self._told_ms >= TELL_MS:
            self._told_ms = at_ms
            self._told = told if self._pipe.send(told) else None


class _Suspected:
    """A primary that is given up: how long it had been silent, and since when that is known."""

    def __init__(self, node: str, silence_ms: int, since_ns: int) -> None:
        self.node = node
        self.silence_ms = silence_ms
        self.since_ns = since_ns


class _Begun:
    """A promotion whose EPOCH_START is not known to be committed yet."""

    def __init__(
        self, report: PromotionReport, suspected: _Suspected, why: str, began_ns: int, ended_ns: int
    ) -> None:
        self.report = report
        self.suspected = suspected
        self.why = why
        self.began_ns = began_ns
        self.ended_ns = ended_ns


def run_elector(
    store: str | os.PathLike[str],
    peers: Mapping[str, tuple[str, int]],
    *,
    pipe: Pipe,
    coordinator: Coordinator,
    secret: Secret = b"",
    should_stop: Callable[[], bool] = lambda: False,
    on_state: Callable[[str], object] = lambda _state: None,
    lifeline: int | None = None,
) -> None:
    """Decide about this node's role until `should_stop` says so, or `lifeline`'s other end is closed.

    `peers` gives host and port of the other nodes' receivers, where the log does not say them; `on_state` is
    called with the node's state whenever it changes. Raises PoisonedError after a failed sync,
    WireError when the pipe is closed, CorruptError or another StorageError for a log that cannot be opened.
    """
    elector = Elector(Path(store), peers, secret, pipe, coordinator, on_state)
    try:
        elector.run(should_stop, lifeline)
    finally:
        elector.close()


def _peer(peers: list[PeerHealth], node: str) -> PeerHealth | None:
    return next((peer for peer in peers if peer.node == node), None)
