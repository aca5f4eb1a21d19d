"""What goes wrong on a replica: a full disk, a state that diverges, logs that lost frames."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.recovery import remove_member
from perdure.shipping import Credentials, open_node_log, read_fault, shipping_status
from perdure.shipping.slots import read_slots
from perdure.store import Config, CorruptError, DivergedError, SessionStore
from perdure.store.backends import open_backend
from perdure.store.cursor import list_segments
from perdure.store.ids import StatePosition
from perdure.store.page import Word
from tests.cluster.nodes import HOST, SECRET, WAIT_S, Cluster, cluster_of, until
from tests.support.faults.powercut import reason_not_to_mount


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    why = reason_not_to_mount()
    if why:
        pytest.skip(why)
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_replica_with_a_full_disk_pauses_and_goes_on_when_there_is_space(
    tmp_path: Path, small_disk: Path
) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        shutil.move(cluster.path("n2"), small_disk / "n2")
        cluster.path("n2").symlink_to(small_disk / "n2")
        cluster.serve_here("n2")
        cluster.ship_here("n1")
        store = cluster.open("n1")
        store.create({"n": 0})
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has the first write")
        filler = small_disk / "filler"
        fill(filler)
        for number in range(40):
            store.create({"n": number, "text": "x" * 50_000})
        until(lambda: cluster.slot_state("n1", "n2")[0] == "paused", "the slot says paused")
        assert "No space left" in cluster.slot_state("n1", "n2")[1]
        assert cluster.end("n2").lsn < cluster.end("n1").lsn
        filler.unlink()
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 goes on")
        until(lambda: cluster.slot_state("n1", "n2")[0] == "streaming", "the slot says streaming")


def fill(path: Path) -> None:
    """Take all the space that is left."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                continue
        except OSError:
            return


