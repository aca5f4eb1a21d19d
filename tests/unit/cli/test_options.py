"""Texts of the command line as values: addresses, nodes, secrets, times."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.cli.options import SECRET_VARIABLE, parse_nodes, read_secret
from perdure.cli.replay import parse_time_ms
from perdure.store import StorageError, UsageError
from perdure.store.option import parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7001", ("127.0.0.1", 7001)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0.100]:1", ("fe80::1%eth0.100", 1)),
        ("n4.lan.:1", ("n4.lan.", 1)),
        (f"{'a' * 63}.lan:1", (f"{'a' * 63}.lan", 1)),
    ],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "127.0.0.1", ":7001", "host:", "host:65536", "host:-1", "host:७"])
def test_what_is_no_address_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


@pytest.mark.parametrize("host", [".", "n4..lan", ".lan", "n4.lan..", f"{'a' * 64}.lan"])
def test_a_host_whose_name_cannot_be_looked_up_is_a_usage_error(host: str) -> None:
    with pytest.raises(UsageError, match="a part of the host's name is empty, or longer than 63"):
        parse_address(f"{host}:7001")


def test_nodes_are_named_addresses() -> None:
    nodes = parse_nodes(["n2=10.0.0.2:7001", "n3=10.0.0.3:7001"])
    assert nodes == {"n2": ("10.0.0.2", 7001), "n3": ("10.0.0.3", 7001)}
    assert parse_nodes(None) == {}


@pytest.mark.parametrize("texts", [["10.0.0.2:7001"], ["=10.0.0.2:7001"], ["n2=a:1", "n2=b:2"]])
def test_nodes_without_a_name_or_named_twice_are_usage_errors(texts: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_nodes(texts)


def test_a_secret_comes_from_the_file_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, "from the environment\n")
    file = tmp_path / "secret"
    file.write_text("  from the file \n")
    assert read_secret(file) == b"from the file"
    assert read_secret(None) == b"from the environment"
    monkeypatch.delenv(SECRET_VARIABLE)
    assert read_secret(None) == b""


def test_a_secret_file_that_is_missing_empty_or_endless_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read the secret"):
        read_secret(tmp_path / "nowhere")
    file = tmp_path / "secret"
    file.write_text("\n")
    with pytest.raises(UsageError):
        read_secret(file)
    file.write_bytes(b"x" * 5000)
    with pytest.raises(UsageError):
        read_secret(file)


def test_a_time_is_iso_with_an_offset_or_milliseconds() -> None:
    assert parse_time_ms("1970-01-01T01:00:01+01:00") == 1000
    assert parse_time_ms("2026-03-01T12:00:00Z") == 1772366400000
    assert parse_time_ms("1772366400000") == 1772366400000


@pytest.mark.parametrize("text", ["", "noon", "2026-03-01T12:00:00", "1772366400", "-5"])
def test_a_time_without_offset_or_in_seconds_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_time_ms(text)
