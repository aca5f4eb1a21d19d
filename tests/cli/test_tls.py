"""`perdure tls test-ca`, and nodes that take certificates from the command line."""

from __future__ import annotations

import json
import socket
import ssl
import stat
import sys
from pathlib import Path

import pytest

from tests.cli.runner import process, run, run_json


def test_a_test_ca_makes_files_that_only_their_owner_reads(tmp_path: Path) -> None:
    said = run_json("tls", "test-ca", tmp_path / "tls", "--node", "n1", "--node", "n2", "--host", "10.0.0.1")
    assert said["is_test_ca"] is said["is_new_ca"] is True
    assert [files["node"] for files in said["nodes"]] == ["n1", "n2"]
    for key in (said["ca_key"], *(files["key"] for files in said["nodes"])):
        assert stat.S_IMODE(Path(key).stat().st_mode) == 0o600
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(said["nodes"][0]["cert"], said["nodes"][0]["key"])
    context.load_verify_locations(said["ca"])
    assert "not for production" in str(context.get_ca_certs())


def test_nothing_is_written_over_and_the_ca_signs_for_more_nodes(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    run("tls", "test-ca", folder, "--node", "n1")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused = run_json("tls", "test-ca", folder, "--node", "n2", "--node", "n1", code=2)
    assert "nothing is written over" in refused["error"]["message"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert run_json("tls", "test-ca", folder, "--node", "n2")["is_new_ca"] is False
    assert {name: (folder / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("node", ["N1", "../n1", "ca", ""])
def test_a_bad_name_is_refused(tmp_path: Path, node: str) -> None:
    assert (
        run_json("tls", "test-ca", tmp_path / "tls", "--node", node, code=2)["error"]["error"] == "UsageError"
    )
    assert not (tmp_path / "tls").exists()


def test_without_the_package_it_is_said_which_one_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.delitem(sys.modules, "perdure.shipping.certificates", raising=False)
    said = run_json("tls", "test-ca", tmp_path / "tls", "--node", "n1", code=2)
    assert "perdure[encryption]" in said["error"]["hint"]


def test_nodes_with_certificates_on_the_command_line_know_each_other(tmp_path: Path) -> None:
    made = run_json("tls", "test-ca", tmp_path / "tls", "--node", "n1", "--node", "n2")
    flags = {
        files["node"]: ("--tls-cert", files["cert"], "--tls-key", files["key"], "--tls-ca", made["ca"])
        for files in made["nodes"]
    }
    first = run_json("init", tmp_path / "n1", "--node", "n1", "--primary")
    run_json("init", tmp_path / "n2", "--node", "n2", "--cluster-id", first["cluster_id"])
    receiver = process(*flags["n2"], "receive", tmp_path / "n2", "--listen", "127.0.0.1:0", "--json")
    try:
        assert receiver.stdout is not None
        address = "n2=" + json.loads(receiver.stdout.readline())["listening"]
        asked = ("status", tmp_path / "n1", "--peer", address)
        assert run_json(*flags["n1"], *asked)["peers"][0]["problem"] == ""
        plain = run_json(*asked, code=1)["peers"][0]["problem"]
        assert "closed" in plain or "broke" in plain
        wrong = address.replace("n2=", "n1b=")
        told = run_json(*flags["n1"], "status", tmp_path / "n1", "--peer", wrong, code=1)
        assert "is that of n2, not of n1b" in told["peers"][0]["problem"]
    finally:
        receiver.terminate()
        receiver.communicate(timeout=30)


def test_a_secret_alone_needs_a_word_on_other_addresses(tmp_path: Path) -> None:
    run_json("init", tmp_path / "n1", "--node", "n1", "--primary")
    (tmp_path / "secret").write_text("s" * 32)
    receive = ("receive", tmp_path / "n1", "--listen", "203.0.113.1:0", "--secret-file", tmp_path / "secret")
    said = run_json(*receive, code=2)["error"]
    assert "without TLS" in said["message"]
    assert "--allow-plain" in said["hint"]
    assert "cannot listen" in run_json("--allow-plain", *receive, code=5)["error"]["message"]


def test_half_of_the_files_is_said(tmp_path: Path) -> None:
    run_json("init", tmp_path / "n1", "--node", "n1", "--primary")
    said = run_json(
        "--tls-cert", tmp_path / "n1.crt", "receive", tmp_path / "n1", "--listen", "127.0.0.1:0", code=2
    )
    assert "tls_key, tls_ca" in said["error"]["message"]


def test_a_key_of_another_certificate_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    made = run_json("tls", "test-ca", tmp_path / "tls", "--node", "n1", "--node", "n2")
    first, second = made["nodes"]
    mixed = ("--tls-cert", first["cert"], "--tls-key", second["key"], "--tls-ca", made["ca"])
    run_json("init", tmp_path / "n1", "--node", "n1", "--primary")
    with socket.create_server(("127.0.0.1", 0)) as peer:
        peer.setblocking(False)
        asked = ("--peer", f"n2=127.0.0.1:{peer.getsockname()[1]}")
        for command in (
            ("status", tmp_path / "n1", *asked),
            ("promote", tmp_path / "n1", *asked),
            ("receive", tmp_path / "n1", "--listen", "127.0.0.1:0"),
        ):
            said = run_json(*mixed, *command, code=2)["error"]
            assert (said["error"], said["path"]) == ("UsageError", first["cert"])
            assert f"the key {second['key']} does not belong to this certificate" in said["message"]
        with pytest.raises(BlockingIOError):
            peer.accept()
