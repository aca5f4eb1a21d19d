"""`perdure demo`: a real cluster on this machine, its primary killed, and the proof that nothing is lost."""

from __future__ import annotations

import secrets
import shutil
import signal
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ...store import UsageError
from .. import render
from ..exits import Exit, leave, reporting
from ..options import AsJson, BackendName

if TYPE_CHECKING:
    from .failover_demo import FailoverDemoOptions
    from .failovers import FailoverReport
    from .report import DemoOptions, Outcome

SESSIONS = 10_000
WRITERS = 4
WRITERS_MAX = 64
NODES = 3
NODES_MAX = 9
FAILOVERS = 3
SECONDS = 5.0
SEED_BITS = 32


@reporting
def demo(
    access_log: Annotated[
        Path | None,
        typer.Option(
            "--access-log",
            metavar="FILE",
            help="Drive this access log (Apache common or combined, plain or gzip).",
        ),
    ] = None,
    sessions: Annotated[
        int | None,
        typer.Option(
            "--sessions", min=1, help=f"How many sessions are alive ({SESSIONS} unless told); not with a log."
        ),
    ] = None,
    writers: Annotated[
        int | None,
        typer.Option(
            "--writers",
            min=1,
            max=WRITERS_MAX,
            help=f"How many app processes write ({WRITERS} unless told; one a node with --failovers).",
        ),
    ] = None,
    backend: BackendName = "lmdb",
    sync_replicas: Annotated[
        int | None,
        typer.Option(
            "--sync-replicas",
            min=0,
            help="How many replicas confirm each write (half of the nodes unless told).",
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            "--nodes", min=3, max=NODES_MAX, help=f"How many node processes, for --failovers ({NODES})."
        ),
    ] = None,
    coordinator: Annotated[
        Literal["quorum", "etcd", "manual"] | None,
        typer.Option("--coordinator", help="Who has a replica promoted, for --failovers (quorum)."),
    ] = None,
    failovers: Annotated[
        int | None,
        typer.Option(
            "--failovers",
            min=0,
            max=1000,
            help=f"Run nodes, and kill whoever is primary so often ({FAILOVERS}).",
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds", min=0.2, max=3600, help="About how long made-up traffic runs before the kill."
        ),
    ] = SECONDS,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the traffic and of the moment of the kill.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="NEW_DIR", help="Work here, and leave everything for a look."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Kill a primary in the middle of real traffic, promote a replica, and prove that nothing is lost.

    One app process for each writer embeds the store; a shipper sends its log to two replicas. All of the
    primary's processes die by kill -9, its directory is moved away, the furthest replica takes over, the
    app goes on there, and what the app knows was acknowledged is compared with what is there. Exit code 1
    says that something was lost or does not agree; with --sync-replicas 0 that is to be expected.

    With --failovers, --nodes or --coordinator the nodes are `perdure node` processes that choose a new
    primary by themselves (`manual`: by `perdure promote`), writers on every node follow it, and each node
    that was killed is started again.

    \b
    Example:
      perdure demo --writers 2 --sessions 2000
      perdure demo --access-log access.log.gz --json
      perdure demo --nodes 3 --coordinator quorum --failovers 10 --json
    """
    if (nodes, coordinator, failovers) != (None, None, None):
        if access_log is not None or sessions is not None:
            raise UsageError(
                "--failovers brings its own traffic", hint="Leave --access-log and --sessions out."
            )
        _fail_over(nodes, coordinator, failovers, writers, sync_replicas, seed, keep, as_json=as_json)
        return
    from .report import DemoOptions, is_proven, summary
    from .report import as_json as report_as_json
    from .traffic import Plan, operations

    if access_log is not None and sessions is not None:
        raise UsageError("--sessions is for made-up traffic; an access log brings its own")
    chosen = secrets.randbits(SEED_BITS) if seed is None else seed
    if sync_replicas is not None and sync_replicas >= NODES:
        raise UsageError(f"--sync-replicas {sync_replicas}: the demo has {NODES - 1} replicas")
    count = writers or WRITERS
    plan = Plan(seed=chosen, sessions=max(sessions or SESSIONS, count), writers=count)
    operations(plan, 0)  # refuses a plan out of its bounds
    k = 1 if sync_replicas is None else sync_replicas
    outcome = _play(DemoOptions(plan, access_log, backend, k, seconds), keep)
    if as_json:
        render.write_json(report_as_json(outcome))
    else:
        for line in summary(outcome):
            print(line)
    leave(Exit.FINE if is_proven(outcome) else Exit.FINDINGS)


def _fail_over(
    nodes: int | None,
    coordinator: str | None,
    failovers: int | None,
    writers: int | None,
    sync_replicas: int | None,
    seed: int | None,
    keep: Path | None,
    *,
    as_json: bool,
) -> None:
    """The demo of many failovers. Leaves with FINDINGS unless everything is as it was promised."""
    from .failover_demo import FailoverDemoOptions, summary
    from .failover_demo import as_json as report_as_json

    options = FailoverDemoOptions(
        nodes=nodes or NODES,
        coordinator=coordinator or "quorum",
        failovers=FAILOVERS if failovers is None else failovers,
        sync_replicas=sync_replicas,
        writers=writers,
        seed=secrets.randbits(SEED_BITS) if seed is None else seed,
    )
    if sync_replicas is not None and sync_replicas >= options.nodes:
        raise UsageError(f"--sync-replicas {sync_replicas}: there are {options.nodes - 1} replicas")
    report = _play_failovers(options, keep)
    if as_json:
        render.write_json(report_as_json(report))
    else:
        for line in summary(report):
            print(line)
    leave(Exit.FINE if report.is_proven else Exit.FINDINGS)


def _play_failovers(options: FailoverDemoOptions, keep: Path | None) -> FailoverReport:
    from .failover_demo import run_failovers
    from .live import Screen

    with _directory(keep) as root, _terminable(), Screen() as screen:
        return run_failovers(options, root, screen)


def _play(options: DemoOptions, keep: Path | None) -> Outcome:
    """Run a demo in its directory, and on the screen. Raises what fails, when everything was ended."""
    from .live import Screen
    from .run import Demo

    with _directory(keep) as root, _terminable(), Screen() as screen:
        return Demo(options, root, screen).run()


@contextmanager
def _directory(keep: Path | None) -> Generator[Path, None, None]:
    """The demo's directory: a temporary one that goes away, or a new one that stays."""
    if keep is None:
        root = Path(tempfile.mkdtemp(prefix="perdure-demo-"))
        try:
            yield root
        finally:
            shutil.rmtree(root, ignore_errors=True)
        return
    if keep.exists() and any(keep.iterdir()):
        raise UsageError(f"{keep} is not empty", hint="Give a directory that is empty or does not exist yet.")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep


@contextmanager
def _terminable() -> Generator[None, None, None]:
    """Let SIGTERM end the demo as Ctrl-C does: in order, with everything cleaned up.

    An exception that a signal raises where Python can only report it, as in a finalizer, is gone: then the
    end of the demo says that it was interrupted.
    """
    asked: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt
