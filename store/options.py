"""The options of perdure, as one table: name, type, default, limits with their unit, what each is for.

Owns the table, and what a value of each kind looks like in a file and as text. Checking, `perdure config`,
the page docs/configuration.md and the messages of errors are made from it. It opens no file: config does.
Invariant: an option of the section `store` is a keyword of SessionStore.open with the same default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypedDict, cast

from .errors import UsageError
from .event import VALUE_BYTES_MAX
from .names import NODE_NAME_BYTES_MAX, is_node_name
from .session import DEFAULT_TIMEOUT_MS, LABEL_BYTES_MAX, REFRESH_WINDOW_MS_MAX, TIMEOUT_MS_MAX

STORE: Final = "store"
NODE: Final = "node"
SHIPPING: Final = "shipping"
RECOVERY: Final = "recovery"
SECTIONS: Final = (STORE, NODE, SHIPPING, RECOVERY)
STORES: Final = "stores"
PREFIX: Final = "PERDURE_"
NONE_WORD: Final = "none"
DAY_MS: Final = 86_400_000
AGE_MS_MAX: Final = 100 * 366 * DAY_MS
COUNT_MAX: Final = 1 << 40
PORT_MAX: Final = 65_535
_FLAGS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


class StoreOptions(TypedDict, total=False):
    """What `perdure.open` takes as keywords; `create` is no configuration."""

    backend: str | None
    durability: str
    interval_ms: int
    max_session_size_bytes: int
    write_timeout_ms: int
    refresh_window_ms: int | None
    sweep_interval_ms: int
    home_node: str
    max_sessions: int | None
    compression: str
    compress_min_bytes: int
    keys: Any
    hide_ids: bool
    default_timeout_ms: int | None
    create: bool


@dataclass(frozen=True)
class Kind:
    """A type of values: its name, what a file may give, and how text becomes one."""

    name: str
    types: tuple[type, ...]
    parse: Callable[[str], Any]
    """Raises ValueError."""


def _flag(text: str) -> bool:
    found = _FLAGS.get(text.lower())
    if found is None:
        raise ValueError(text)
    return found


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _nodes(text: str) -> dict[str, str]:
    nodes: dict[str, str] = {}
    for part in _listed(text):
        node, equals, address = part.partition("=")
        if not equals or node in nodes:
            raise ValueError(part)
        nodes[node] = address
    return nodes


INTEGER: Final = Kind("whole number", (int,), int)
TEXT: Final = Kind("text", (str,), str)
FLAG: Final = Kind("true or false", (bool,), _flag)
PATH: Final = Kind("path", (str,), str)
LIST: Final = Kind("list of texts", (list,), _listed)
NODES: Final = Kind("table of node = HOST:PORT", (dict,), _nodes)


@dataclass(frozen=True)
class Option:
    """One option. `least` and `most` are in `unit`; for text they are its length."""

    section: str
    name: str
    kind: Kind
    default: Any
    doc: str
    least: int | None = None
    most: int | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    can_be_none: bool = False
    old_values: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Words of the old system for a value, and ours."""
    test: Callable[[Any], str] | None = None
    """Says what is wrong with a value of the right type, empty if nothing is."""

    @property
    def variable(self) -> str:
        """The environment variable that gives it."""
        return variable_of(self.section, self.name)

    @property
    def key(self) -> str:
        """Its name with the section's."""
        return f"{self.section}.{self.name}"

    @property
    def allowed(self) -> str:
        """What a value may be, as people read it."""
        if self.choices:
            text = f"one of {', '.join(self.choices)}"
        elif self.kind is INTEGER:
            text = f"a whole number from {self.least:,} to {self.most:,}"
            text += f" {self.unit}" if self.unit else ""
        else:
            article = "" if self.kind is FLAG else "a "
            text = f"{article}{self.kind.name}"
            text += f" of at most {self.most} {self.unit}" if self.most is not None else ""
        return text + (f', or "{NONE_WORD}"' if self.can_be_none else "")

    def check(self, value: Any, *, base: Path | None = None) -> Any:
        """The value as the program takes it. A path is taken as relative to `base`.

        Raises ValueError with what is wrong, for a value of another type or out of its limits.
        """
        if isinstance(value, str) and value in self.old_values:
            return self.old_values[value]
        if self.can_be_none and value in (None, NONE_WORD):
            return None
        is_bool = isinstance(value, bool)
        if not isinstance(value, self.kind.types) or is_bool is not (self.kind is FLAG):
            raise ValueError(f"it is {self.allowed}, not {value!r}")
        if self.choices and value not in self.choices:
            raise ValueError(f"it is {self.allowed}, not {value!r}{nearest(str(value), self.choices)}")
        size = _size(value)
        if (self.least is not None and size < self.least) or (self.most is not None and size > self.most):
            raise ValueError(f"it is {self.allowed}, not {value!r}")
        problem = self.test(value) if self.test is not None else ""
        if problem:
            raise ValueError(problem)
        if self.kind is PATH:
            return str(Path(base or ".", Path(str(value)).expanduser()).absolute())
        return value

    def parse(self, text: str) -> Any:
        """The value that a text stands for, checked. Raises ValueError as check."""
        if text in self.old_values or (self.can_be_none and text == NONE_WORD):
            return self.check(text)
        try:
            value = self.kind.parse(text)
        except ValueError as error:
            raise ValueError(f"it is {self.allowed}, not {text!r}") from error
        return self.check(value)


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    return value if isinstance(value, int) else 0


def variable_of(section: str, name: str, store: str = "") -> str:
    """The environment variable of an option, or of a named store's own."""
    parts = ("stores", store.replace("-", "_")) if store else ()
    return PREFIX + "_".join((*parts, *(() if section == STORE else (section,)), name)).upper()


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean X?` for the name that is most like this one, empty if none is."""
    spelt = {known.lower(): known for known in names}
    near = get_close_matches(name.lower(), spelt, n=1, cutoff=0.5)
    return f"; did you mean {spelt[near[0]]!r}?" if near else ""


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT; an IPv6 host stands in brackets. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > PORT_MAX:
        raise UsageError(f"{text!r} is no address", hint="Give HOST:PORT, for example 127.0.0.1:7001.")
    return host, int(port)


def _address_problem(value: str) -> str:
    try:
        parse_address(value)
    except UsageError as error:
        return str(error)
    return ""


def _name_problem(value: str) -> str:
    wants = f"1 to {NODE_NAME_BYTES_MAX} of a-z, 0-9, '.', '-', '_'"
    return "" if is_node_name(value) else f"{value!r} is no node name: {wants}"


def _names_problem(value: list[Any]) -> str:
    if not all(isinstance(name, str) for name in value):
        return "every node name is a text"
    return next(filter(None, map(_name_problem, cast(list[str], value))), "")


def _nodes_problem(value: dict[str, Any]) -> str:
    for node, address in value.items():
        if not isinstance(address, str):
            return f"the address of {node} is a text HOST:PORT, not {address!r}"
        problem = _name_problem(node) or _address_problem(address)
        if problem:
            return problem
    return ""


_OLD_BACKENDS: Final = MappingProxyType({"ets": "memory", "dets": "sqlite", "mnesia": "lmdb"})
OLD_TIMES: Final = MappingProxyType({"infinity": None, "infinite": None})

OPTIONS: Final[tuple[Option, ...]] = (
    # -- the keywords of SessionStore.open
    Option(
        STORE,
        "backend",
        TEXT,
        None,
        "Where a new store keeps its state: lmdb, sqlite, memory, or one that is installed. none: what the "
        "store was made with, lmdb for a new one.",
        1,
        64,
        "bytes",
        can_be_none=True,
        old_values=_OLD_BACKENDS,
    ),
    Option(
        STORE,
        "durability",
        TEXT,
        "os",
        "When a write is on disk: os leaves it to the system, interval says at the latest when, disk "
        "before the call returns.",
        choices=("os", "interval", "disk"),
    ),
    Option(
        STORE,
        "interval_ms",
        INTEGER,
        1000,
        'With durability = "interval": on disk at the latest after so long.',
        1,
        DAY_MS,
        "ms",
    ),
    Option(
        STORE,
        "max_session_size_bytes",
        INTEGER,
        65_536,
        "A larger session is refused before anything is written.",
        1,
        VALUE_BYTES_MAX,
        "bytes",
    ),
    Option(
        STORE,
        "write_timeout_ms",
        INTEGER,
        5000,
        "How long a write waits for its turn, and for the replicas that must confirm it.",
        0,
        DAY_MS,
        "ms",
    ),
    Option(
        STORE,
        "refresh_window_ms",
        INTEGER,
        None,
        "A refresh is written once it moves the deadline by more than this. none: a tenth of the "
        "session's timeout, at most a minute.",
        0,
        REFRESH_WINDOW_MS_MAX,
        "ms",
        can_be_none=True,
    ),
    Option(
        STORE,
        "sweep_interval_ms",
        INTEGER,
        60_000,
        "What has expired is removed so often; 0 is never.",
        0,
        DAY_MS,
        "ms",
    ),
    Option(
        STORE,
        "home_node",
        TEXT,
        "",
        "The home node that new sessions get.",
        0,
        LABEL_BYTES_MAX,
        "bytes",
    ),
    Option(
        STORE,
        "max_sessions",
        INTEGER,
        None,
        "So many sessions at most: a new one evicts the least recently used. none: no limit.",
        1,
        COUNT_MAX,
        "sessions",
        can_be_none=True,
    ),
    Option(
        STORE,
        "compression",
        TEXT,
        "none",
        "How large metadata are stored.",
        choices=("none", "zstd"),
    ),
    Option(
        STORE,
        "compress_min_bytes",
        INTEGER,
        1024,
        "Smaller metadata are not compressed.",
        1,
        VALUE_BYTES_MAX,
        "bytes",
    ),
    Option(
        STORE,
        "keys",
        PATH,
        None,
        "The file of the keys that sessions are encrypted with. none: they are not encrypted.",
        1,
        4096,
        "bytes",
        can_be_none=True,
    ),
    Option(
        STORE,
        "hide_ids",
        FLAG,
        False,
        "With keys: ids and labels are not readable in log, state and snapshots either.",
    ),
    Option(
        STORE,
        "default_timeout_ms",
        INTEGER,
        DEFAULT_TIMEOUT_MS,
        "The idle timeout of a session that is created without one. none: infinite.",
        1,
        TIMEOUT_MS_MAX,
        "ms",
        can_be_none=True,
        old_values=OLD_TIMES,
    ),
    # -- what the commands of a node take
    Option(
        NODE,
        "name",
        TEXT,
        None,
        "The node's name, for `init`.",
        1,
        NODE_NAME_BYTES_MAX,
        "bytes",
        test=_name_problem,
    ),
    Option(
        NODE,
        "listen",
        TEXT,
        None,
        "Where the node listens, HOST:PORT, for `node` and `receive`.",
        3,
        300,
        "bytes",
        test=_address_problem,
    ),
    Option(
        NODE,
        "peers",
        NODES,
        None,
        "Where every other node listens, for `node`, `ship`, `promote` and `status`.",
        test=_nodes_problem,
    ),
    Option(NODE, "secret_file", PATH, None, "The file of the secret that all nodes share.", 1, 4096, "bytes"),
    Option(
        NODE,
        "voters",
        LIST,
        None,
        "The nodes that vote, for `init --primary`.",
        test=_names_problem,
    ),
    Option(
        NODE,
        "sync_replicas",
        INTEGER,
        0,
        "How many replicas confirm each write, for `init --primary`.",
        0,
        64,
        "nodes",
    ),
    Option(SHIPPING, "compress", FLAG, True, "Sealed segments go over the wire compressed with zstd."),
    Option(
        SHIPPING,
        "slot_budget_bytes",
        INTEGER,
        4 << 30,
        "So much log is kept for a replica that is away; one that lacks more gets a snapshot.",
        1 << 20,
        1 << 50,
        "bytes",
    ),
    Option(
        RECOVERY,
        "snapshot_interval_ms",
        INTEGER,
        60_000,
        "A node process takes a snapshot so often; 0 is never.",
        0,
        AGE_MS_MAX,
        "ms",
    ),
    Option(
        RECOVERY,
        "snapshots_kept",
        INTEGER,
        3,
        "So many of the newest snapshots stay.",
        1,
        1_000_000,
        "snapshots",
    ),
    Option(
        RECOVERY,
        "retention_interval_ms",
        INTEGER,
        60_000,
        "A node process drops log and snapshots that nobody needs so often; 0 is never.",
        0,
        AGE_MS_MAX,
        "ms",
    ),
    Option(
        RECOVERY,
        "log_age_ms",
        INTEGER,
        DAY_MS,
        "Log that is younger stays, whoever needs it.",
        0,
        AGE_MS_MAX,
        "ms",
    ),
    Option(
        RECOVERY,
        "consumer_budget_bytes",
        INTEGER,
        4 << 30,
        "So much log is kept for a consumer of the event feed that is behind.",
        1 << 20,
        1 << 50,
        "bytes",
    ),
    Option(
        RECOVERY,
        "consumer_age_ms",
        INTEGER,
        7 * DAY_MS,
        "A consumer that is behind and has acknowledged nothing for so long holds no log.",
        0,
        AGE_MS_MAX,
        "ms",
    ),
    Option(
        RECOVERY,
        "snapshot_age_ms",
        INTEGER,
        0,
        "Snapshots that are younger stay, too.",
        0,
        AGE_MS_MAX,
        "ms",
    ),
)

_TABLE: Final = {(option.section, option.name): option for option in OPTIONS}
STORE_PATH: Final = Option(STORES, "path", PATH, None, "The directory of the store.", 1, 4096, "bytes")


def option(section: str, name: str) -> Option:
    """An option by its section and name. Raises UsageError, with the nearest one, if there is none."""
    found = _TABLE.get((section, name))
    if found is None:
        names = names_of(section)
        raise UsageError(f"there is no option {section}.{name}{nearest(name, names)}")
    return found


def find_option(section: str, name: str) -> Option | None:
    return _TABLE.get((section, name))


def names_of(section: str) -> list[str]:
    """The names of a section's options, in the table's order."""
    return [option.name for option in OPTIONS if option.section == section]


def home_path(text: str | os.PathLike[str]) -> Path:
    """A path as it is compared with others: absolute, links followed."""
    return Path(text).expanduser().resolve()
