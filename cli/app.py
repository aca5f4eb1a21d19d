"""The command `perdure`: every command group in one place, and the way in.

Owns the list of commands. A command itself stands in the file of its name; it parses, calls a room, renders
what that answers, and sets the exit code.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command_name
from typer.models import CommandInfo

from .. import __version__
from ..store import UsageError
from ..store.config import FILE_VARIABLE as CONFIG_VARIABLE
from ..store.option import variable_of
from . import config as config_commands
from . import diverged, feed, group, keys, log, member, orphans, render, retention, session, snapshot, tls
from .bench import bench
from .demo.command import demo
from .failover import failover
from .health import health, monitor, unmonitor
from .init import init
from .locate import locate
from .migrate import migrate
from .node import node
from .options import set_variables
from .promote import promote
from .receive import receive
from .reconcile import consistency, reconcile
from .rejoin import rejoin
from .repair import repair
from .replay import replay
from .ship import ship
from .status import status
from .stores import stores
from .switchover import failback, switchover
from .sync import ensure_synced, flush, sync
from .transfer import export, import_
from .transfers import transfer, transfers
from .verify import verify
from .wait import wait
from .watch import watch
from .witness import witness

app = typer.Typer(
    name="perdure",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 fine, 1 findings, 2 usage, 3 not primary or locked or fenced, 4 corrupt, 5 I/O, "
    "6 indeterminate.",
)

app.command()(init)
app.command()(node)
app.command()(ship)
app.command()(receive)
app.command()(witness)
app.add_typer(snapshot.group, name="snapshot")
app.command()(replay)
app.command()(verify)
app.command()(migrate)
app.command()(repair)
app.command()(promote)
app.command()(rejoin)
app.command()(switchover)
app.command()(failback)
app.command()(failover)
app.command()(health)
app.command()(monitor)
app.command()(unmonitor)
app.add_typer(member.group, name="member")
app.command()(status)
app.command()(sync)
app.command()(flush)
app.command()(ensure_synced)
app.command()(transfers)
app.command()(transfer)
app.command()(wait)
app.command()(locate)
app.command()(consistency)
app.command()(reconcile)
app.add_typer(keys.group, name="keys")
app.add_typer(log.group, name="log")
app.add_typer(tls.group, name="tls")
app.add_typer(retention.group, name="retention")
app.add_typer(diverged.group, name="diverged")
session.group.command("watch")(watch)
app.add_typer(session.group, name="session")
app.add_typer(group.group, name="group")
app.add_typer(orphans.group, name="orphans")
app.command()(export)
app.command("import")(import_)
app.add_typer(config_commands.group, name="config")
app.command()(stores)
app.add_typer(feed.group, name="feed")
app.command()(bench)
app.command()(demo)


def _say_version(is_asked: bool) -> None:
    if is_asked:
        print(f"perdure {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="The configuration file, in place of DIR/perdure.toml."
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="This node's certificate, for TLS.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="The key of that certificate.")
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option("--tls-ca", metavar="FILE", help="The CA of the cluster's certificates.")
    ] = None,
    allow_plain: Annotated[
        bool,
        typer.Option("--allow-plain", help="A secret without TLS will do on any address, not just loopback."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Say the version and end.", is_eager=True, callback=_say_version),
    ] = False,
) -> None:
    """Durable, replicated session storage: an append-only log, its state, and replicas."""
    paths = {
        CONFIG_VARIABLE: config,
        variable_of("node", "tls_cert"): tls_cert,
        variable_of("node", "tls_key"): tls_key,
        variable_of("node", "tls_ca"): tls_ca,
    }
    given = {variable: str(path.absolute()) for variable, path in paths.items() if path is not None}
    if allow_plain:
        given[variable_of("node", "allow_plain")] = "true"
    set_variables(context, given)


ROOT_VALUES = frozenset({"--config", "--tls-cert", "--tls-key", "--tls-ca"})
"""Options of the root that take a value."""
ROOT_FLAGS = frozenset({"--allow-plain"})


def narrowed(words: Sequence[str]) -> typer.Typer:
    """The app with only the command that a command line names: building all of them takes longer than most
    commands do. The whole app if it names none."""
    name = _command_of(words)
    commands = [one for one in app.registered_commands if _name_of(one) == name]
    groups = [one for one in app.registered_groups if one.name == name]
    if not commands and not groups:
        return app
    narrow = copy.copy(app)
    narrow.registered_commands, narrow.registered_groups = commands, groups
    return narrow


def _command_of(words: Sequence[str]) -> str:
    """The first word behind the root's options; empty if there is none, or one is not understood."""
    rest = iter(words)
    for word in rest:
        if word in ROOT_VALUES:
            next(rest, None)
        elif word.partition("=")[0] in ROOT_VALUES or word in ROOT_FLAGS:
            continue
        else:
            return word
    return ""


def _name_of(command: CommandInfo) -> str:
    return command.name or get_command_name(command.callback.__name__ if command.callback else "")


def main() -> None:
    """Run the command line, and end the process with its exit code.

    With --json a command line that cannot be parsed is said as JSON, too.
    """
    app = narrowed(sys.argv[1:])
    name = "perdure" if not sys.argv[0].endswith(".py") else None
    if "--json" not in sys.argv[1:]:
        app(prog_name=name)
    try:
        sys.exit(app(prog_name=name, standalone_mode=False))
    except typer.TyperException as error:
        known = {"error": UsageError.__name__, "message": error.format_message(), "code": error.exit_code}
        render.failure(known, as_json=True)
        sys.exit(error.exit_code)
