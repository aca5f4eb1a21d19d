"""The process of a node's server: it takes a port and says so, answers, and ends with its parent."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import perdure
from perdure.cli.server_process import ServerTask, start_server
from perdure.shipping import ServerClient
from perdure.shipping.messages_forward import PositionAsk, PositionReply
from perdure.store import WireError
from perdure.store.identity import read_identity

SECRET = b"a secret that all nodes share"


def ask(store: Path, port: int) -> PositionReply:
    cluster = read_identity(store).cluster_id
    with ServerClient("127.0.0.1", port, cluster_id=cluster, secret=SECRET) as client:
        return client.ask(PositionAsk(), PositionReply)[0]


def test_a_server_says_where_readers_of_its_node_stand(tmp_path: Path) -> None:
    with perdure.open(tmp_path / "s") as store:
        store.create({"a": 1})
        position = store.position()
        child = start_server(ServerTask(str(tmp_path / "s"), "127.0.0.1", 0, SECRET))
        try:
            reply = ask(tmp_path / "s", child.port)
            assert (reply.is_primary, reply.position) == (True, tuple(position))
            os.kill(child.pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while child.is_running:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            child.stop()


def test_a_server_on_a_port_that_is_taken_says_why(tmp_path: Path) -> None:
    perdure.open(tmp_path / "s").close()
    child = start_server(ServerTask(str(tmp_path / "s"), "127.0.0.1", 0, SECRET))
    try:
        with pytest.raises(WireError, match="cannot listen"):
            start_server(ServerTask(str(tmp_path / "s"), "127.0.0.1", child.port, SECRET))
    finally:
        assert child.stop(60) == 0
