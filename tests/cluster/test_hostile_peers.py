"""What a hostile peer can do to receiver, shipper and server: be hung up on, and nothing else."""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from perdure.recovery.scan import SegmentScan
from perdure.shipping import (
    ForwardService,
    NodeClient,
    Server,
    ServerClient,
    open_node_log,
    peer,
    read_slots,
    server,
    visitor,
)
from perdure.shipping.auth import CLIENT, NONCE_BYTES, SHIPPER, Connecting
from perdure.shipping.messages import (
    DIVERGED,
    ENVELOPE,
    FENCED,
    FOREIGN,
    GONE,
    GREETING_BYTES_MAX,
    KINDS,
    PROTOCOL,
    UNASKED_US,
    Ack,
    Challenge,
    Frames,
    Greet,
    Heartbeat,
    Pause,
    Peers,
    PromiseAsk,
    PromiseReply,
    Proof,
    Refusal,
    ShipHello,
    ShipWelcome,
    Start,
    StatusAsk,
    StatusReply,
    encode_message,
)
from perdure.shipping.receiver import STRANGERS_MAX
from perdure.shipping.wire_types import NODES_MAX
from perdure.store import Config, FencedError, PromiseRefusedError, SessionStore, read_promise, zstd
from perdure.store.cursor import list_segments
from perdure.store.errors import ForeignError, WireError
from perdure.store.ids import EPOCH_JUMP_MAX, EPOCH_MAX
from perdure.store.page import Word
from perdure.store.promise import NO_PROMISE, Promise, decide_promise
from tests.cluster.nodes import CLUSTER, SECRET, Cluster, cluster_of, until
from tests.support.fuzz import SEED_VARIABLE, damaged
from tests.support.hostile import HostileLink, HostileNode, Intruder, Stranger, mad_message

OTHER_SECRET = b"another secret, 32 bytes long..."
SEED = int(os.environ.get(SEED_VARIABLE) or secrets.randbits(32))
GARBAGE = random.Random(7).randbytes(300)


def footprint(path: Path) -> dict[str, bytes]:
    """What no peer without the right may change: promise, log, mark; byte for byte."""
    files = [path / "promise", *(file.path for file in list_segments(path / "log"))]
    return {file.name: file.read_bytes() for file in files if file.exists()}


def filled(cluster: Cluster) -> dict[str, bytes]:
    """Replicate a few sessions to n2, end the shipper, and answer n2's footprint."""
    cluster.serve_here("n2")
    cluster.ship_here("n1")
    store = cluster.open("n1")
    for number in range(5):
        store.create({"n": number})
    until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has it all")
    cluster.stop_here()
    cluster.serve_here("n2")
    return footprint(cluster.path("n2"))


def is_served(cluster: Cluster) -> bool:
    with cluster.client("n2") as client:
        return client.status().node == "n2"


def raw_message(
    kind: int, body: bytes = b"\x80", *, version: int = PROTOCOL, size: int | None = None
) -> bytes:
    return ENVELOPE.pack(4 + len(body) if size is None else size, version, kind, len(body)) + body


HELLO = encode_message(ShipHello("n1", 0, EPOCH_MAX, False, (EPOCH_MAX, 1, 1), 0, [], ("n1", "n2"), 0))
GREET = encode_message(Greet(SHIPPER, b"g" * NONCE_BYTES))
STRANGE_WORDS: dict[str, list[bytes]] = {
    "garbage": [GARBAGE],
    "garbage after a greeting": [GREET, GARBAGE],
    "a greeting cut off": [GREET[:-5]],
    "every bit of a greeting turned": [bytes(byte ^ 0xFF for byte in GREET)],
    "two greetings": [GREET, GREET],
    "an old version": [raw_message(1, GREET[8:], version=0)],
    "a version to come": [raw_message(1, GREET[8:], version=255)],
    "an unknown kind": [raw_message(200)],
    "a body longer than its message": [raw_message(1, GREET[8:], size=5)],
    "an oversized message": [ENVELOPE.pack(GREETING_BYTES_MAX + 1, PROTOCOL, 1, 100)],
    "a message of 4 GiB": [ENVELOPE.pack(0xFFFFFFFF, PROTOCOL, 1, 0xFFFF)],
    "an unknown role": [encode_message(Greet("root", b"g" * NONCE_BYTES))],
    "a short nonce": [encode_message(Greet(CLIENT, b""))],
    "a proof out of nothing": [GREET, encode_message(Proof(bytes(32), bytes(32)))],
    "a proof without a greeting": [encode_message(Proof(bytes(32), bytes(32)))],
    "a hello instead of a greeting": [HELLO],
    "a hello instead of a proof": [GREET, HELLO],
    "a question instead of a greeting": [encode_message(StatusAsk())],
    "a promise instead of a proof": [GREET, encode_message(PromiseAsk(EPOCH_MAX, "n9"))],
    "a body that nests without end": [raw_message(1, b"\x91" * 900)],
    "tls where there is none": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)],
}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A replica with something in it, for peers that must not change anything."""
    cluster = Cluster(tmp_path_factory.mktemp("nodes"), ("n1", "n2"), 0, "lmdb")
    filled(cluster)
    return cluster


@pytest.fixture(scope="module", autouse=True)
def _ended(replica: Cluster) -> object:
    yield
    replica.close()


# -- strangers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", STRANGE_WORDS.values(), ids=STRANGE_WORDS.keys())
def test_a_stranger_is_hung_up_on_and_changes_nothing(replica: Cluster, words: list[bytes]) -> None:
    before = footprint(replica.path("n2"))
    with Intruder(replica.ports["n2"]) as stranger:
        stranger.say(*words)
        stranger.end()
        assert all(isinstance(heard, Challenge) for heard in stranger.last_words())
    assert footprint(replica.path("n2")) == before
    assert is_served(replica)


def test_a_wrong_secret_or_cluster_gets_no_further_than_the_proof(replica: Cluster) -> None:
    before = footprint(replica.path("n2"))
    for secret, cluster_id, told in ((OTHER_SECRET, CLUSTER, []), (SECRET, bytes(16), ["foreign"])):
        with Intruder(replica.ports["n2"]) as stranger:
            auth = Connecting(secret, cluster_id, SHIPPER, os.urandom(NONCE_BYTES))
            stranger.say(auth.greet())
            challenge = stranger.hear()
            assert isinstance(challenge, Challenge)
            stranger.say(auth.answer(challenge), HELLO)
            said = stranger.last_words()
            assert [heard.code for heard in said if isinstance(heard, Refusal)] == told
            assert not any(isinstance(heard, Proof) for heard in said)
    assert footprint(replica.path("n2")) == before


def test_a_recorded_handshake_is_worth_nothing(replica: Cluster) -> None:
    with Intruder(replica.ports["n2"]) as good:
        good.meet(SECRET, CLUSTER, CLIENT)
        recorded = bytes(good.sent)
    with Intruder(replica.ports["n2"]) as replaying:
        replaying.say(recorded, StatusAsk())
        assert [type(heard) for heard in replaying.last_words()] == [Challenge]


def test_a_nodes_own_nonce_sent_back_is_refused(replica: Cluster) -> None:
    """Reflection: two connections to one node, each answered with what the other one says."""
    with Intruder(replica.ports["n2"]) as one, Intruder(replica.ports["n2"]) as other:
        one.say(Greet(CLIENT, b"1" * NONCE_BYTES))
        challenge = one.hear()
        assert isinstance(challenge, Challenge)
        other.say(Greet(CLIENT, challenge.nonce))
        reflected = other.hear()
        assert isinstance(reflected, Challenge)
        assert reflected.nonce != challenge.nonce
        one.say(Proof(bytes(32), reflected.nonce))
        assert one.last_words() == []


def test_who_says_it_byte_by_byte_is_hung_up_on_in_time(
    replica: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visitor, "HANDSHAKE_MS", 500)
    with Intruder(replica.ports["n2"]) as slow:
        started = time.monotonic()
        with suppress(OSError):
            for byte in GREET * 100:
                slow.socket.send(bytes([byte]))
                time.sleep(0.05)  # the pace is what is tested
        assert time.monotonic() - started < 5
    monkeypatch.undo()  # whoever means well has longer
    assert is_served(replica)


def test_a_flood_of_strangers_keeps_nobody_out(replica: Cluster) -> None:
    with ExitStack() as stack:
        for number in range(6 * STRANGERS_MAX):
            stranger = stack.enter_context(Intruder(replica.ports["n2"]))
            if number % 2:
                stranger.say(GREET[: number % len(GREET)])
            if number % 40 == 0:
                assert is_served(replica)
        assert is_served(replica)


def test_strangers_cost_a_receiver_little_memory(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.start(cluster.receiver("n2"))
        pid = cluster.children["receiver:n2"].pid
        before = resident_bytes(pid)
        flood = encode_message(Greet(CLIENT, bytes(32)))[:-1] + bytes(8 << 20)
        for _ in range(60):
            with Intruder(cluster.ports["n2"]) as stranger:
                stranger.say(flood)
        assert resident_bytes(pid) - before < 32 << 20
        assert is_served(cluster)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- peers that know the secret and have gone mad ----------------------------------------------------


@pytest.mark.parametrize("epoch", [EPOCH_MAX, EPOCH_MAX + 1, 2**63, 2**64 - 1, EPOCH_JUMP_MAX + 2, 0])
def test_an_absurd_or_old_epoch_is_promised_to_nobody(replica: Cluster, epoch: int) -> None:
    before = footprint(replica.path("n2"))
    ask = raw_message(42, b"\x83\xa5epoch" + packed(epoch) + b"\xa9candidate\xa2n9\xa5alone\xc2")
    with Intruder(replica.ports["n2"]) as mad:
        mad.meet(SECRET, CLUSTER, CLIENT)
        mad.say(ask)
        mad.end()
        assert {type(heard) for heard in mad.last_words()} == {Refusal}
    with Intruder(replica.ports["n2"]) as mad:
        mad.meet(SECRET, CLUSTER, SHIPPER)
        mad.say(raw_message(10, HELLO[8:].replace(packed(EPOCH_MAX), packed(epoch))))
        assert any(isinstance(heard, Refusal) for heard in mad.last_words())
    assert footprint(replica.path("n2")) == before
    assert is_served(replica)


def packed(number: int) -> bytes:
    """As MessagePack has it."""
    return b"\xcf" + number.to_bytes(8, "big") if number > EPOCH_MAX else b"\xce" + number.to_bytes(4, "big")


def test_an_epoch_leaps_no_further_than_elections_can() -> None:
    held = Promise(5, "n1")
    assert decide_promise(held, Promise(5 + EPOCH_JUMP_MAX, "n2"))
    assert not decide_promise(held, Promise(6 + EPOCH_JUMP_MAX, "n2"))
    assert decide_promise(NO_PROMISE, Promise(EPOCH_MAX, "n2")), "who knows no epoch believes any"
    assert not decide_promise(NO_PROMISE, Promise(EPOCH_MAX + 1, "n2"))


@pytest.mark.parametrize("name", ["", "../n9", "N9", "x" * 33, "n9\n"])
def test_a_promise_to_what_is_no_nodes_name_is_refused(replica: Cluster, name: str) -> None:
    before = footprint(replica.path("n2"))
    with Intruder(replica.ports["n2"]) as mad:
        mad.meet(SECRET, CLUSTER, CLIENT)
        mad.say(PromiseAsk(2, name))
        assert [type(heard) for heard in mad.last_words()] == [Refusal]
    assert footprint(replica.path("n2")) == before


def as_primary(cluster: Cluster) -> tuple[Intruder, ShipWelcome]:
    """A connection that has said hello in the name of n1, which is n2's primary."""
    intruder = Intruder(cluster.ports["n2"])
    intruder.meet(SECRET, CLUSTER, SHIPPER)
    intruder.say(ShipHello("n1", 0, 1, False, cluster.end("n1"), 0, [(1, 1)], ("n1", "n2"), 0))
    welcome = intruder.hear()
    assert isinstance(welcome, ShipWelcome)
    return intruder, welcome


