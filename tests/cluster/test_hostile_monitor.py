"""What hostile peers can do to a node's monitor: be hung up on, while heartbeats and answers go on."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.shipping import HealthAsk, HealthReply, ServerClient
from perdure.shipping.auth import MONITOR
from perdure.shipping.messages import Challenge
from perdure.shipping.messages_health import Beat
from perdure.shipping.monitor import STRANGERS_MAX, run_monitor
from perdure.store.ids import EPOCH_JUMP_MAX, EPOCH_MAX
from tests.cluster.nodes import CLUSTER, HOST, SECRET, cluster_of, until
from tests.cluster.test_hostile_peers import GREET, SEED, STRANGE_WORDS
from tests.support.fuzz import SEED_VARIABLE
from tests.support.hostile import Intruder, mad_message

FAR_MS = (1 << 48) - 1


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Where the monitor of n1 listens; n2, its peer, is not there."""
    stopping = threading.Event()
    errors: list[BaseException] = []
    with cluster_of(tmp_path, 2) as cluster, socket.create_server((HOST, 0)) as listener:
        listening = int(listener.getsockname()[1])

        def watch() -> None:
            try:
                run_monitor(
                    cluster.path("n1"),
                    {"n2": (HOST, 9)},
                    listener=listener,
                    secret=SECRET,
                    should_stop=stopping.is_set,
                )
            except BaseException as error:
                errors.append(error)
                raise

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            until(lambda: health(listening).nodes[0].hears == "n1", "the monitor had looked at its node")
            yield listening
        finally:
            stopping.set()
            thread.join(20)
        assert errors == []


def health(port: int) -> HealthReply:
    with ServerClient(HOST, port, cluster_id=CLUSTER, secret=SECRET) as client:
        return client.ask(HealthAsk(), HealthReply)[0]


def beat(**changes: object) -> Beat:
    fields: dict[str, object] = {
        "node": "n2",
        "is_primary": False,
        "epoch": 1,
        "lsn": 1,
        "promise_epoch": 1,
        "promise_candidate": "n1",
        "hears": "n1",
        "hears_epoch": 1,
        "is_failing": False,
        "is_fit": True,
        "state": "active",
    }
    return Beat(**{**fields, **changes})  # type: ignore[arg-type]


def test_strangers_of_the_monitor_are_hung_up_on(port: int) -> None:
    for name, words in STRANGE_WORDS.items():
        with Intruder(port) as stranger:
            stranger.say(*words)
            stranger.end()
            assert all(isinstance(heard, Challenge) for heard in stranger.last_words()), name
    assert health(port).nodes[0].node == "n1"


def test_a_flood_of_strangers_keeps_no_monitor_from_its_work(port: int) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(3 * STRANGERS_MAX):
            stack.enter_context(Intruder(port)).say(GREET[: number % len(GREET)])
        assert health(port).nodes[0].node == "n1"


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": EPOCH_MAX, "is_primary": True},
        {"epoch": EPOCH_JUMP_MAX + 2},
        {"promise_epoch": EPOCH_MAX},
        {"hears": "n9", "hears_epoch": EPOCH_MAX},
        {"unmonitored": ("n1",), "unmonitored_ms": FAR_MS},
    ],
)
def test_an_absurd_heartbeat_is_not_believed(port: int, change: dict[str, object]) -> None:
    with Intruder(port) as mad:
        mad.meet(SECRET, CLUSTER, MONITOR)
        mad.say(beat(**change))
        mad.last_words()
    rows = {row.node: row for row in health(port).nodes}
    assert rows["n1"].is_monitored
    assert rows["n1"].hears == "n1", "it is primary itself, and hears no other"
    assert rows["n2"].epoch <= EPOCH_JUMP_MAX + 1


def test_a_mad_monitor_ends_its_own_connection_only(port: int) -> None:
    source = random.Random(SEED)
    for _ in range(100):
        with Intruder(port) as mad:
            mad.meet(SECRET, CLUSTER, MONITOR)
            mad.say(*(mad_message(source) for _ in range(5)))
            mad.end()
            mad.last_words()
    assert health(port).nodes[0].node == "n1", f"{SEED_VARIABLE}={SEED}"
