"""A node's server: who may ask, what an error becomes, and what an answer that does not come is called."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from perdure.shipping.link import Link
from perdure.shipping.messages import FetchAsk, FetchReply, Message, StatusAsk, StatusReply
from perdure.shipping.server import CONNECTIONS_MAX, STRANGERS_MAX, Handlers, Server, merged
from perdure.shipping.server_client import AnswerLost, ServerClient
from perdure.shipping.wire_errors import error_of, failed
from perdure.store import errors
from perdure.store.errors import (
    ForeignError,
    Indeterminate,
    KeyMissingError,
    LockTimeoutError,
    PerdureError,
    VersionConflictError,
    WireError,
)

CLUSTER = bytes(range(16))
SECRET = b"a secret of the tests, 32 bytes."
HOST = "127.0.0.1"


@contextmanager
def serving(handlers: Handlers, port: int = 0) -> Iterator[Server]:
    server = Server(HOST, port, cluster_id=CLUSTER, secret=SECRET, handlers=handlers)
    stopping = threading.Event()
    thread = threading.Thread(target=server.run, args=(stopping.is_set,))
    thread.start()
    try:
        yield server
    finally:
        stopping.set()
        thread.join(10)
        server.close()


def echo(message: FetchAsk, payload: bytes) -> tuple[Message, bytes]:
    return FetchReply(message.limit_bytes, message.after), payload * message.limit_bytes


def client(server: Server, *, secret: bytes = SECRET, cluster_id: bytes = CLUSTER) -> ServerClient:
    return ServerClient(HOST, server.port, cluster_id=cluster_id, secret=secret)


def ask(one: ServerClient, number: int = 1, timeout_ms: int = 5000) -> tuple[FetchReply, bytes]:
    return one.ask(FetchAsk((1, 2, 3), number), FetchReply, timeout_ms=timeout_ms)


def test_a_question_is_answered_and_the_connection_kept() -> None:
    with serving({FetchAsk: echo}) as server, client(server) as one:
        assert [ask(one, number)[0].raw_bytes for number in range(5)] == [0, 1, 2, 3, 4]
        assert len(server._guests) == 1


def test_many_clients_are_served_at_the_same_time() -> None:
    together = threading.Barrier(8)

    def meet(message: FetchAsk, _payload: bytes) -> tuple[Message, bytes]:
        together.wait(10)
        return FetchReply(message.limit_bytes, message.after), b""

    answers: list[int] = []
    with serving({FetchAsk: meet}) as server:

        def call(number: int) -> None:
            with client(server) as one:
                answers.append(ask(one, number)[0].raw_bytes)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert sorted(answers) == list(range(8))


def test_an_error_of_a_handler_is_raised_by_who_asked_with_its_fields() -> None:
    def refuse(_message: FetchAsk, _payload: bytes) -> tuple[Message, bytes]:
        raise VersionConflictError("no", expected=3, actual=None)

    with serving({FetchAsk: refuse}) as server, client(server) as one:
        for _ in range(2):
            with pytest.raises(VersionConflictError) as caught:
                ask(one)
            assert (caught.value.expected, caught.value.actual) == (3, None)
        assert len(server._guests) == 1


def test_a_question_that_no_handler_takes_is_an_error() -> None:
    with serving({FetchAsk: echo}) as server, client(server) as one:
        with pytest.raises(WireError, match="StatusAsk"):
            one.ask(StatusAsk(), StatusReply)
        assert ask(one)[0].raw_bytes == 1


@pytest.mark.timeout(20)
def test_an_answer_that_has_become_pointless_is_not_waited_for() -> None:
    gate, asked = threading.Event(), threading.Event()

    def wait(message: FetchAsk, payload: bytes) -> tuple[Message, bytes]:
        asked.set()
        gate.wait()
        return echo(message, payload)

    with serving({FetchAsk: wait}) as server, client(server) as one:
        try:
            with pytest.raises(AnswerLost):
                one.ask(FetchAsk((1, 2, 3), 1), FetchReply, timeout_ms=60_000, is_over=asked.is_set)
        finally:
            gate.set()
        assert ask(one, 2)[0].raw_bytes == 2


def test_an_answer_that_takes_too_long_is_lost_and_the_next_question_gets_its_own() -> None:
    gate = threading.Event()

    def slow(message: FetchAsk, _payload: bytes) -> tuple[Message, bytes]:
        if message.limit_bytes == 1:
            gate.wait(10)
        return FetchReply(message.limit_bytes, message.after), b""

    with serving({FetchAsk: slow}) as server, client(server) as one:
        assert ask(one, 3)[0].raw_bytes == 3  # the connection is there
        with pytest.raises(AnswerLost):
            ask(one, 1, timeout_ms=100)
        gate.set()
        assert ask(one, 2)[0].raw_bytes == 2


def test_a_handler_that_breaks_ends_its_connection_only() -> None:
    def broken(_message: FetchAsk, _payload: bytes) -> tuple[Message, bytes]:
        raise ZeroDivisionError

    with serving({FetchAsk: broken}) as server, client(server) as one:
        for _ in range(2):
            with pytest.raises(AnswerLost):
                ask(one)


def test_a_client_connects_again_to_a_server_that_was_started_anew() -> None:
    with serving({FetchAsk: echo}) as server:
        one = client(server)
        ask(one)
        port = server.port
    with pytest.raises(WireError) as caught:
        ask(one)
    assert not isinstance(caught.value, AnswerLost)
    with serving({FetchAsk: echo}, port):
        assert ask(one)[0].raw_bytes == 1
    one.close()


def test_who_does_not_know_the_secret_or_belongs_elsewhere_is_not_served() -> None:
    asked: list[object] = []

    def note(message: FetchAsk, payload: bytes) -> tuple[Message, bytes]:
        asked.append(message)
        return echo(message, payload)

    with serving({FetchAsk: note}) as server:
        with client(server, secret=bytes(32)) as one, pytest.raises(WireError):
            ask(one)
        with client(server, cluster_id=bytes(16)) as one, pytest.raises(ForeignError):
            ask(one)
        with socket.create_connection((HOST, server.port)) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
            raw.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert raw.recv(100) == b""
        with client(server) as one:
            ask(one)
    assert len(asked) == 1


def test_the_oldest_stranger_goes_when_another_one_comes() -> None:
    with serving({FetchAsk: echo}) as server:
        strangers = [socket.create_connection((HOST, server.port)) for _ in range(STRANGERS_MAX + 5)]
        try:
            with client(server) as one:
                assert ask(one)[0].raw_bytes == 1
            for stranger in strangers[:5]:
                stranger.settimeout(10)
            assert strangers[0].recv(10) == b""
            assert strangers[4].recv(10) == b""
            assert sum(guest.is_strange for guest in list(server._guests.values())) <= STRANGERS_MAX
        finally:
            for stranger in strangers:
                stranger.close()


def test_one_connection_too_many_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.shipping.server.CONNECTIONS_MAX", 2)
    assert CONNECTIONS_MAX > 2
    with serving({FetchAsk: echo}) as server, client(server) as one, client(server) as two:
        ask(one)
        ask(two)
        with client(server) as three:
            with pytest.raises(WireError, match="served already"):
                ask(three)
            two.close()
            deadline = time.monotonic() + 10
            while True:
                try:
                    ask(three)
                    break
                except WireError:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)


def _classes(kind: type[PerdureError]) -> list[type[PerdureError]]:
    return [kind, *(one for child in kind.__subclasses__() for one in _classes(child))]


def test_every_error_of_the_tree_goes_over_the_wire_and_back() -> None:
    special: list[PerdureError] = [
        VersionConflictError("m", expected=1, actual=2),
        Indeterminate("m", position=(1, 2, 3), operation_id="ab" * 16),
        KeyMissingError("m", key_id=7, path="p", hint="h"),
    ]
    plain = [
        kind("m", path="p", offset=1, lsn=2, node="n", hint="h")
        for kind in _classes(PerdureError)
        if kind.__module__ == errors.__name__
        and not issubclass(kind, (VersionConflictError, Indeterminate, KeyMissingError))
    ]
    assert len(plain) > 25
    for error in special + plain:
        back = error_of(failed(error))
        assert type(back) is type(error)
        assert vars(back) == vars(error)


def test_an_error_of_another_module_becomes_the_one_above_it() -> None:
    from perdure.shipping.link import LinkClosed

    assert type(error_of(failed(LinkClosed("x")))) is WireError
    assert type(error_of(failed(LockTimeoutError("x")))) is LockTimeoutError


def test_two_handlers_for_one_message_are_refused() -> None:
    with pytest.raises(WireError):
        merged([{FetchAsk: echo}, {FetchAsk: echo}])


def test_a_link_is_closed_when_the_server_is() -> None:
    with serving({FetchAsk: echo}) as server, client(server) as one:
        ask(one)
        links: list[Link] = list(server._guests)
    assert all(link.fileno() == -1 for link in links)
