"""`perdure consistency` and `perdure reconcile`: do all nodes hold the same sessions; if not, mend them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from . import render
from .exits import Exit, leave, reporting
from .options import AsJson, Directory, Peers, SecretFile
from .settings import Settings

if TYPE_CHECKING:
    from ..recovery import Comparison

COLUMNS = ("node", "is_right", "sessions", "digest", "differing", "mended", "problem")
DIFFERENCE_COLUMNS = ("node", "key", "what")


@reporting
def consistency(
    directory: Directory, peer: Peers = None, secret_file: SecretFile = None, as_json: AsJson = False
) -> None:
    """Check that this node and its peers hold the same sessions, at one position of the log.

    Reads every session on every node; nothing is changed. The log says which digest the sessions have there,
    so a node that is wrong is told from one that is right. Exit code 1 where one differs or cannot be asked.

    \b
    Example:
      perdure consistency /srv/n1 --peer n2=10.0.0.2:7001 --peer n3=10.0.0.3:7001
    """
    from ..recovery import check_consistency

    reach = Settings(directory).reach(peer, secret_file)
    with render.phases() as on_progress:
        found = check_consistency(directory, reach, on_progress=on_progress)
    _show(found, as_json)


@reporting
def reconcile(
    directory: Directory,
    repairs: Annotated[
        bool, typer.Option("--repair", help="Mend what differs; without it, only say what would be mended.")
    ] = False,
    peer: Peers = None,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
) -> None:
    """Say which sessions differ between nodes; with --repair, put them right on the nodes that are wrong.

    The right records come from a node that has what the log says. Each one leaves a line in `audit.log` of
    the node that was mended; then all are compared again. Exit code 0 says that all are right (now).

    \b
    Example:
      perdure reconcile /srv/n1 --peer n2=10.0.0.2:7001
      perdure reconcile /srv/n1 --peer n2=10.0.0.2:7001 --repair
    """
    from ..recovery import reconcile as reconcile_nodes

    reach = Settings(directory).reach(peer, secret_file)
    with render.phases() as on_progress:
        found = reconcile_nodes(directory, reach, repairs=repairs, on_progress=on_progress)
    _show(found, as_json, is_dry=not repairs)


def values_of(found: Comparison) -> dict[str, Any]:
    """A comparison under stable keys."""
    return {
        "is_consistent": found.is_consistent,
        "epoch": found.at.epoch,
        "lsn": found.at.lsn,
        "sessions": found.at.session_count,
        "digest": f"{found.at.digest:016x}",
        "reference": found.reference,
        "differing": sum(verdict.differing for verdict in found.nodes),
        "mended": sum(verdict.mended for verdict in found.nodes),
        "nodes": [msgspec.to_builtins(verdict) | {"differing": verdict.differing} for verdict in found.nodes],
        "elapsed_ms": found.elapsed_ms,
    }


def _show(found: Comparison, as_json: bool, *, is_dry: bool = False) -> None:
    values = values_of(found)
    if as_json:
        render.write_json(values)
    else:
        render.result({name: value for name, value in values.items() if name != "nodes"}, as_json=False)
        print("\nnodes")
        render.rows(values["nodes"], as_json=False, columns=COLUMNS, key="nodes")
        named = [
            {"node": verdict.node, "key": row.key, "what": row.what}
            for verdict in found.nodes
            for row in verdict.differences
        ]
        if named:
            print("\ndifferences")
            render.rows(named, as_json=False, columns=DIFFERENCE_COLUMNS, key="differences")
        if is_dry and values["differing"]:
            render.note("Nothing was changed; --repair puts them right.")
    leave(Exit.FINE if found.is_consistent else Exit.FINDINGS)
