"""`perdure promote`: make a node the primary, by the promises of the others."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import typer

from ..shipping.nodelog import is_running
from ..store import names
from . import render
from .exits import reporting
from .options import AsJson, Directory, Peers, SecretFile
from .settings import Settings

_START: Final = (
    "The processes of {node} do not run: it ships nothing, and no other node can ask it. Start them: "
    "perdure node {directory} --listen HOST:PORT, with --replica NODE=HOST:PORT for each other node."
)


@reporting
def promote(
    directory: Directory,
    peer: Peers = None,
    accept_data_loss: Annotated[
        bool,
        typer.Option(
            "--accept-data-loss", help="Allow what may lose acknowledged writes; with k = 0 always needed."
        ),
    ] = False,
    is_alone: Annotated[
        bool,
        typer.Option("--alone", help="Make it the only voter: of two nodes, the other one is gone for good."),
    ] = False,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Make this node the primary.

    Name every other voter with --peer; those that answer promise it the next epoch, and fence the old
    primary. What one of them has more of the log is fetched first. Exit code 3 says that it may not be
    promoted, and why: promote another node instead, or bring back enough voters. Its processes
    (`perdure node`) then ship from it; where they do not run, that is said.

    \b
    Example:
      perdure promote /srv/n2 --peer n1=10.0.0.1:7001 --peer n3=10.0.0.3:7001
    """
    from ..recovery import promote as promote_node
    from ..recovery.candidacy import candidacy

    reach = Settings(directory).reach(peer, secret_file)
    with render.steps() as say, candidacy(directory) as end_turn:

        def on_step(step: str) -> None:
            say(step)
            end_turn(step)

        report = promote_node(
            directory,
            reach.peers,
            reach.secret,
            accept_data_loss=accept_data_loss,
            alone=is_alone,
            on_step=on_step,
        )
    is_up = is_running(directory, names.RECEIVER_LOCK)
    values = msgspec.to_builtins(report) | {
        "start": str(report.start),
        "before": str(report.before),
        "is_running": is_up,
    }
    hint = "" if is_up else _START.format(node=report.node, directory=directory)
    if hint and as_json:
        values["hint"] = hint
    render.result(values, as_json=as_json, title=_title(report.node, report.epoch, report.was_primary))
    if hint:
        render.note(hint, as_json=as_json)


def _title(node: str, epoch: int, was_primary: bool) -> str:
    return (
        f"{node} was primary of epoch {epoch} already"
        if was_primary
        else f"{node} is primary of epoch {epoch}"
    )