def test_a_replica_whose_state_diverged_says_so_at_once_and_folds_no_further(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        id = store.create({"n": 0})
        cluster.wait_applied(cluster.word("n1", Word.APPENDED))
        cluster.stop_here()
        lose_silently(cluster, "n2", id)
        cluster.serve_here("n2")
        cluster.ship_here("n1")
        cluster.start(cluster.folder_of("n2"))
        store.update(id, lambda session: session.merge({"n": 1}))
        until(lambda: not cluster.children["folder:n2"].is_running, "the folder ends")
        assert cluster.children["folder:n2"].process.returncode == 4
        fault = read_fault(cluster.path("n2"))
        assert "the frame says" in fault
        assert shipping_status(cluster.path("n2")).fault == fault
        with cluster.client("n2") as client:
            assert client.status().fault == fault
        until(lambda: cluster.end("n2") == cluster.end("n1"), "the log is received all the same")
        with pytest.raises(DivergedError, match="folding stopped"):
            cluster.fold_here("n2")


def test_a_handle_on_a_replica_folds_nothing_that_does_not_come_out_and_the_folder_says_where(
    tmp_path: Path,
) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        ids = [store.create({"n": number}) for number in range(3)]
        cluster.wait_applied(cluster.word("n1", Word.APPENDED))
        cluster.stop_here()
        lose_silently(cluster, "n2", ids[1])
        cluster.serve_here("n2")
        cluster.ship_here("n1")
        store.update(ids[0], lambda session: session.merge({"n": 10}))  # this one comes out
        at_fault = cluster.word("n1", Word.APPENDED) + 1
        store.update(ids[1], lambda session: session.merge({"n": 11}))
        store.update(ids[2], lambda session: session.merge({"n": 12}))
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has it all")
        folded = state_of("n2", cluster)
        with SessionStore.open(cluster.path("n2"), create=False) as replica:
            with pytest.raises(DivergedError, match="the frame at LSN") as caught:
                replica.fold()
            assert caught.value.lsn == at_fault + 1
            assert "perdure repair" in str(caught.value)
            assert replica.peek(ids[1]) == store.peek(ids[1])  # what is read comes from the log
        assert state_of("n2", cluster) == folded  # nor did closing it
        assert not read_fault(cluster.path("n2"))
        cluster.start(cluster.folder_of("n2"))
        until(lambda: read_fault(cluster.path("n2")), "the folder says so")
        assert f"lsn {at_fault})" in read_fault(cluster.path("n2"))


def state_of(name: str, cluster: Cluster) -> StatePosition:
    backend = open_backend("lmdb", cluster.path(name) / "state" / "lmdb")
    try:
        return backend.refresh()
    finally:
        backend.close()


def lose_silently(cluster: Cluster, name: str, id: str) -> None:
    """Take a session out of a node's state, as damage would."""
    backend = open_backend("lmdb", cluster.path(name) / "state" / "lmdb")
    at = backend.refresh()
    assert backend.get(id.encode()) is not None
    backend.fold([(id.encode(), None)], [], [], at)
    backend.close()


def test_a_replica_that_lost_what_it_had_not_acknowledged_fetches_it_again(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n2")
        cluster.ship_here("n1")
        store = cluster.open("n1")
        for number in range(20):
            store.create({"n": number})
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has it all")
        cluster.stop_here()
        tail = list_segments(cluster.path("n2") / "log")[-1].path
        data = tail.read_bytes()
        tail.write_bytes(data + b"half a frame")
        cluster.serve_here("n2")
        store.create({"n": 20})
        cluster.ship_here("n1")
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has the rest")
        assert tail.read_bytes().startswith(data)


def test_a_replica_that_lost_what_it_acknowledged_is_corrupt_and_says_so(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n2")
        cluster.ship_here("n1")
        store = cluster.open("n1")
        for number in range(20):
            store.create({"n": number})
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has it all")
        cluster.stop_here()
        tail = list_segments(cluster.path("n2") / "log")[-1].path
        tail.write_bytes(tail.read_bytes()[:-200])
        with pytest.raises(CorruptError, match=tail.name):
            cluster.serve_here("n2")


def test_the_sessions_of_a_replica_can_be_read_while_it_follows(tmp_path: Path) -> None:
    with (
        cluster_of(tmp_path, 2, sync_replicas=1) as cluster,
        SessionStore.open(cluster.path("n2")) as reader,
    ):
        cluster.start_here()
        store = cluster.open("n1")
        ids = [store.create({"n": number}) for number in range(50)]
        until(lambda: all(reader.peek(id) is not None for id in ids), "the reader sees every session")
        assert reader.count() == 50


@contextlib.contextmanager
def with_member_at(folder: Path, address: str) -> Iterator[Cluster]:
    """n1 and n2, both of which every write needs, and a member n3 that is said to be at `address`."""

    class Told(Cluster):
        def begin(self, name: str, config: Config) -> None:
            super().begin(name, config)
            node = open_node_log(self.path(name), [])
            try:
                node.log.lock()
                node.log.change_config(Config(config.voters, 1, {"n3": address}))  # unchecked
                node.log.unlock()
            finally:
                node.close()

    cluster = Told(folder, ("n1", "n2"), 1, "lmdb")
    try:
        yield cluster
    finally:
        cluster.close()


def begin_shipping(cluster: Cluster) -> None:
    cluster.serve_here("n2")
    cluster.ship_here("n1", secret=Credentials(SECRET, allow_plain=True))


def test_damaged_slots_do_not_stop_shipping(tmp_path: Path) -> None:
    with with_member_at(tmp_path, f"{HOST}:1") as cluster:
        slots = cluster.path("n1") / "slots"
        for node in ("n2", "n9"):
            (slots / f"{node}.slot").write_bytes(b"not a slot")
        begin_shipping(cluster)
        cluster.open("n1").create({"n": 0})
        lsn = cluster.word("n1", Word.COMMITTED)
        until(lambda: sorted(path.name for path in slots.iterdir()) == ["n2.slot", "n3.slot"], "n9's goes")
        until(lambda: read_slots(cluster.path("n1"))[0].lsn >= lsn, "n2's is made anew")


def test_a_member_with_an_impossible_name_holds_back_nobody_and_can_be_taken_out(tmp_path: Path) -> None:
    with with_member_at(tmp_path, "n3..lan:7000") as cluster:
        begin_shipping(cluster)
        store = cluster.open("n1")
        store.create({"n": 0})
        until(lambda: "n3..lan" in cluster.slot_state("n1", "n3")[1], "the slot says why n3 is not reached")
        assert remove_member(cluster.path("n1"), "n3").members == {}
        until(lambda: [slot.node for slot in read_slots(cluster.path("n1"))] == ["n2"], "n3's slot goes")
        store.create({"n": 1})


def test_a_name_server_that_does_not_answer_holds_back_no_other_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, over, real = list[str](), threading.Event(), socket.getaddrinfo

    def hang(host: str, *given: Any, **wanted: Any) -> Any:
        if host != "n3.test":
            return real(host, *given, **wanted)
        asked.append(threading.current_thread().name)
        over.wait(2 * WAIT_S)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer from the name server")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        with with_member_at(tmp_path, "n3.test:7000") as cluster:
            begin_shipping(cluster)
            store = cluster.open("n1")
            for number in range(20):
                store.create({"n": number})
            until(lambda: asked, "n3 is looked up")
            store.create({"n": 20})
            assert asked == ["perdure-lookup"]
            over.set()
            until(lambda: "no answer" in cluster.slot_state("n1", "n3")[1], "the slot says why")
    finally:
        over.set()
