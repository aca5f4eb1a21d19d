"""When a commit LSN is told by a message of its own: at once, unless frames are sure to follow."""

from __future__ import annotations

from perdure.shipping.announcing import CLOSE_MIN, LINGER_NS, Announcing


def follow_closely(announcing: Announcing, times: int, now_ns: int) -> int:
    """Frames come soon behind each commit, so often; answers the time behind it."""
    for _ in range(times):
        announcing.committed(now_ns)
        now_ns += LINGER_NS // 10
        announcing.appended(now_ns)
        announcing.told()
    return now_ns


def test_news_of_a_writer_that_writes_now_and_then_is_told_at_once() -> None:
    announcing, now_ns = Announcing(), LINGER_NS
    for _ in range(20):
        announcing.committed(now_ns)
        assert announcing.is_due(now_ns)
        now_ns += 2 * LINGER_NS
        announcing.appended(now_ns)


def test_news_waits_for_the_next_frame_of_writers_that_follow_closely_but_not_for_ever() -> None:
    announcing = Announcing()
    now_ns = follow_closely(announcing, CLOSE_MIN, LINGER_NS)
    announcing.committed(now_ns)
    assert not announcing.is_due(now_ns)
    assert not announcing.is_due(now_ns + LINGER_NS - 1)
    assert announcing.is_due(now_ns + LINGER_NS)


def test_later_news_does_not_prolong_the_wait_of_the_first() -> None:
    announcing = Announcing()
    now_ns = follow_closely(announcing, CLOSE_MIN, LINGER_NS)
    for part in range(10):
        announcing.committed(now_ns + part * LINGER_NS // 10)
        assert not announcing.is_due(now_ns + part * LINGER_NS // 10)
    assert announcing.is_due(now_ns + LINGER_NS)


def test_who_waits_for_the_news_before_he_writes_again_is_held_up_ever_less() -> None:
    announcing, now_ns, held_up = Announcing(), LINGER_NS, 0
    for _ in range(1000):
        announcing.committed(now_ns)
        if not announcing.is_due(now_ns):
            held_up += 1
            now_ns += LINGER_NS
            assert announcing.is_due(now_ns)
        now_ns += LINGER_NS // 10
        announcing.appended(now_ns)
    assert 0 < held_up < 10


def test_after_news_that_frames_carried_a_few_close_frames_are_enough_again() -> None:
    announcing, now_ns = Announcing(), LINGER_NS
    for _ in range(3):  # in vain
        now_ns = follow_closely(announcing, 100, now_ns)
        assert not announcing.is_due(now_ns)
        now_ns += LINGER_NS
        assert announcing.is_due(now_ns)
    now_ns = follow_closely(announcing, 100, now_ns)
    assert not announcing.is_due(now_ns)
    announcing.told()
    now_ns += LINGER_NS
    announcing.appended(now_ns + LINGER_NS)
    now_ns = follow_closely(announcing, CLOSE_MIN, now_ns + LINGER_NS)
    assert not announcing.is_due(now_ns)
