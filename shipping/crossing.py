"""A receiver goes over to another history: it gathers what a rejoin needs, and carries it out.

Owns the receiver's side of the exchange that KeysOffer begins; what is gathered is taking's, what is done
with it rejoin's. If it comes to nothing the primary is told, and sends a snapshot instead.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..store import names
from ..store.errors import CorruptError, DivergedError, PerdureError, PoisonedError, WireError
from .messages import FetchReply
from .messages_rejoin import KeysOffer, KeysReply
from .parted import export_folder
from .rejoin import Prepared, begin_rejoin
from .taking import Taking
from .touched import TooMuchError

if TYPE_CHECKING:
    from .receiver import Receiver
    from .visitor import Visitor

logger = logging.getLogger(__name__)


class Crossing:
    """At most one rejoin of one receiver at a time."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._taking: Taking | None = None
        self._visitor: Visitor | None = None
        self.takes_keys = True
        """False once that came to nothing."""

    def begin(self, visitor: Visitor, offer: KeysOffer) -> None:
        """The primary lets this node take the keys that its state has from behind the fork."""
        self.end()
        self._taking, self._visitor = Taking(self._receiver.node, offer), visitor
        self.go_on()

    def take_frames(self, reply: FetchReply, raw: bytes) -> None:
        if self._taking is None:
            raise WireError("frames that were not asked for")
        self._taking.take_frames(reply, raw)
        self.go_on()

    def take_records(self, reply: KeysReply, payload: bytes) -> None:
        if self._taking is None:
            raise WireError("records that were not asked for")
        self._taking.take_records(reply, payload)
        self.go_on()

    def go_on(self) -> None:
        """Ask for what is lacking; go over once all is here. Raises PoisonedError."""
        taking, visitor = self._taking, self._visitor
        if taking is None or visitor is None:
            return
        if not self._receiver.is_here(visitor):
            self.end()
            return
        try:
            found = taking.poll()
            if found is not None:
                visitor.link.send(*found)
                self._receiver.watch(visitor)
            elif taking.prepared is not None:
                self._cross(taking, taking.prepared, visitor)
        except PoisonedError:
            raise
        except (DivergedError, CorruptError, TooMuchError) as error:
            logger.error("the changed keys cannot be taken: %s", error)
            self.takes_keys = False
            self._meet_again(visitor)
        except (PerdureError, OSError) as error:
            self.end()
            self._receiver.end(visitor, error)

    def end(self) -> None:
        if self._taking is not None:
            self._taking.close()
        self._taking = self._visitor = None

    def _cross(self, taking: Taking, prepared: Prepared, visitor: Visitor) -> None:
        node, reign = self._receiver.node, visitor.reign
        folder = export_folder(node.store, taking.fork.lsn, node.log.cursor.at.epoch)
        if reign is not None and prepared.state.lsn > taking.fork.lsn:
            try:
                has_crossed = begin_rejoin(
                    node.store, taking.fork, taking.primary, taking.at, prepared, folder, reign=reign
                )
            except (PerdureError, OSError) as error:
                self._receiver.end_if_planned(names.REJOIN_PLAN, error)
                raise
            if has_crossed:
                self._receiver.reopen()
        self._meet_again(visitor)

    def _meet_again(self, visitor: Visitor) -> None:
        """As after a cut: the primary looks anew where this log ends, and what it then needs."""
        self.end()
        if visitor.reign is not None:
            visitor.meet(visitor.reign)
