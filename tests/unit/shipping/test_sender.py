"""The sender and the window: every frame once, in order, within the credits; only true acks count."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.shipping import sender as sender_module
from perdure.shipping import window as window_module
from perdure.shipping.messages import unpack_payload
from perdure.shipping.nodelog import NodeLog
from perdure.shipping.sender import Search, Sender, find
from perdure.shipping.window import Window
from perdure.store import CorruptError, Position, PositionGoneError, WireError
from perdure.store.cursor import list_segments
from perdure.store.ids import NOWHERE
from perdure.store.keeper import seal_all
from tests.support.descriptors import descriptors_below
from tests.unit.shipping.logs import end_of, lose_frames, make_primary, opened, runs_of, write

START = NOWHERE.position


def everything(sender: Sender) -> bytes:
    """All that the sender sends, with every message acknowledged at once."""
    sent = b""
    while (found := sender.next_message(0)) is not None:
        message, payload = found
        sent += unpack_payload(payload, message.raw_bytes, message.compressed)
        sender.take_ack(sender.sent)
    return sent


def raw_of(path: Path) -> bytes:
    return b"".join(run.raw for run in runs_of(path))


def window_behind(node: NodeLog, lsn: int) -> Window:
    """A window that begins behind an LSN and holds the rest of the log, frame by frame."""
    cursor = node.cursor()
    cursor.seek(lsn)
    window = Window(cursor.at.position)
    for run in cursor.runs(limit_bytes=300):
        window.add(run)
    cursor.close()
    return window


@pytest.mark.parametrize("behind", [0, 2, 7, 21])
@pytest.mark.parametrize("compress", [False, True])
def test_every_frame_is_sent_once_from_log_and_window(tmp_path: Path, behind: int, compress: bool) -> None:
    path = make_primary(tmp_path / "n1")
    write(path, 10)
    write(path, 9, roll=True)
    with opened(path) as node:
        window = window_behind(node, behind)
        sender = Sender(window, node.cursor, START, compress=compress)
        assert sender.is_close is (behind == 0)
        assert everything(sender) == raw_of(path)
        assert sender.acked == end_of(path)
        assert sender.is_close
        sender.close()


def test_a_sender_that_fell_out_of_the_window_goes_on_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_module, "WINDOW_BYTES_MAX", 1000)
    path = make_primary(tmp_path / "n1")
    write(path, 10)
    with opened(path) as node:
        window = window_behind(node, 0)
        assert window.first > 0
        sender = Sender(window, node.cursor, START, compress=False)
        assert not sender.is_close
        assert everything(sender) == raw_of(path)
        sender.close()


def test_nothing_is_sent_beyond_what_the_window_says_is_on_disk(tmp_path: Path) -> None:
    path = make_primary(tmp_path / "n1")
    end = write(path, 5)
    write(path, 5)
    with opened(path) as node:
        sender = Sender(Window(end), node.cursor, START, compress=False)
        everything(sender)
        assert sender.sent == end
        sender.close()


def test_credits_bound_what_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "CREDIT_BYTES", 500)
    path = make_primary(tmp_path / "n1")
    write(path, 10)
    with opened(path) as node:
        sender = Sender(window_behind(node, 0), node.cursor, START, compress=False)
        ends: list[Position] = []
        while sender.next_message(0) is not None:
            ends.append(sender.sent)
        assert 500 <= sender.under_way_bytes < 1000
        assert sender.take_ack(ends[0])
        assert sender.next_message(0) is not None


def test_an_acknowledgement_may_cover_several_messages(tmp_path: Path) -> None:
    path = make_primary(tmp_path / "n1")
    write(path, 10)
    with opened(path) as node:
        sender = Sender(window_behind(node, 0), node.cursor, START, compress=False)
        ends = [sender.sent for _ in iter(lambda: sender.next_message(0), None)]
        assert sender.take_ack(ends[3])
        assert sender.acked == ends[3]
        assert not sender.take_ack(ends[3])
        assert sender.take_ack(ends[-1])
        assert sender.under_way_bytes == 0
        assert sender.oldest_unacked_ms == 0


@pytest.mark.parametrize("change", [{"chain": 1}, {"lsn": 4}, {"epoch": 9}, {"lsn": 999}])
def test_an_acknowledgement_of_what_was_not_sent_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    path = make_primary(tmp_path / "n1")
    write(path, 10)
    with opened(path) as node:
        sender = Sender(window_behind(node, 0), node.cursor, START, compress=False)
        ends = [sender.sent for _ in iter(lambda: sender.next_message(0), None)]
        with pytest.raises(WireError, match="was not sent"):
            sender.take_ack(ends[4]._replace(**({"lsn": ends[4].lsn * 100} if "lsn" in change else change)))


def test_a_search_finds_a_position_by_its_chain_in_steps(tmp_path: Path) -> None:
    path = make_primary(tmp_path / "n1")
    middle = write(path, 10)
    write(path, 10)
    with opened(path) as node:
        for wanted, expected in ((middle, True), (middle._replace(chain=1), False), (START, True)):
            search = Search(node.cursor(), wanted)
            while (found := search.step()) is None:
                continue
            assert found is expected
            search.cursor.close()


def test_a_search_in_a_log_that_lacks_frames_tells_of_damage_and_not_of_another_history(
    tmp_path: Path,
) -> None:
    path = make_primary(tmp_path / "n1")
    wanted = write(path, 19)
    write(path, 1)
    write(path, 5, roll=True)
    lose_frames(path)
    with opened(path) as node:
        cursor = node.cursor()
        with pytest.raises(CorruptError, match="was on disk"):
            find(cursor, wanted)
        assert not find(cursor, wanted._replace(lsn=1))  # no frame ends there
        cursor.close()


def test_a_sender_whose_log_lacks_frames_tells_of_damage_and_not_that_they_were_dropped(
    tmp_path: Path,
) -> None:
    path = make_primary(tmp_path / "n1")
    write(path, 20)
    end = write(path, 5, roll=True)
    lose_frames(path)
    with opened(path) as node:
        sender = Sender(Window(end), node.cursor, START, compress=False)
        with pytest.raises(CorruptError, match="was on disk"):
            everything(sender)
        sender.close()


def test_a_sender_whose_log_was_dropped_says_so(tmp_path: Path) -> None:
    path = make_primary(tmp_path / "n1")
    write(path, 20)
    end = write(path, 5, roll=True)
    with opened(path) as node:
        cursor = node.cursor()
        cursor.seek(0)
        lose_frames(path)
        list_segments(path / "log")[0].path.unlink()
        sender = Sender(Window(end), node.cursor, START, cursor, compress=False)
        with pytest.raises(PositionGoneError):
            everything(sender)
        sender.close()


def test_a_search_that_cannot_begin_leaves_nothing_open(tmp_path: Path) -> None:
    path = make_primary(tmp_path / "n1")
    wanted = write(path, 19)
    write(path, 1)
    write(path, 5, roll=True)
    with opened(path) as node:
        assert seal_all(node.log.cursor, lambda: None) == 1
        file = list_segments(path / "log")[0].path
        data = bytearray(file.read_bytes())
        data[-10] ^= 1  # of the check of its footer
        file.write_bytes(data)
        before = descriptors_below(tmp_path)
        for _ in range(3):
            with pytest.raises(CorruptError):
                Search(node.cursor(), wanted)
        assert descriptors_below(tmp_path) == before
