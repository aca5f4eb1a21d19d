"""Looking up hosts: nobody waits for a name server, and the last good answer stands."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from perdure.shipping import lookup
from perdure.shipping.lookup import FRESH_MS, HOSTS_MAX, Lookup, is_numeric
from perdure.store import WireError

WAIT_S = 30.0


class NameServer:
    """Answers names as the test says, and notes which thread asked for which."""

    def __init__(self) -> None:
        self.names = {"n2.test": "10.0.0.2", "n3.test": "fd00::3"}
        self.asked: list[str] = []
        self.askers: set[threading.Thread] = set()
        self.answers = threading.Event()
        self.answers.set()

    def getaddrinfo(self, host: str, _port: object, **_wanted: object) -> list[Any]:
        self.asked.append(host)
        self.askers.add(threading.current_thread())
        assert self.answers.wait(WAIT_S)
        found = self.names.get(host)
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        family = socket.AF_INET6 if ":" in found else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 0, "", (found, 0))]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    made = NameServer()
    monkeypatch.setattr("perdure.shipping.lookup.socket.getaddrinfo", made.getaddrinfo)
    yield made
    made.answers.set()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    at = [1_000_000]
    monkeypatch.setattr(lookup, "monotonic_ms", lambda: at[0])
    return at


def found(hosts: Lookup, host: str) -> str:
    """Its address, once it is there."""
    deadline = time.monotonic() + WAIT_S
    while (address := hosts.address(host)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return address


def settled(hosts: Lookup) -> None:
    """Wait until nothing is asked any more."""
    deadline = time.monotonic() + WAIT_S
    while hosts._is_at_work:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fd00::3", "fe80::1%eth0"])
def test_a_numeric_address_is_its_own_answer_and_nobody_is_asked(server: NameServer, host: str) -> None:
    assert is_numeric(host)
    assert Lookup().address(host) == host
    assert not server.asked


@pytest.mark.usefixtures("now")
def test_names_are_asked_for_by_one_thread_and_each_once_at_a_time(server: NameServer) -> None:
    hosts = Lookup()
    server.answers.clear()
    for _ in range(100):
        assert hosts.address("n2.test") is None
        assert hosts.address("n3.test") is None
    assert not [thread for thread in list(server.askers) if not thread.daemon]
    server.answers.set()
    assert found(hosts, "n2.test") == "10.0.0.2"
    assert found(hosts, "n3.test") == "fd00::3"
    assert server.asked == ["n2.test", "n3.test"]
    assert len(server.askers) == 1
    assert threading.current_thread() not in server.askers


def test_the_last_good_answer_stands_while_a_newer_one_cannot_be_had(
    server: NameServer, now: list[int]
) -> None:
    hosts = Lookup()
    assert found(hosts, "n2.test") == "10.0.0.2"
    settled(hosts)
    del server.names["n2.test"]
    now[0] += FRESH_MS
    assert hosts.address("n2.test") == "10.0.0.2"
    settled(hosts)
    assert hosts.address("n2.test") == "10.0.0.2"
    server.names["n2.test"] = "10.0.0.22"
    now[0] += FRESH_MS
    assert hosts.address("n2.test") == "10.0.0.2"
    settled(hosts)
    assert hosts.address("n2.test") == "10.0.0.22"
    assert server.asked == ["n2.test"] * 3


def test_a_name_that_nobody_knows_is_an_error_until_it_is_asked_for_anew(
    server: NameServer, now: list[int]
) -> None:
    hosts = Lookup()
    assert hosts.address("n4.test") is None
    settled(hosts)
    for _ in range(3):
        with pytest.raises(
            WireError, match=r"cannot look up n4\.test: Name or service not known.* name server"
        ):
            hosts.address("n4.test")
    server.names["n4.test"] = "10.0.0.4"
    now[0] += FRESH_MS
    assert found(hosts, "n4.test") == "10.0.0.4"
    assert server.asked == ["n4.test"] * 2


def test_an_impossible_name_is_an_error_as_any_other() -> None:
    hosts = Lookup()
    with pytest.raises(WireError, match=r"cannot look up n4\.\.test"):
        found(hosts, "n4..test")


def test_so_many_answers_are_kept(server: NameServer) -> None:
    hosts = Lookup()
    server.names = {f"n{number}.test": "10.0.0.1" for number in range(HOSTS_MAX + 10)}
    for name in server.names:
        assert found(hosts, name)
    assert list(hosts._answers) == list(server.names)[10:]


def test_nothing_more_is_asked_once_it_is_closed(server: NameServer) -> None:
    hosts = Lookup()
    server.answers.clear()
    hosts.address("n2.test")
    hosts.address("n3.test")
    deadline = time.monotonic() + WAIT_S
    while not server.asked:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    hosts.close()
    server.answers.set()
    settled(hosts)
    assert server.asked == ["n2.test"]


HANGS = """
import socket, threading
from perdure.shipping.lookup import Lookup
asked = threading.Event()
def hang(*_given, **_wanted):
    asked.set()
    threading.Event().wait()
socket.getaddrinfo = hang
hosts = Lookup()
assert hosts.address("n2.test") is None
assert asked.wait(30)
hosts.close()
print("over")
"""


def test_a_question_that_hangs_does_not_keep_the_process_alive() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"over\n", b"")
