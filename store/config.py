"""Configuration: one TOML file, environment variables and keyword arguments, under one precedence.

Owns where values come from: keyword, then environment, then file, then default; a named store's own before
what stands for all stores. What there is to configure is the table in options; what old names mean is
old_options'. Invariant: a value that is handed out was checked, and every problem names the file or variable,
the key, and what is allowed. Reading changes nothing.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from .errors import UsageError
from .files import read_small
from .names import CONFIG_FILE
from .old_options import OLD_OPTIONS, OldOption
from .option import PREFIX, STORE, Option, nearest, variable_of
from .options import (
    FAILOVER,
    NODE,
    OPTIONS,
    RECOVERY,
    SECTIONS,
    SHIPPING,
    STORE_PATH,
    STORES,
    find_option,
    home_path,
    names_of,
    option,
)

logger = logging.getLogger(__name__)

FILE_VARIABLE: Final = PREFIX + "CONFIG"
OTHER_VARIABLES: Final = frozenset({FILE_VARIABLE, PREFIX + "SECRET", PREFIX + "TRACEBACK"})
"""Variables that are no options."""
FILE_BYTES_MAX: Final = 1 << 20
_STORE_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")

Key: TypeAlias = "tuple[str, str, str]"
"""(name of a store, empty for all; section; option)."""


@dataclass(frozen=True)
class Setting:
    """A value, and where it comes from."""

    value: Any
    source: str
    """`keyword`, `environment`, `file` or `default`."""
    where: str = ""
    """The variable, or the section of the file."""


@dataclass(frozen=True)
class Note:
    """Something of a configuration that works, but not as its words say."""

    where: str
    key: str
    text: str


@dataclass
class Configuration:
    """What a file and the environment give; keywords come on top where a value is asked for."""

    file: Path | None = None
    in_file: dict[Key, Setting] = field(default_factory=dict)
    in_environment: dict[Key, Setting] = field(default_factory=dict)
    stores: dict[str, Path] = field(default_factory=dict)
    """Directories of the named stores."""
    notes: list[Note] = field(default_factory=list)
    problems: list[UsageError] = field(default_factory=list)

    def setting(self, section: str, name: str, store: str = "") -> Setting:
        """The value of an option (its default if nothing gives one), for a named store or in general.

        Raises UsageError if there is no such option.
        """
        known = option(section, name)
        for level in (self.in_environment, self.in_file):
            for scope in dict.fromkeys((store, "")):
                found = level.get((scope, section, name))
                if found is not None:
                    return found
        return Setting(known.default, "default")

    def given(self, section: str, store: str = "") -> dict[str, Any]:
        """The options of a section that something gives, by name."""
        settings = {name: self.setting(section, name, store) for name in names_of(section)}
        return {name: found.value for name, found in settings.items() if found.source != "default"}

    def path_of(self, name: str) -> Path:
        """The directory of a named store. Raises UsageError, with the nearest name, if there is none."""
        path = self.stores.get(name)
        if path is None:
            hint = f"Named stores stand as [stores.NAME] with a path in the configuration: {self.file}."
            if self.file is None:
                hint = (
                    f"No configuration is named. Say which file has [stores.{name}] with its path: "
                    f"`perdure --config FILE COMMAND @{name}`, {FILE_VARIABLE}, or config=FILE in Python."
                )
            raise UsageError(
                f"there is no store @{name}{nearest(name, self.stores)}", path=self.file, hint=hint
            )
        return path

    def name_of(self, directory: str | os.PathLike[str]) -> str:
        """The name under which a directory is a named store, empty if it is none."""
        if not self.stores:
            return ""
        wanted = home_path(directory)
        return next((name for name, path in self.stores.items() if home_path(path) == wanted), "")

    def require(self) -> Configuration:
        """Itself, with its notes logged; raises the first problem if there is one."""
        if self.problems:
            raise self.problems[0]
        for note in self.notes:
            logger.warning("%s: %s: %s", note.where, note.key, note.text)
        return self


def load_config(
    config: str | os.PathLike[str] | Configuration | None = None,
    *,
    directory: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Configuration:
    """Read the configuration: the file `config`, else PERDURE_CONFIG, else perdure.toml in the store's
    `directory`, else none; and the environment.

    Raises UsageError, naming file, key and what is allowed, StorageError if a file cannot be read.
    """
    if isinstance(config, Configuration):
        return config
    return inspect_config(config, directory=directory, environ=environ).require()


def inspect_config(
    config: str | os.PathLike[str] | None = None,
    *,
    directory: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Configuration:
    """As load_config, but what is wrong in it is listed as `problems` and not raised.

    Raises UsageError for a file that is missing or no TOML, StorageError if it cannot be read.
    """
    variables = os.environ if environ is None else environ
    found = Configuration()
    data = None
    named = config if config is not None else variables.get(FILE_VARIABLE) or None
    if named is not None:
        found.file = Path(named).expanduser().absolute()
        data = read_small(found.file, FILE_BYTES_MAX)
        if data is None:
            by = "" if config is not None else f" (as --config or {FILE_VARIABLE} says)"
            raise UsageError(f"there is no configuration file{by}", path=found.file)
    elif directory is not None:
        path = Path(directory).absolute() / CONFIG_FILE
        data = read_small(path, FILE_BYTES_MAX) if os.path.isfile(path) else None
        found.file = path if data is not None else None
    if data is not None and found.file is not None:
        _FileReader(found, found.file).read(_parsed(data, found.file))
    _read_environment(found, variables)
    return found


def with_keywords(given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The options `given` by a configuration, and keyword arguments on top; old names are understood.

    Keywords are SessionStore.open's to check. Raises UsageError for a name that no option has.
    """
    names = names_of(STORE)
    notes = Configuration()
    merged: dict[str, Any] = {}
    givers: dict[str, str] = {}
    for name, value in values.items():
        if name in names or name == "create":
            ours = {name: value}
        elif name in OLD_OPTIONS:
            ours = _old_keyword(notes, OLD_OPTIONS[name], value)
        else:
            raise UsageError(f"there is no option {name!r}{nearest(name, names)}")
        for key, mapped in ours.items():
            if key in merged:
                raise UsageError(
                    f"{name} gives {key}, which {givers[key]} gives already", hint="Give one of them."
                )
            merged[key], givers[key] = _without_old_word(key, mapped), name
    notes.require()
    return {**given, **merged}


