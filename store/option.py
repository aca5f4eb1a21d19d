"""What an option is: its kind of values, its limits, how text becomes a value, and what is wrong with one.

Owns the check of one value, and the names of variables. The options themselves stand in options. Pure but for
paths, which are made absolute.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

from .errors import UsageError
from .names import NODE_NAME_BYTES_MAX, is_node_name

STORE: Final = "store"
PREFIX: Final = "PERDURE_"
NONE_WORD: Final = "none"
PORT_MAX: Final = 65_535
HOST_PART_CHARS_MAX: Final = 63
"""Between two dots of a host's name."""
_URL: Final = re.compile(r"https?://[A-Za-z0-9.\-\[\]:_]{1,300}/?\Z")
_FLAGS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


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
KEYS: Final = Kind("path of a key file, or the text of one", (str,), str)
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
    words: tuple[str, ...] = ()
    """Texts that are taken beside values of the kind."""
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
        words = (*self.words, *((NONE_WORD,) if self.can_be_none else ()))
        return text + "".join(f', or "{word}"' for word in words)

    def check(self, value: Any, *, base: Path | None = None) -> Any:
        """The value as the program takes it. A path is taken as relative to `base`.

        Raises ValueError with what is wrong, for a value of another type or out of its limits.
        """
        if isinstance(value, str) and value in self.old_values:
            return self.old_values[value]
        if isinstance(value, str) and value in self.words:
            return value
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
        if self.kind is PATH or (self.kind is KEYS and not str(value).lstrip().startswith("{")):
            return str(Path(base or ".", Path(str(value)).expanduser()).absolute())
        return value

    def parse(self, text: str) -> Any:
        """The value that a text stands for, checked. Raises ValueError as check."""
        if text in self.old_values or text in self.words or (self.can_be_none and text == NONE_WORD):
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
    host, port = split_address(text)
    parts = host.removesuffix(".").split(".")
    if not all(0 < len(part) <= HOST_PART_CHARS_MAX for part in parts):
        raise UsageError(
            f"{text!r} is no address: a part of the host's name is empty, or longer than "
            f"{HOST_PART_CHARS_MAX} characters",
            hint="Give HOST:PORT, for example node2.example.net:7001.",
        )
    return host, port


def split_address(text: str) -> tuple[str, int]:
    """As parse_address, whatever the host's name is: for what was written down already."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > PORT_MAX:
        raise UsageError(f"{text!r} is no address", hint="Give HOST:PORT, for example 127.0.0.1:7001.")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """What parse_address takes."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_problem(value: str) -> str:
    try:
        parse_address(value)
    except UsageError as error:
        return str(error)
    return ""


def name_problem(value: str) -> str:
    wants = f"1 to {NODE_NAME_BYTES_MAX} of a-z, 0-9, '.', '-', '_'"
    return "" if is_node_name(value) else f"{value!r} is no node name: {wants}"


def names_problem(value: list[Any]) -> str:
    if not all(isinstance(name, str) for name in value):
        return "every node name is a text"
    return next(filter(None, map(name_problem, cast(list[str], value))), "")


def urls_problem(value: list[Any]) -> str:
    wrong = [url for url in value if not isinstance(url, str) or not _URL.match(url)]
    return f"{wrong[0]!r} is no URL: http://HOST:PORT or https://HOST:PORT" if wrong else ""


def nodes_problem(value: dict[str, Any]) -> str:
    for node, address in value.items():
        if not isinstance(address, str):
            return f"the address of {node} is a text HOST:PORT, not {address!r}"
        problem = name_problem(node) or address_problem(address)
        if problem:
            return problem
    return ""
