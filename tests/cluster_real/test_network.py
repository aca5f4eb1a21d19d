"""The machines of the tests by themselves: what reaches what, and that nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster_real.network import Network, network_of, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

PORT = 7000
SERVER = """
import socket
listener = socket.create_server(("", 7000))
print("ready", flush=True)
while True:
    listener.accept()[0].close()
"""
CLIENT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 7000), 0.3).close()
except TimeoutError:
    sys.exit(1)
"""


def serve(network: Network, name: str) -> subprocess.Popen[bytes]:
    server = network.start(name, sys.executable, "-c", SERVER, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return server


def reaches(network: Network, from_name: str, to_name: str) -> bool:
    client = network.start(
        from_name, sys.executable, "-c", CLIENT, network.address(to_name), stderr=subprocess.DEVNULL
    )
    return client.wait() == 0


def comes_to_reach(network: Network, from_name: str, to_name: str) -> bool:
    """The first packets of a link that has just been made may be lost."""
    return any(reaches(network, from_name, to_name) for _ in range(10))


def test_machines_reach_each_other_until_the_link_is_cut_in_one_direction_and_again_when_healed() -> None:
    with network_of("a", "b", "c") as network:
        server = serve(network, "a")
        assert comes_to_reach(network, "b", "a")
        network.cut("b", "a")
        assert not reaches(network, "b", "a")
        assert comes_to_reach(network, "c", "a")
        network.heal()
        network.isolate("a", hears=True)  # what comes in arrives, the answers do not
        assert not reaches(network, "b", "a")
        network.heal()
        assert comes_to_reach(network, "b", "a")
        assert network.kill("a") == 1
        assert server.wait() == -signal.SIGKILL


def test_a_paused_machine_answers_when_it_goes_on() -> None:
    with network_of("a", "b") as network:
        server = serve(network, "a")
        assert network.pause("a") == {server.pid}
        assert Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        network.resume("a")
        assert comes_to_reach(network, "b", "a")


def test_two_networks_have_the_same_addresses_and_do_not_meet() -> None:
    with network_of("a", "b") as one, network_of("a", "b") as two:
        serve(one, "a")
        assert comes_to_reach(one, "b", "a")
        assert not reaches(two, "b", "a")


def test_a_closed_network_leaves_no_process() -> None:
    with network_of("a") as network:
        server = network.start("a", sys.executable, "-c", SERVER, stdout=subprocess.DEVNULL)
        pids = [server.pid, *(holder.pid for holder in network._holders.values())]
    assert server.wait(5) == -signal.SIGKILL
    deadline_s = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
