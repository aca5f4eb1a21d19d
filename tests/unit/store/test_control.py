"""What a CONFIG may be, and that logs from before its newer fields are read."""

from __future__ import annotations

import msgspec
import pytest

from perdure.store.control import Config, auto_sync_replicas, config_of, config_problem, control_payload
from perdure.store.event import NO_OPERATION, Kind, Reason, decode_events


def test_a_config_of_two_fields_is_read_with_the_defaults_of_the_others() -> None:
    value = msgspec.msgpack.encode({"voters": ["a", "b"], "sync_replicas": 1})
    assert config_of([(Kind.CONFIG, Reason.CONTROL, NO_OPERATION, b"", value)]) == Config(("a", "b"), 1)


def test_a_config_comes_back_as_it_was_written() -> None:
    config = Config(("a", "b", "w"), 1, {"a": "10.0.0.1:7001"}, ("w",), True, "available", 1)
    payload, count = control_payload(None, config)
    assert config_of(decode_events(payload, count)) == config
    assert config.data_voters == ("a", "b")


@pytest.mark.parametrize(
    ("nodes", "witnesses", "k"),
    [(0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 0, 1), (4, 0, 2), (5, 0, 2), (3, 1, 1), (2, 1, 0), (5, 3, 1)],
)
def test_k_that_follows_the_cluster_is_a_majority_and_at_most_the_replicas_that_keep_the_log(
    nodes: int, witnesses: int, k: int
) -> None:
    voters = [f"n{number}" for number in range(nodes)]
    assert auto_sync_replicas(voters, voters[nodes - witnesses :]) == k


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (Config(), ""),
        (Config(("a", "b"), 1, {"a": "h:1", "c": "h:2"}), ""),
        (Config(("a", "b", "w"), 1, witnesses=("w",), policy="available"), ""),
        (Config(("b", "c"), 1), "a is not among the voters b, c"),
        (Config(("a", "a"), 0), "twice"),
        (Config(("a", "w"), 1, witnesses=("w",)), "there are 0"),
        (Config(("a", "b"), 1, witnesses=("w",)), "a witness is not among the voters"),
        (Config(("a", "b"), 0, witnesses=("a",)), "cannot be a witness"),
        (Config(("a", "b"), 2), "there are 1"),
        (Config(("a", "b"), 1, policy="lax"), "no policy"),
        (Config(("a", "B!"), 1), "no node name"),
        (Config(("a", "b"), 1, {"b": "nowhere"}), "no address"),
        (Config(tuple(f"a{n}" for n in range(40)), 1), "at most 32"),
    ],
)
def test_a_config_that_no_cluster_can_have_is_refused(config: Config, problem: str) -> None:
    found = config_problem(config, config.voters[0] if len(config.voters) > 32 else "a")
    assert problem in found
    assert bool(found) == bool(problem)