def next_frames(cluster: Cluster, after_lsn: int) -> bytes:
    """Good frames of n1 from behind an LSN of n2's."""
    path = cluster.path("n1")
    with SessionStore.open(path, create=False) as store:
        store.create({"n": "next"})
    tail = list_segments(path / "log")[-1].path
    with SegmentScan(tail) as scan:
        starts = [offset for offset, frame, _ in scan.frames() if frame.first_lsn > after_lsn]
    assert after_lsn
    return tail.read_bytes()[starts[0] : scan.offset] if starts else b""


@pytest.mark.parametrize("what", ["flipped", "cut", "twice", "bomb", "lie", "nothing"])
def test_frames_that_are_not_what_they_should_be_end_the_connection(tmp_path: Path, what: str) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        filled(cluster)
        before = footprint(cluster.path("n2"))
        intruder, welcome = as_primary(cluster)
        good = next_frames(cluster, welcome.end[1])
        assert good
        with intruder:
            intruder.say(Start(welcome.end))
            message, payload = {
                "flipped": (Frames(len(good), False, 0), bytes([good[0] ^ 1]) + good[1:]),
                "cut": (Frames(len(good) - 3, False, 0), good[:-3]),
                "twice": (Frames(2 * len(good), False, 0), good + good),
                "bomb": (Frames(1 << 30, True, 0), zstd.compress(bytes(8 << 20))),
                "lie": (Frames(len(good) + 1, False, 0), good),
                "nothing": (Frames(100, True, 0), b""),
            }[what]
            intruder.say(message, payload=payload)
            assert any(isinstance(heard, Refusal) for heard in intruder.last_words())
        assert footprint(cluster.path("n2")) == before
        cluster.ship_here("n1")
        until(lambda: cluster.end("n2") == cluster.end("n1"), "the real primary goes on")