def _old_keyword(notes: Configuration, old: OldOption, value: Any) -> dict[str, Any]:
    """What an old option gives as a keyword: options of a store alone. Raises UsageError."""
    try:
        values = _old_values(notes, old, value, "keyword", {STORE})
    except ValueError as error:
        raise UsageError(f"{old.name}: {error}") from error
    return {name: mapped for (section, name), mapped in values.items() if section == STORE}


def _without_old_word(name: str, value: Any) -> Any:
    """A keyword's value, ours where it is a word of the old system."""
    known = find_option(STORE, name)
    return known.old_values.get(value, value) if known and isinstance(value, str) else value


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    if len(data) > FILE_BYTES_MAX:
        raise UsageError(f"a configuration file has at most {FILE_BYTES_MAX} bytes", path=path)
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the configuration is not TOML: {error}", path=path) from error


def _old_values(
    found: Configuration,
    old: OldOption,
    value: Any,
    where: str,
    within: Collection[str] = (*SECTIONS, STORES),
) -> dict[tuple[str, str], Any]:
    """What an old option gives, noted; `within` are the sections that can be given in that place.

    Raises ValueError for a value of another type.
    """
    checked = old.shape.check(value) if not isinstance(value, _Text) else old.shape.parse(value)
    try:
        values = dict(old.gives(checked))
    except ValueError as error:
        message = error.message if isinstance(error, UsageError) else str(error)
        found.notes.append(Note(where, old.name, f"it has no effect: {message}"))
        return {}
    is_named = old.name in ("table_name", "file_path")
    has_effect = any(section in within for section, _ in values) if values or is_named else old.has_effect
    if old.has_effect and not has_effect:
        found.notes.append(Note(where, old.name, f"it has no effect here: {old.ours}"))
    elif old.has_effect:
        found.notes.append(Note(where, old.name, f"an old name, understood as {old.ours}"))
    else:
        found.notes.append(Note(where, old.name, f"it has no effect: {old.ours}"))
    return values


class _Text(str):
    """A value from the environment, still to be parsed."""


class _FileReader:
    """Reads one file's tables into a configuration."""

    def __init__(self, found: Configuration, path: Path) -> None:
        self._found = found
        self._path = path
        self._old_store: dict[str, str] = {}

    def read(self, document: dict[str, Any]) -> None:
        for name, value in document.items():
            if name in SECTIONS:
                self._read_section("", name, value)
            elif name == STORES:
                self._read_stores(value)
            elif name in OLD_OPTIONS:
                self._read_old("", "", OLD_OPTIONS[name], value)
            else:
                inside = [section for section in SECTIONS if find_option(section, name)]
                hint = f"It belongs into [{inside[0]}]." if inside else ""
                near = nearest(name, (*SECTIONS, STORES, *OLD_OPTIONS))
                self._problem(f"there is no section {name!r}{near}", hint)
        self._make_old_store()

    def _read_stores(self, table: Any) -> None:
        for name, value in self._items("[stores]", table):
            if not _STORE_NAME.match(name):
                self._problem(f"{name!r} is no name of a store: a-z, then up to 31 of a-z, 0-9 and '-'")
                continue
            for key, inner in self._items(f"[stores.{name}]", value):
                if key in (NODE, SHIPPING, RECOVERY, FAILOVER):
                    self._read_section(name, key, inner)
                elif key == STORE_PATH.name:
                    self._read_path(name, key, inner)
                else:
                    self._read_option(name, STORE, key, inner)
            if name not in self._found.stores:
                self._problem(f"[stores.{name}] has no path", "Give the directory of the store.")

    def _read_section(self, scope: str, section: str, table: Any) -> None:
        for key, value in self._items(_title(scope, section), table):
            self._read_option(scope, section, key, value)

    def _read_option(self, scope: str, section: str, name: str, value: Any) -> None:
        known = find_option(section, name)
        where = _title(scope, section)
        if known is not None:
            self._set(scope, known, value, where)
        elif name in OLD_OPTIONS:
            self._read_old(scope, where, OLD_OPTIONS[name], value)
        else:
            elsewhere = [other for other in SECTIONS if find_option(other, name)]
            hint = f"It belongs into [{elsewhere[0]}]." if elsewhere else ""
            self._problem(f"there is no option {name!r} in {where}{nearest(name, names_of(section))}", hint)

    def _read_path(self, store: str, key: str, value: Any) -> None:
        try:
            path = Path(STORE_PATH.check(value, base=self._path.parent))
        except ValueError as error:
            self._problem(f"{key} in [stores.{store}]: {error}")
            return
        other = self._found.name_of(path)
        if other:
            self._problem(f"[stores.{store}] and [stores.{other}] have one path", "A store has one name.")
        self._found.stores[store] = path

    def _read_old(self, scope: str, where: str, old: OldOption, value: Any) -> None:
        place = f"{self._path} {where}".rstrip()
        if not scope and old.name in ("table_name", "file_path"):
            if isinstance(value, str):
                self._old_store[old.name] = value
            else:
                self._problem(f"{old.name}: it is a text, not {value!r}")
            return
        try:
            values = _old_values(self._found, old, value, place)
        except ValueError as error:
            self._problem(f"{old.name}: {error}")
            return
        for (section, name), mapped in values.items():
            if section == STORES:
                self._read_path(scope, name, mapped)
            else:
                self._set(scope, option(section, name), mapped, where or "at the top", by=old.name)

    def _make_old_store(self) -> None:
        """A table name and a file path are a named store together, and nothing alone."""
        if len(self._old_store) == 2:
            name = self._old_store["table_name"].replace("_", "-")
            if not _STORE_NAME.match(name):
                self._problem(f"table_name: {name!r} is no name of a store")
                return
            if name in self._found.stores:
                self._problem(
                    f"table_name, file_path and [stores.{name}] give one store", "Give one of them."
                )
            self._read_path(name, "file_path", self._old_store["file_path"])
            self._found.notes.append(
                Note(
                    str(self._path), "table_name, file_path", f"old names, understood as [stores.{name}] path"
                )
            )
        for name in self._old_store if len(self._old_store) == 1 else ():
            self._found.notes.append(
                Note(str(self._path), name, f"it has no effect alone: {OLD_OPTIONS[name].ours}")
            )

    def _set(self, scope: str, known: Option, value: Any, where: str, by: str = "") -> None:
        name = by or known.name
        try:
            checked = known.check(value, base=self._path.parent)
        except ValueError as error:
            self._problem(f"{name} in {where}: {error}")
            return
        key = (scope, known.section, known.name)
        if key in self._found.in_file:
            self._problem(f"{name} in {where} gives {known.key}, which is given already", "Give one of them.")
            return
        if not by and isinstance(value, str) and value in known.old_values:
            self._found.notes.append(Note(f"{self._path} {where}", name, _old_word(value, checked)))
        self._found.in_file[key] = Setting(checked, "file", where)

    def _items(self, title: str, table: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(table, dict):
            yield from cast(dict[str, Any], table).items()
        else:
            self._problem(f"{title} is a table, not {table!r}")

    def _problem(self, message: str, hint: str = "") -> None:
        self._found.problems.append(UsageError(message, path=self._path, hint=hint))


def _old_word(text: str, value: Any) -> str:
    return f"{text!r} is an old word, understood as {value!r}"


def _title(scope: str, section: str) -> str:
    if not scope:
        return f"[{section}]"
    return f"[stores.{scope}]" if section == STORE else f"[stores.{scope}.{section}]"


def _read_environment(found: Configuration, variables: Mapping[str, str]) -> None:
    known = _variables(found)
    for name, text in variables.items():
        if not name.startswith(PREFIX) or name in OTHER_VARIABLES or not text:
            continue
        old = OLD_OPTIONS.get(name.removeprefix(PREFIX).lower())
        try:
            if name in known:
                scope, into = known[name]
                value = into.parse(text)
                _set_variable(found, scope, into, value, name)
                if text in into.old_values:
                    found.notes.append(Note("environment", name, _old_word(text, value)))
            elif old is not None:
                for (section, ours), value in _old_values(found, old, _Text(text), name, SECTIONS).items():
                    if section != STORES:
                        into = option(section, ours)
                        _set_variable(found, "", into, into.check(value), name)
            else:
                # Not refused: container platforms set variables such as PERDURE_SERVICE_HOST by themselves.
                said = f"no option has this variable{nearest(name, known)}"
                found.notes.append(Note("environment", name, said))
        except ValueError as error:
            found.problems.append(UsageError(f"environment variable {name}: {error}"))


def _set_variable(found: Configuration, scope: str, into: Option, value: Any, name: str) -> None:
    if into is STORE_PATH:
        if scope:
            found.stores[scope] = Path(value)
        return
    key = (scope, into.section, into.name)
    if key in found.in_environment:
        there = found.in_environment[key].where
        raise ValueError(f"it gives {into.key}, which {there} gives already")
    found.in_environment[key] = Setting(value, "environment", name)


def _variables(found: Configuration) -> dict[str, tuple[str, Option]]:
    """Every variable that gives an option, of each named store too. An ambiguous one is a problem."""
    known: dict[str, tuple[str, Option]] = {}
    for scope in ("", *found.stores):
        own = [(variable_of(known_.section, known_.name, scope), known_) for known_ in OPTIONS]
        if scope:
            own.append((variable_of(STORE, STORE_PATH.name, scope), STORE_PATH))
        for name, into in own:
            if name in known:
                message = f"{name} could be an option of @{scope} and of @{known[name][0]}"
                found.problems.append(UsageError(message, path=found.file, hint="Rename one of the stores."))
            known[name] = (scope, into)
    return known
