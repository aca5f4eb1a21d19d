"""Detection: what silence, an ended connection and a refusal say, and that a late watcher blames nobody."""

from __future__ import annotations

from collections.abc import Callable

from perdure.shipping.detection import (
    HEARTBEAT_MS,
    LOOK_MS_MAX,
    MISSED_MAX,
    RESTART_MS,
    SILENCE_MS,
    Detector,
    Verdict,
)
from perdure.shipping.messages_health import Beat


def beat(node: str) -> Beat:
    return Beat(node, False, 1, 1, 1, "n1", "n1", 1, False, True, "active")


def watch(detector: Detector, from_ms: int, to_ms: int, every_ms: int = 50) -> None:
    for at_ms in range(from_ms + every_ms, to_ms + 1, every_ms):
        detector.tick(at_ms)


def test_a_peer_is_new_then_alive_then_late_then_silent() -> None:
    detector = Detector(["n1"], 0)
    assert detector.verdict("n1") is Verdict.NEW
    detector.heard(beat("n1"), 7)
    assert detector.verdict("n1") is Verdict.ALIVE
    watch(detector, 0, MISSED_MAX * HEARTBEAT_MS)
    assert detector.verdict("n1") is Verdict.ALIVE
    watch(detector, MISSED_MAX * HEARTBEAT_MS, 400)
    assert detector.verdict("n1") is Verdict.LATE
    assert detector.report()[0].failures == 4
    watch(detector, 400, SILENCE_MS - 50)
    assert detector.verdict("n1") is Verdict.LATE
    watch(detector, SILENCE_MS - 50, SILENCE_MS)
    assert detector.verdict("n1") is Verdict.SILENT
    detector.heard(beat("n1"), 8)
    assert detector.verdict("n1") is Verdict.ALIVE
    assert detector.report()[0].last_seen_ms == 8


def test_a_peer_that_was_never_heard_is_silent_in_the_end() -> None:
    detector = Detector(["n1"], 0)
    watch(detector, 0, SILENCE_MS)
    assert detector.verdict("n1") is Verdict.SILENT


def test_the_watchers_own_lateness_is_nobodys_silence() -> None:
    detector = Detector(["n1"], 0)
    detector.heard(beat("n1"), 7)
    detector.tick(60_000)
    assert detector.report()[0].silence_ms == LOOK_MS_MAX
    assert detector.verdict("n1") is Verdict.ALIVE
    watch(detector, 60_000, 60_000 + SILENCE_MS - LOOK_MS_MAX - 50)
    assert detector.verdict("n1") is Verdict.LATE


def test_a_clock_that_goes_back_counts_for_nothing() -> None:
    detector = Detector(["n1"], 1_000)
    detector.tick(500)
    detector.tick(550)
    assert detector.clock_ms == 50


def test_an_ended_connection_that_is_refused_again_is_gone_at_once() -> None:
    detector = Detector(["n1"], 0)
    detector.connected("n1")
    detector.heard(beat("n1"), 7)
    detector.closed("n1")
    assert detector.verdict("n1") is Verdict.ALIVE
    detector.refused("n1")
    assert detector.verdict("n1") is Verdict.GONE


def test_a_monitor_that_is_started_again_may_take_longer_than_a_silent_one() -> None:
    detector = Detector(["n1"], 0)
    detector.connected("n1")
    detector.heard(beat("n1"), 7)
    detector.closed("n1")
    detector.accepted("n1")
    watch(detector, 0, RESTART_MS - 50)
    assert detector.verdict("n1") is Verdict.LATE
    watch(detector, RESTART_MS - 50, RESTART_MS)
    assert detector.verdict("n1") is Verdict.SILENT


def test_a_node_that_ends_while_its_monitor_is_started_again_is_gone_at_once() -> None:
    detector = Detector(["n1"], 0)
    detector.connected("n1")
    detector.heard(beat("n1"), 7)
    detector.closed("n1")
    detector.accepted("n1")
    detector.refused("n1")
    assert detector.verdict("n1") is Verdict.GONE


def test_a_peer_that_takes_a_first_connection_and_says_nothing_is_not_waited_for_longer() -> None:
    detector = Detector(["n1"], 0)
    detector.accepted("n1")
    watch(detector, 0, SILENCE_MS)
    assert detector.verdict("n1") is Verdict.SILENT


def test_a_refusal_without_a_connection_before_says_nothing() -> None:
    detector = Detector(["n1"], 0)
    detector.refused("n1")
    assert detector.verdict("n1") is Verdict.NEW


def test_a_peer_that_speaks_or_takes_a_connection_has_not_gone() -> None:
    backs: list[Callable[[Detector], None]] = [
        lambda it: it.heard(beat("n1"), 8),
        lambda it: it.connected("n1"),
    ]
    for back in backs:
        detector = Detector(["n1"], 0)
        detector.heard(beat("n1"), 7)
        detector.closed("n1")
        detector.refused("n1")
        back(detector)
        assert detector.verdict("n1") is Verdict.ALIVE


def test_what_was_said_last_is_reported_by_name_and_others_are_not_watched() -> None:
    detector = Detector(["n3", "n2"], 0)
    detector.heard(beat("n2"), 7)
    detector.heard(beat("stranger"), 7)
    report = detector.report()
    assert [one.node for one in report] == ["n2", "n3"]
    assert (report[0].beat, report[1].beat) == (beat("n2"), None)


def test_a_changed_set_of_peers_keeps_what_is_known_of_those_that_stay() -> None:
    detector = Detector(["n1", "n2"], 0)
    detector.heard(beat("n1"), 7)
    watch(detector, 0, 600)
    detector.watch(["n1", "n3"])
    watch(detector, 600, 1_000)
    assert detector.verdict("n1") is Verdict.SILENT
    assert detector.verdict("n3") is Verdict.NEW
    assert [one.node for one in detector.report()] == ["n1", "n3"]
