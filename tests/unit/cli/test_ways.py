"""What a node process was told reaches applications on the node: addresses, files, never the secret."""

from __future__ import annotations

from pathlib import Path

import pytest

import perdure
from perdure.cli.settings import Settings
from perdure.shipping import Credentials, NodeWays, TlsFiles, open_node_log, read_ways, ways_of, write_ways
from perdure.store import Config, NotPrimaryError, UsageError, begin_cluster, init_store, names

SECRET = "a secret that all nodes share"
PEERS = ["n1=127.0.0.1:7001", "n2=127.0.0.1:7011"]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERDURE_SECRET", raising=False)
    monkeypatch.delenv("PERDURE_CONFIG", raising=False)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node that has a log, and is not its primary."""
    directory = tmp_path / "n1"
    init_store(directory, node="n1", cluster_id=bytes(16), backend="memory", now_ms=1)
    log = open_node_log(directory, [])
    try:
        log.log.lock_any()
        begin_cluster(log.log, Config(("n1", "n2", "n3"), 1))
        log.log.unlock()
        log.log.lock_any()
        log.log.give_promise(log.log.promise.__class__(2, "n2"))
        log.log.unlock()
    finally:
        log.close()
    return directory


def test_an_application_finds_what_the_node_was_told_and_the_file_holds_no_secret(
    node: Path, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    write_ways(node, Settings(node).told(PEERS, file))
    assert (node / names.WAYS).stat().st_mode & 0o777 == 0o600
    assert SECRET.encode() not in (node / names.WAYS).read_bytes()
    way = Settings(node).way()
    assert way.peers == {"n2": ("127.0.0.1", 7011)}
    assert way.secret == Credentials(SECRET.encode())


def test_its_own_configuration_wins(node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    write_ways(node, Settings(node).told(PEERS, file))
    (node / "perdure.toml").write_text('[node]\npeers = { n2 = "127.0.0.1:9" }\n')
    monkeypatch.setenv("PERDURE_SECRET", "another secret, of its own")
    way = Settings(node).way()
    assert way.peers == {"n2": ("127.0.0.1", 9)}
    assert way.secret == Credentials(b"another secret, of its own")


def test_certificates_are_told_by_their_files(node: Path) -> None:
    files = TlsFiles("/etc/n1.crt", "/etc/n1.key", "/etc/ca.crt")
    write_ways(node, ways_of({}, Credentials(tls=files, allow_plain=True), None))
    assert Settings(node).way().secret == Credentials(tls=files, allow_plain=True)


@pytest.mark.parametrize("has_file", [False, True], ids=["environment", "file"])
def test_a_secret_that_the_application_does_not_have_is_asked_for(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_file: bool
) -> None:
    file = tmp_path / "secret" if has_file else None
    with monkeypatch.context() as told:
        if file is None:
            told.setenv("PERDURE_SECRET", SECRET)
        else:
            file.write_text(SECRET)
        write_ways(node, Settings(node).told(PEERS, file))
    if file is not None:
        file.unlink()
    with pytest.raises(UsageError, match="the nodes share a secret"):
        Settings(node).way()
    with perdure.open(node) as store, pytest.raises(NotPrimaryError, match="share a secret") as caught:
        store.create({})
    assert "PERDURE_SECRET" in caught.value.hint


def test_a_damaged_file_says_nothing(node: Path) -> None:
    write_ways(node, NodeWays({"n2": "127.0.0.1:7011"}, True))
    data = (node / names.WAYS).read_bytes()
    (node / names.WAYS).write_bytes(data[:-1])
    assert read_ways(node) == NodeWays()
    assert Settings(node).way().peers == {}


def test_a_node_that_is_started_later_is_found_by_an_application_that_runs(node: Path) -> None:
    with perdure.open(node, write_timeout_ms=300) as store:
        with pytest.raises(NotPrimaryError) as caught:
            store.create({})
        assert "no primary was found" not in str(caught.value)  # there was nobody to ask
        write_ways(node, Settings(node).told(["n2=127.0.0.1:9"], None))
        with pytest.raises(NotPrimaryError, match="no primary was found within 300 ms"):
            store.create({})
