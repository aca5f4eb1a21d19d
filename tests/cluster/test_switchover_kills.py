"""kill -9 in the middle of a switchover, of whoever takes part: the cluster works, and has everything."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.recovery import promote
from perdure.store import PerdureError
from tests.cli.runner import process
from tests.cluster.nodes import HOST, SECRET
from tests.cluster.switching import Switching, switching
from tests.support.fuzz import SEED_VARIABLE

SEED = int(os.environ.get(SEED_VARIABLE) or secrets.randbits(32))
VICTIMS = ("asker", "server of the target", "target", "server of the primary", "primary")


def kill_in_the_middle(
    cluster: Switching, victim: str, target: str, delay_s: float, secret: Path
) -> list[str]:
    """Begin a switchover by `perdure switchover`, kill -9 somebody after a while; answers what died."""
    nodes = cluster.cluster
    primary = cluster.primary()
    peers = [
        word
        for name in nodes.names
        if name != target
        for word in ("--peer", f"{name}={HOST}:{nodes.ports[name]}")
    ]
    asker = process(
        "switchover", nodes.path(target), target, *peers, "--secret-file", secret, "--timeout", "3", "--json"
    )
    time.sleep(delay_s)  # whenever: that is what is tested
    dead: list[str] = []
    if victim == "asker":
        asker.kill()
    else:
        name = target if "target" in victim else primary
        parts = ["server"] if "server" in victim else ["server", "shipper", "receiver", "folder"]
        for part in parts:
            dead.append(f"{part}:{name}")
            if part == "server":
                os.kill(cluster.servers[name].pid, signal.SIGKILL)
            else:
                nodes.kill(f"{part}:{name}")
    asker.communicate(timeout=60)
    return dead


def bring_back(cluster: Switching, dead: list[str]) -> None:
    nodes = cluster.cluster
    for part, name in (each.split(":") for each in dead):
        if part == "receiver":
            nodes.start(nodes.receiver(name))
        elif part == "folder":
            nodes.start(nodes.folder_of(name))
        elif part == "shipper":
            cluster.ship(name)
    for name in {each.split(":")[1] for each in dead}:
        cluster.servers.pop(name).stop()
        cluster.serve(name)


def someone_is_primary(cluster: Switching, furthest_first: tuple[str, ...]) -> None:
    """Within the drain's time somebody serves; or nobody may, and a person promotes."""
    nodes = cluster.cluster
    peers = {name: (HOST, port) for name, port in nodes.ports.items()}
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        with cluster.nodes() as found:
            for name in nodes.names:
                with contextlib.suppress(PerdureError):
                    if found.look(name).is_primary:
                        return
        time.sleep(0.1)
    for name in furthest_first:
        with contextlib.suppress(PerdureError):
            promote(nodes.path(name), {key: at for key, at in peers.items() if key != name}, SECRET)
            return
    pytest.fail("nobody is primary, and nobody may become it")


def rounds_of_kills(folder: Path, rounds: int) -> None:
    source = random.Random(SEED)
    secret = folder / "secret"
    secret.write_bytes(SECRET)
    with switching(folder, 3) as cluster:
        cluster.start()
        cluster.begin_writing(2)
        for round_ in range(rounds):
            cluster.await_writes(5)
            primary = cluster.primary()
            target = source.choice([name for name in cluster.cluster.names if name != primary])
            victim = VICTIMS[round_ % len(VICTIMS)]
            # Most of it is the start of the command: from there on every part takes a few ms.
            delay_s = source.uniform(0.3, 1.5)
            print(f"round={round_} victim={victim} target={target} delay_s={delay_s:.3f}")
            dead = kill_in_the_middle(cluster, victim, target, delay_s, secret)
            bring_back(cluster, dead)
            someone_is_primary(cluster, (target, primary))
        cluster.await_writes(5)
        ids, gaps = cluster.stop_writing()
        print(f"acknowledged={len(ids)} longest_gaps_ms={gaps}")
        cluster.check(ids)


@pytest.mark.lab
def test_kill_9_in_the_middle_leaves_a_cluster_that_works_and_has_everything(tmp_path: Path) -> None:
    with noting_seed():
        rounds_of_kills(tmp_path, 5)


@pytest.mark.lab
@pytest.mark.timeout(3600)
def test_kill_9_in_the_middle_of_many_switchovers(tmp_path: Path) -> None:
    with noting_seed():
        rounds_of_kills(tmp_path, 60)


@contextlib.contextmanager
def noting_seed() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(f"{SEED_VARIABLE}={SEED}")
        raise
