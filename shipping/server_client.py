"""Asking a node's server: one connection, made when it is needed and made again when it is gone.

Owns the asking side of it. An answer that did not come is told apart (AnswerLost) from a question that was
never asked (any other WireError): only the first one may have been carried out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Final, TypeVar

from ..store.errors import WireError
from .asking import refused, refused_unproved
from .auth import CLIENT, NONCE_BYTES, Connecting
from .conversation import Conversation
from .credentials import Secret, check_secret
from .link import LinkClosed, begin_connect, check_connected
from .messages import Challenge, Message, Proof, Refusal
from .messages_server import Failed
from .wire_errors import error_of

ANSWER_MS: Final = 5_000
CONNECT_MS: Final = 2_000
M = TypeVar("M", bound=Message)


class AnswerLost(WireError):
    """The question was sent, and no answer came: whether it was carried out is not known."""


class ServerClient:
    """A way to one node's server. Not for two threads at once."""

    def __init__(
        self, host: str, port: int, *, cluster_id: bytes, secret: Secret = b"", node: str = ""
    ) -> None:
        """Nothing is connected yet. With certificates the other's must be that of `node`, if it is given.

        Raises UsageError for a secret that is too short, or not enough for that address.
        """
        check_secret(secret, host)
        self.name = f"{host}:{port}"
        self._host, self._port = host, port
        self._cluster_id = cluster_id
        self._secret = secret
        self._node = node
        self._talk: Conversation | None = None

    def ask(
        self,
        question: Message,
        wanted: type[M],
        payload: bytes = b"",
        *,
        timeout_ms: int = ANSWER_MS,
        is_over: Callable[[], bool] | None = None,
    ) -> tuple[M, bytes]:
        """The answer to a question, and its payload.

        While there is none, `is_over` is asked now and then whether to give up as if `timeout_ms` had passed.

        Raises the error that the handler raised; AnswerLost if the link broke or `timeout_ms` passed after
        the question was sent; WireError or ForeignError if it could not be asked.
        """
        deadline = monotonic() + timeout_ms / 1000
        talk = self._connected(deadline, is_over)
        try:
            talk.send(question, payload, deadline)
            answer, data = talk.take(deadline)
        except BaseException as error:
            self.close()  # an answer that comes now would be taken for the next one's
            if isinstance(error, WireError):
                raise AnswerLost(f"no answer from {self.name}: {error.message}", node=self.name) from error
            raise
        if isinstance(answer, Failed):
            raise error_of(answer)
        if isinstance(answer, Refusal):
            self.close()
            raise refused(answer, self.name)
        if not isinstance(answer, wanted):
            self.close()
            raise AnswerLost(f"{self.name} answered with a {type(answer).__name__} message")
        return answer, data

    def close(self) -> None:
        """Hang up; the next question connects again."""
        if self._talk is not None:
            self._talk.close()
            self._talk = None

    def __enter__(self) -> ServerClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connected(self, deadline: float, is_over: Callable[[], bool] | None) -> Conversation:
        if self._talk is not None:
            if self._talk.is_quiet():
                self._talk.is_over = is_over
                return self._talk
            self.close()  # the server hung up meanwhile, or it said what nobody asked
        deadline = min(deadline, monotonic() + CONNECT_MS / 1000)
        link = begin_connect(self._host, self._port, self.name, self._secret, node=self._node)
        talk = Conversation(link, is_over)
        auth = Connecting(self._secret, self._cluster_id, CLIENT, os.urandom(NONCE_BYTES))
        try:
            talk.wait_writable(deadline)
            check_connected(link)
            talk.send(auth.greet(), b"", deadline)
            talk.send(auth.answer(self._expect(talk, Challenge, deadline)), b"", deadline)
            auth.check(self._expect(talk, Proof, deadline))
            link.trust()
        except BaseException as error:
            talk.close()
            if isinstance(error, LinkClosed):
                raise auth.explained(error) from error
            raise
        self._talk = talk
        return talk

    def _expect(self, talk: Conversation, kind: type[M], deadline: float) -> M:
        message, _ = talk.take(deadline)
        if isinstance(message, Refusal):
            raise refused_unproved(message, self.name)
        if not isinstance(message, kind):
            raise WireError(f"{self.name} greeted with a {type(message).__name__} message")
        return message