def test_frames_damaged_in_any_way_never_get_into_the_log(tmp_path: Path) -> None:
    source = random.Random(SEED)
    with cluster_of(tmp_path, 2) as cluster:
        filled(cluster)
        before = footprint(cluster.path("n2"))
        good = b""
        for round_ in range(60):
            intruder, welcome = as_primary(cluster)
            good = good or next_frames(cluster, welcome.end[1])
            with intruder:
                bad = damaged(good, source)
                if good.startswith(bad[: len(good)]):
                    continue
                intruder.say(Start(welcome.end), encode_message(Frames(len(bad), False, 2**61), bad))
                intruder.end()
                intruder.last_words()
            now = footprint(cluster.path("n2"))
            assert now == before, f"{SEED_VARIABLE}={SEED} round={round_}"
        assert is_served(cluster)


def test_a_primary_that_was_replaced_commits_nothing_on_the_node_that_replaced_it(tmp_path: Path) -> None:
    """Its connection may be there a moment longer, and what it has committed may be lost by consent."""
    with cluster_of(tmp_path, 2) as cluster:
        filled(cluster)
        intruder, welcome = as_primary(cluster)
        with intruder:
            intruder.say(Start(welcome.end), Heartbeat(0, 0, 0, 1))
            assert isinstance(intruder.hear(), Ack)
            node = open_node_log(cluster.path("n2"), [])
            node.log.lock_any()
            start = node.log.start_epoch(Promise(2, "n2"), Config(("n1", "n2"), 1), "promoted")
            node.log.unlock()
            node.end_on_disk()
            before = int(node.log.words[Word.COMMITTED])
            intruder.say(Heartbeat(start.lsn, start.lsn, 0, 2))
            refusal = intruder.hear()
            assert isinstance(refusal, Refusal)
            assert (refusal.code, refusal.epoch, refusal.candidate) == (FENCED, 2, "n2")
            assert node.log.words[Word.COMMITTED] == before < start.lsn
            node.close()


