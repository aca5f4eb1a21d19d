"""The coordinator etcd with a real etcd: who gets the key, and what its absences and lapses do."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from perdure.recovery.coordinators.etcd import Etcd, Leader
from perdure.recovery.coordinators.etcd_client import EtcdClient, EtcdError
from perdure.recovery.election import ElectionOptions, Kind, Own
from perdure.shipping.detection import PeerHealth, Verdict
from perdure.shipping.messages_health import Beat
from perdure.store import Config, PerdureError, PromiseRefusedError
from tests.cluster.etcd_members import Members, needs_etcd

pytestmark = [needs_etcd, pytest.mark.xdist_group("etcd")]

CLUSTER = bytes(range(16))
LEADER = f"/perdure/{CLUSTER.hex()}/leader".encode()
EPOCH = f"/perdure/{CLUSTER.hex()}/epoch".encode()
VOTERS = ("n1", "n2", "n3")
LEASE_MS = 2_000
WAIT_S = 60.0


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    found = Members(tmp_path, 1)
    try:
        yield found
    finally:
        found.end()


@contextmanager
def coordinators(members: Members, count: int, lease_ms: int = LEASE_MS) -> Iterator[list[Etcd]]:
    options = ElectionOptions(silence_ms=1_000, candidacy_ms=0)
    found = [
        Etcd(members.endpoints, CLUSTER, options, lambda _most: 0, lease_ms=lease_ms) for _ in range(count)
    ]
    try:
        yield found
    finally:
        for one in found:
            one.close()


def own(node: str, **changes: object) -> Own:
    base = Own(node, False, 1, 100, "n1", 1, "n1", Config(VOTERS, 1))
    return msgspec.structs.replace(base, **changes)


def reigning(node: str, epoch: int) -> Own:
    return own(node, is_primary=True, epoch=epoch, primary=node, promise_epoch=epoch, promise_candidate=node)


def without_primary(node: str, verdict: Verdict) -> list[PeerHealth]:
    """What a candidate sees when n1, the primary, is not heard any more."""
    told = Beat("n1", True, 1, 100, 1, "n1", "n1", 1, False, True, "active")
    other = next(one for one in VOTERS[1:] if one != node)
    said = msgspec.structs.replace(told, node=other, is_primary=False, hears="", hears_epoch=0, lsn=99)
    return [
        PeerHealth("n1", verdict, 1_500, 15, 1, told),
        PeerHealth(other, Verdict.ALIVE, 10, 0, 1, said),
    ]


def kind_of(coordinator: Etcd, who: Own, peers: list[PeerHealth]) -> tuple[Kind, str]:
    action = coordinator.look(1_000, who, peers, frozenset())
    return action.kind, action.why


def until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {WAIT_S:.0f} s: {what}")
        time.sleep(0.02)


def leader_of(members: Members) -> Leader | None:
    client = EtcdClient(members.endpoints, timeout_ms=20_000)
    try:
        found = client.get(LEADER).get(LEADER)
    except EtcdError:
        return None
    finally:
        client.close()
    return msgspec.json.decode(found.value, type=Leader) if found and found.value else None


def reign_until_held(coordinator: Etcd, members: Members, who: Own) -> None:
    coordinator.look(0, who, [], frozenset())
    until(lambda: leader_of(members) == Leader(who.node, who.epoch), f"{who.node} holds the key")


def test_a_transaction_is_done_only_if_the_keys_are_as_they_were_seen(members: Members) -> None:
    client = EtcdClient(members.endpoints, timeout_ms=20_000)
    lease = client.grant(600)
    assert client.swap({b"a": 0}, {b"a": (b"1", lease), b"b": (b"x", 0)}) == (True, {})
    done, seen = client.swap({b"a": 0}, {b"a": (b"2", 0)})
    assert not done
    assert (seen[b"a"].value, seen[b"a"].lease) == (b"1", lease)
    assert client.keep_alive(lease)
    client.revoke(lease)
    assert not client.keep_alive(lease)
    assert client.get(b"a", b"b").keys() == {b"b"}
    client.close()


def test_a_primary_that_ended_loses_its_key_to_one_candidate_at_once(members: Members) -> None:
    with coordinators(members, 3, lease_ms=20_000) as (first, second, third):  # none ends meanwhile
        reign_until_held(first, members, reigning("n1", 1))
        first.close()  # it was killed: nobody keeps the lease
        gone = without_primary("n2", Verdict.GONE)
        until(lambda: kind_of(second, own("n2"), gone)[0] is Kind.STAND, "n2 may stand")
        until(
            lambda: kind_of(third, own("n3"), without_primary("n3", Verdict.GONE))[0] is Kind.STAND,
            "n3 may stand",
        )
        assert second.claim(own("n2")) == 2
        with pytest.raises(PromiseRefusedError, match="n2 has taken the key"):
            third.claim(own("n3"))
        assert leader_of(members) == Leader("n2", 2)
        second.lost(0)
        until(lambda: leader_of(members) is None, "a candidate that failed gives it back")


def test_a_key_that_the_candidate_had_not_seen_yet_is_taken_from_a_primary_that_ended(
    members: Members,
) -> None:
    with coordinators(members, 3, lease_ms=60_000) as (first, second, third):  # they look every 7.5 s
        gone, silent = without_primary("n2", Verdict.GONE), without_primary("n3", Verdict.SILENT)
        until(lambda: kind_of(second, own("n2"), gone)[0] is Kind.STAND, "n2 saw that nobody holds the key")
        until(lambda: kind_of(third, own("n3"), silent)[0] is Kind.STAND, "n3 saw it, too")
        reign_until_held(first, members, reigning("n1", 1))
        with pytest.raises(PromiseRefusedError, match="n1 has taken the key"):
            third.claim(own("n3"))
        assert "n1 holds the key" in kind_of(third, own("n3"), silent)[1]  # known at once from then on
        assert second.claim(own("n2")) == 2
        assert leader_of(members) == Leader("n2", 2)


def test_a_primary_that_is_only_silent_here_keeps_its_key_until_the_lease_ends(members: Members) -> None:
    lease_ms = 2 * LEASE_MS  # it is renewed in time, however busy the machine is
    with coordinators(members, 2, lease_ms=lease_ms) as (first, second):
        reign_until_held(first, members, reigning("n1", 1))
        silent = without_primary("n2", Verdict.SILENT)
        until(lambda: "n1 holds the key" in kind_of(second, own("n2"), silent)[1], "n2 sees the key")
        held_s = time.monotonic()
        while time.monotonic() - held_s < 1.5 * lease_ms / 1000:
            assert kind_of(second, own("n2"), silent)[0] is Kind.HOLD_BACK
            time.sleep(0.05)
        first.close()
        until(lambda: kind_of(second, own("n2"), silent)[0] is Kind.STAND, "the lease ended")
        assert second.claim(own("n2")) == 2


def test_a_primary_that_reaches_etcd_and_no_replica_lets_its_lease_end_and_takes_it_again(
    members: Members,
) -> None:
    with coordinators(members, 2) as (first, second):
        reign_until_held(first, members, reigning("n1", 1))
        silent = without_primary("n2", Verdict.SILENT)
        until(lambda: "n1 holds the key" in kind_of(second, own("n2"), silent)[1], "n2 sees the key")
        told = Beat("n2", False, 1, 100, 1, "n1", "n1", 1, False, True, "active")
        away = [
            PeerHealth("n2", Verdict.SILENT, 1_500, 15, 1, told),
            PeerHealth("n3", Verdict.GONE, 1_500, 15, 1, msgspec.structs.replace(told, node="n3")),
        ]
        assert kind_of(first, reigning("n1", 1), away)[0] is Kind.NOTHING  # it stays primary all the same
        until(lambda: kind_of(second, own("n2"), silent)[0] is Kind.STAND, "the lease ended")
        one_is_back = [PeerHealth("n2", Verdict.ALIVE, 10, 0, 1, told), away[1]]
        first.look(0, reigning("n1", 1), one_is_back, frozenset())
        until(lambda: leader_of(members) == Leader("n1", 1), "n1 holds the key again")


def test_without_etcd_nobody_stands_and_the_primary_goes_on(members: Members) -> None:
    with coordinators(members, 2) as (first, second):
        reign_until_held(first, members, reigning("n1", 1))
        members.kill(0)
        gone = without_primary("n2", Verdict.GONE)
        until(lambda: "does not answer" in kind_of(second, own("n2"), gone)[1], "n2 sees that etcd is away")
        assert kind_of(second, own("n2"), gone)[0] is Kind.HOLD_BACK
        with pytest.raises(EtcdError):
            second.claim(own("n2"))
        until(
            lambda: "does not answer" in kind_of(first, reigning("n1", 1), [])[1], "n1 sees that etcd is away"
        )
        assert kind_of(first, reigning("n1", 1), [])[0] is Kind.NOTHING

        members.start(0)
        members.wait()
        until(lambda: leader_of(members) == Leader("n1", 1), "the primary holds its key again")


def test_an_older_backup_of_etcd_gives_no_old_epoch_and_no_old_primary(
    members: Members, tmp_path: Path
) -> None:
    with coordinators(members, 2) as (first, second):
        reign_until_held(first, members, reigning("n1", 1))
        members.kill(0)
        shutil.copytree(members.data(0), tmp_path / "backup")
        members.start(0)
        members.wait()
        first.look(0, own("n1", promise_epoch=5, promise_candidate="n2"), [], frozenset())
        reign_until_held(second, members, reigning("n2", 5))

        members.kill(0)
        shutil.rmtree(members.data(0))
        shutil.copytree(tmp_path / "backup", members.data(0))
        members.start(0)
        members.wait()
        until(lambda: leader_of(members) == Leader("n2", 5), "the primary takes its key from the old one")
        ended = Beat("n2", True, 5, 100, 5, "n2", "n2", 5, False, True, "active")
        other = Beat("n3", False, 5, 99, 5, "n2", "", 0, False, True, "active")
        gone = [
            PeerHealth("n2", Verdict.GONE, 1, 0, 1, ended),
            PeerHealth("n3", Verdict.ALIVE, 1, 0, 1, other),
        ]
        who = own("n1", epoch=5, primary="n2", promise_epoch=7, promise_candidate="n3")
        candidate = msgspec.structs.replace(who, promise_epoch=5, promise_candidate="n2")
        second.close()
        until(lambda: kind_of(first, candidate, gone)[0] is Kind.STAND, "n1 may stand")
        assert first.claim(who) == 8  # above its own promise, whatever etcd remembers


def test_an_absurd_epoch_in_etcd_is_passed_over_and_written_anew(members: Members) -> None:
    client = EtcdClient(members.endpoints, timeout_ms=20_000)
    client.swap({EPOCH: 0}, {EPOCH: (b"999999999", 0), LEADER: (b"no json", 0)})
    with coordinators(members, 1) as (only,):
        assert only.claim(own("n2")) == 2
        assert client.get(EPOCH)[EPOCH].value == b"2"
    client.close()


def test_the_death_of_etcds_own_leader_lengthens_a_lease_and_loses_nothing(tmp_path: Path) -> None:
    members = Members(tmp_path, 3)
    try:
        with coordinators(members, 2) as (first, second):
            reign_until_held(first, members, reigning("n1", 1))
            members.kill(members.leader())
            until(lambda: _answers(members), "etcd has a leader again")
            until(lambda: leader_of(members) == Leader("n1", 1), "the primary holds its key")
            first.close()
            silent = without_primary("n2", Verdict.SILENT)
            until(lambda: kind_of(second, own("n2"), silent)[0] is Kind.STAND, "the lease ends at last")
            assert second.claim(own("n2")) == 2
    finally:
        members.end()


def _answers(members: Members) -> bool:
    client = EtcdClient(members.endpoints, timeout_ms=20_000)
    try:
        client.get(LEADER)
    except PerdureError:
        return False
    finally:
        client.close()
    return True
