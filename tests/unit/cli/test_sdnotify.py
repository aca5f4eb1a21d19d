"""What the init system is told, over a socket of the test's own; and the unit file that asks for it."""

from __future__ import annotations

import configparser
import os
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
import typer

from perdure.cli.app import app
from perdure.cli.sdnotify import Notifier

UNIT = Path(__file__).parents[3] / "docs" / "perdure@.service"


class Init:
    """A socket as the init system has one."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        found: list[str] = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture(params=["path", "abstract"])
def init(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    name = str(tmp_path / "notify") if request.param == "path" else f"@perdure-test-{os.getpid()}"
    heard = Init(name.replace("@", "\0", 1))
    try:
        yield name, heard
    finally:
        heard.socket.close()


def test_each_word_is_a_datagram_and_a_status_is_told_once(init: tuple[str, Init]) -> None:
    name, heard = init
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000000"})
    notifier.ready("n1 has begun")
    notifier.status("n1 has begun")
    notifier.status("n1 is active")
    notifier.alive()
    notifier.alive()
    notifier.stopping()
    notifier.status("nothing is said after the end")
    said = heard.heard()
    assert said[:3] == ["READY=1", "STATUS=n1 has begun", "STATUS=n1 is active"]
    assert said[3:] == ["WATCHDOG=1", "STOPPING=1"]


@pytest.mark.parametrize(
    "given", [{}, {"WATCHDOG_USEC": "nothing"}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}]
)
def test_no_sign_of_life_that_was_not_asked_for(init: tuple[str, Init], given: dict[str, str]) -> None:
    name, heard = init
    notifier = Notifier({"NOTIFY_SOCKET": name, **given})
    notifier.alive()
    notifier.stopping()
    assert heard.heard() == ["STOPPING=1"]


@pytest.mark.parametrize("address", ["", "relative/path", "/nowhere/at/all"])
def test_without_an_init_system_nothing_is_sent_and_nothing_fails(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"})
    notifier.ready("begun")
    notifier.alive()
    notifier.stopping()


def test_the_unit_file_runs_a_command_that_exists_and_asks_for_what_is_sent() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    words = shlex.split(service["ExecStart"])
    root: Any = typer.main.get_command(app)
    command = root.commands[words[1]]
    with command.make_context(words[1], words[2:], resilient_parsing=True):
        pass
    assert {"--config"} <= {name for parameter in command.params for name in parameter.opts}
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert int(service["WatchdogSec"]) >= 10
    assert service["KillMode"] == "mixed"