def test_a_primary_is_told_that_it_was_replaced_while_another_process_holds_the_write_lock(
    tmp_path: Path,
) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        filled(cluster)
        intruder, welcome = as_primary(cluster)
        with intruder, closing(open_node_log(cluster.path("n2"), [])) as node:
            intruder.say(Start(welcome.end), Heartbeat(0, 0, 0, 1))
            assert isinstance(intruder.hear(), Ack)
            node.log.lock_any()
            try:
                node.log.give_promise(Promise(2, "n2"))
                intruder.say(Heartbeat(0, 0, 0, 2))
                refusal = intruder.hear()
            finally:
                node.log.unlock()
            assert isinstance(refusal, Refusal)
            assert (refusal.code, refusal.epoch, refusal.candidate) == (FENCED, 2, "n2")
        assert is_served(cluster)
        cluster.stop_here()  # raises what the receiver raised, if it did


def test_a_primary_that_tells_of_too_many_nodes_fills_no_disk(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        filled(cluster)
        intruder, welcome = as_primary(cluster)
        with intruder:
            intruder.say(Start(welcome.end))
            for number in range(10):
                told = [(f"x{number}-{other}", 1, "streaming") for other in range(NODES_MAX // 2)]
                intruder.say(Peers(told))
            assert any(isinstance(heard, Refusal) for heard in intruder.last_words())
        cluster.stop_here()
        assert len(list((cluster.path("n2") / "slots").iterdir())) <= NODES_MAX


def test_a_heartbeat_that_asks_nothing_is_not_answered(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        filled(cluster)
        primary, welcome = as_primary(cluster)
        with primary:
            primary.say(Start(welcome.end))
            for asked_us in (UNASKED_US, 7, UNASKED_US, 8):
                primary.say(Heartbeat(0, welcome.end[1], 0, asked_us))
            heard = [primary.hear() for _ in range(2)]
        assert [(type(ack), getattr(ack, "echo_us", None)) for ack in heard] == [(Ack, 7), (Ack, 8)]


def test_a_mad_primary_ends_its_own_connection_only(tmp_path: Path) -> None:
    """Whatever a peer with the secret says, the receiver lives, and its promise makes no leap."""
    source = random.Random(SEED)
    with cluster_of(tmp_path, 2) as cluster:
        filled(cluster)
        asking = tuple(kind for kind in KINDS if kind >= 10)
        for round_ in range(150):
            role = source.choice((SHIPPER, SHIPPER, CLIENT))
            with Intruder(cluster.ports["n2"]) as mad:
                mad.meet(SECRET, CLUSTER, role)
                if role == SHIPPER and source.random() < 0.7:
                    mad.say(ShipHello("n1", 0, 1, False, cluster.end("n1"), 0, [(1, 1)], ("n1", "n2"), 0))
                    with suppress(ConnectionError):
                        welcome = mad.hear()
                        if isinstance(welcome, ShipWelcome) and source.random() < 0.7:
                            mad.say(Start(welcome.end))
                mad.say(*(mad_message(source, asking) for _ in range(source.randrange(1, 6))))
                mad.end()
                mad.last_words()
            promised = read_promise(cluster.path("n2"))
            assert promised.epoch <= 1 + (round_ + 1) * EPOCH_JUMP_MAX, f"{SEED_VARIABLE}={SEED}"
        assert is_served(cluster), f"{SEED_VARIABLE}={SEED}"
        cluster.stop_here()  # raises what the receiver raised, if it did


# -- hostile replicas --------------------------------------------------------------------------------


def welcome_at(link: HostileLink, cluster: Cluster, *, node: str = "n3", **changes: object) -> None:
    """As a replica that has everything, but for the changes."""
    hello = link.hear()
    assert isinstance(hello, ShipHello)
    fields: dict[str, object] = {
        "node": node,
        "end": cluster.end("n1"),
        "committed_lsn": 0,
        "applied_lsn": 0,
        "epochs": [(1, 1)],
        "oldest_lsn": 1,
    }
    link.say(ShipWelcome(**{**fields, **changes}))  # type: ignore[arg-type]


def absurd_fence(link: HostileLink, _cluster: Cluster) -> None:
    link.hear()
    link.say(Refusal(FENCED, "x" * 60_000, EPOCH_MAX, "n9"))


def fence_beyond_words(link: HostileLink, _cluster: Cluster) -> None:
    link.hear()
    body = b"\x84\xa4code\xa6fenced\xa4text\xa0\xa5epoch" + packed(2**63) + b"\xa9candidate\xa2n9"
    link.say(raw_message(4, body))


def end_beyond(link: HostileLink, cluster: Cluster) -> None:
    welcome_at(link, cluster, end=(1, 2**61, 5), epochs=[(1, 1), (EPOCH_MAX, 2**60)])
    link.listen_on(2)


def acks_out_of_nothing(link: HostileLink, cluster: Cluster) -> None:
    welcome_at(link, cluster)
    link.hear()
    for lsn in (2**61, 0, 10**6):
        link.say(Ack((1, lsn, 77), lsn))
    link.listen_on(2)


def acks_for_ever(link: HostileLink, cluster: Cluster) -> None:
    welcome_at(link, cluster)
    link.hear()
    data = encode_message(Ack(cluster.end("n1"), 2**61, 2**61)) * 2000
    for _ in range(50):
        link.say(data)


def long_pauses(link: HostileLink, cluster: Cluster) -> None:
    welcome_at(link, cluster)
    link.hear()
    for number in range(40):
        link.say(Pause(f"{number}" + "p" * 60_000))
    link.listen_on(1)


def takes_nothing(link: HostileLink, cluster: Cluster) -> None:
    welcome_at(link, cluster)
    link.over.wait(60)


def garbage(link: HostileLink, _cluster: Cluster) -> None:
    link.say(GARBAGE)


def oversized(link: HostileLink, _cluster: Cluster) -> None:
    link.say(ENVELOPE.pack(0xFFFFFFF0, PROTOCOL, 11, 10))


def mad_words(link: HostileLink, cluster: Cluster) -> None:
    source = random.Random(SEED + os.getpid())
    if source.random() < 0.7:
        welcome_at(link, cluster)
    link.say(*(mad_message(source) for _ in range(10)))
    link.listen_on(0.2)


ACTS = [
    absurd_fence,
    fence_beyond_words,
    end_beyond,
    acks_out_of_nothing,
    acks_for_ever,
    long_pauses,
    takes_nothing,
    garbage,
    oversized,
    mad_words,
]


@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
def test_a_hostile_replica_stops_neither_the_primary_nor_the_others(
    tmp_path: Path, act: Callable[[HostileLink, Cluster], None]
) -> None:
    with (
        cluster_of(tmp_path, 3, sync_replicas=1) as cluster,
        HostileNode(SECRET, CLUSTER, lambda link: act(link, cluster)) as hostile,
    ):
        cluster.serve_here("n2")
        cluster.ports["n3"] = hostile.port
        cluster.ship_here("n1")
        store = cluster.open("n1")
        until(lambda: hostile.visits >= 1, "the hostile replica was visited")
        visits = hostile.visits
        ids = [store.create({"n": number}) for number in range(10)]
        if act is not takes_nothing:
            until(lambda: hostile.visits > visits, "and again")
        ids += [store.create({"n": number}) for number in range(10)]
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has all of it")
        assert all(store.peek(id) is not None for id in ids)
        assert read_promise(cluster.path("n1")) == Promise(1, "n1")
        state, error = cluster.slot_state("n1", "n3")
        assert state
        assert len(error) <= 2000


def test_a_replica_that_hangs_up_on_the_proof_is_tried_once_more_at_once_and_then_after_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have died just then; twice in a row it is the secret."""
    monkeypatch.setattr(peer, "REFUSED_RETRY_MS", 600_000)
    with (
        cluster_of(tmp_path, 2) as cluster,
        HostileNode(b"a secret of somebody else, 32 byte", CLUSTER, lambda _link: None) as other,
    ):
        cluster.ports["n2"] = other.port
        cluster.ship_here("n1")
        until(lambda: other.proofs == 2, "a second try")
        until(lambda: "same shared secret" in cluster.slot_state("n1", "n2")[1], "the slot says why")
        time.sleep(8 * peer.RETRY_MS_MIN / 1000)
        assert other.proofs == 2


def test_a_mad_voter_is_passed_over_when_epochs_are_counted(tmp_path: Path) -> None:
    """A node that says it has promised the last epoch there can be takes the next one from nobody else."""
    from perdure.recovery import promote

    def answer(link: HostileLink) -> None:
        while True:
            if isinstance(link.hear(), PromiseAsk):
                link.say(PromiseReply(2, "n2", (EPOCH_MAX, 2**61, 1), 0, ""))
                continue
            link.say(
                StatusReply(
                    "n3",
                    0,
                    "replica",
                    (EPOCH_MAX, 2**61, 1),
                    0,
                    0,
                    EPOCH_MAX - 1,
                    "n3",
                    ("n1", "n2", "n3"),
                    1,
                    1,
                    "n1",
                    0,
                    "",
                )
            )

    with cluster_of(tmp_path, 3, sync_replicas=1) as cluster, HostileNode(SECRET, CLUSTER, answer) as mad:
        cluster.serve_here("n1", "n2")
        cluster.ship_here("n1")
        store = cluster.open("n1")
        store.create({})
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has it")
        peers = {"n1": ("127.0.0.1", cluster.ports["n1"]), "n3": ("127.0.0.1", mad.port)}
        report = promote(cluster.path("n2"), peers, SECRET)
        assert report.epoch == 2
        assert "n1" in report.promisers
        with suppress(FencedError):
            cluster.stop_here()
        cluster.serve_here("n1")
        with pytest.raises(PromiseRefusedError), cluster.client("n1") as client:
            client.promise(Promise(EPOCH_MAX, "n3"))


# -- strangers where a node should listen ------------------------------------------------------------


STRANGE_REFUSALS = [
    pytest.param(Refusal(code, "no", epoch, "zz" if epoch else ""), challenges, id=f"{code}-{when}")
    for code, epoch in ((FENCED, 2), (DIVERGED, 0), (GONE, 0), (FOREIGN, 2))
    for challenges, when in ((False, "greeting"), (True, "proof"))
]


@pytest.mark.parametrize(("word", "challenges"), STRANGE_REFUSALS)
def test_a_stranger_at_a_replicas_address_deposes_no_primary_and_no_log_goes_for_what_it_says(
    tmp_path: Path, word: Refusal, challenges: bool
) -> None:
    with (
        cluster_of(tmp_path, 3, sync_replicas=1) as cluster,
        Stranger(word, challenges=challenges) as stranger,
    ):
        cluster.serve_here("n2")
        cluster.ports["n3"] = stranger.port
        cluster.ship_here("n1")
        store = cluster.open("n1")
        until(lambda: cluster.slot_state("n1", "n3")[1], "the slot says what the stranger does")
        ids = [store.create({"n": number}) for number in range(5)]
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has all of it")
        assert all(store.peek(id) is not None for id in ids)
        assert read_promise(cluster.path("n1")) == Promise(1, "n1")
        assert next(slot for slot in read_slots(cluster.path("n1")) if slot.node == "n3").keeps_log


@pytest.mark.parametrize(("word", "challenges"), STRANGE_REFUSALS)
def test_a_stranger_at_a_voters_address_stops_no_promotion(
    tmp_path: Path, word: Refusal, challenges: bool
) -> None:
    from perdure.recovery import promote

    with (
        cluster_of(tmp_path, 3, sync_replicas=1) as cluster,
        Stranger(word, challenges=challenges) as stranger,
    ):
        cluster.serve_here("n1", "n2")
        cluster.ship_here("n1")
        cluster.open("n1").create({})
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has it")
        peers = {"n1": ("127.0.0.1", cluster.ports["n1"]), "n3": ("127.0.0.1", stranger.port)}
        report = promote(cluster.path("n2"), peers, SECRET)
        assert (report.epoch, report.promisers, report.unheard) == (2, ("n1",), ("n3",))
        with suppress(FencedError):
            cluster.stop_here()


@pytest.mark.parametrize(("word", "challenges"), STRANGE_REFUSALS)
def test_what_a_stranger_refuses_is_no_answer_of_a_node(word: Refusal, challenges: bool) -> None:
    with Stranger(word, challenges=challenges) as stranger:
        expected = ForeignError if word.code == FOREIGN else WireError
        with pytest.raises(expected, match="refuses"):
            NodeClient("127.0.0.1", stranger.port, cluster_id=CLUSTER, secret=SECRET)
        with (
            ServerClient("127.0.0.1", stranger.port, cluster_id=CLUSTER, secret=SECRET) as client,
            pytest.raises(expected, match="refuses"),
        ):
            client.ask(StatusAsk(), StatusReply)


# -- the server --------------------------------------------------------------------------------------


class Serving:
    """The server of a store, with the handlers that a node has."""

    def __init__(self, path: Path) -> None:
        self.store = SessionStore.open(path)
        handlers = ForwardService(self.store).handlers()
        self.server = Server("127.0.0.1", 0, cluster_id=CLUSTER, secret=SECRET, handlers=handlers)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.server.run, args=(self._stopping.is_set,))

    def __enter__(self) -> Serving:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(10)
        self.server.close()
        self.store.close()

    def is_served(self) -> bool:
        """Does it still answer, even if only that it does not know?"""
        with ServerClient("127.0.0.1", self.server.port, cluster_id=CLUSTER, secret=SECRET) as client:
            try:
                client.ask(StatusAsk(), StatusReply)
            except WireError as error:
                return "is not asked with StatusAsk" in str(error)
        return False


@pytest.fixture
def serving(tmp_path: Path) -> object:
    with cluster_of(tmp_path, 1) as cluster, Serving(cluster.path("n1")) as found:
        yield found


def test_strangers_of_the_server_are_hung_up_on_and_change_nothing(serving: Serving) -> None:
    id = serving.store.create({})
    digest = serving.store.stats()["digest"]
    for name, words in STRANGE_WORDS.items():
        with Intruder(serving.server.port) as stranger:
            stranger.say(*words)
            stranger.end()
            assert all(isinstance(heard, Challenge) for heard in stranger.last_words()), name
    assert serving.is_served()
    assert serving.store.peek(id) is not None
    assert serving.store.stats()["digest"] == digest


def test_slow_and_silent_strangers_of_the_server_go_in_time(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_MS", 1_500)
    with ExitStack() as stack:
        strangers = [
            stack.enter_context(Intruder(serving.server.port)) for _ in range(3 * server.STRANGERS_MAX)
        ]
        assert serving.is_served()
        started = time.monotonic()
        for byte in GREET:
            with suppress(OSError):
                strangers[-1].socket.send(bytes([byte]))
            time.sleep(0.02)  # the pace is what is tested
        assert all(isinstance(heard, Challenge) for heard in strangers[-1].last_words())
        assert time.monotonic() - started < 5
    assert threading.active_count() < 50 + server.STRANGERS_MAX


def test_a_mad_client_of_the_server_gets_errors_and_the_others_their_answers(serving: Serving) -> None:
    source = random.Random(SEED)
    kept = serving.store.create({"kept": True})
    for _ in range(100):
        with Intruder(serving.server.port) as mad:
            mad.meet(SECRET, CLUSTER, CLIENT)
            mad.say(*(mad_message(source) for _ in range(source.randrange(1, 5))))
            mad.end()
            mad.last_words()
    assert serving.is_served(), f"{SEED_VARIABLE}={SEED}"
    assert serving.store.peek(kept) is not None
