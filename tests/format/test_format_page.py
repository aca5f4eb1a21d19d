"""docs/format.md is held to the code: every table, number and hex block."""

from __future__ import annotations

import importlib
import itertools
import re
import struct
from enum import IntEnum
from types import ModuleType

import pytest

from perdure.store import (
    event,
    frame,
    mark,
    names,
    page,
    sealed,
    segment,
    session,
    smallfile,
    snapshot_format,
    tail,
)
from tests.format.worked_example import PAGE, blocks, field_sizes, with_blocks

Row = tuple[str, ...]

STRUCTS: dict[str, struct.Struct] = {
    "segment.HEADER": segment.HEADER,
    "segment.FOOTER_HEAD": segment.FOOTER_HEAD,
    "segment.INDEX_ENTRY": segment.INDEX_ENTRY,
    "segment.FOOTER_END": segment.FOOTER_END,
    "frame.HEADER": frame.HEADER,
    "event.HEADER": event.HEADER,
    "mark.SLOT": mark.SLOT,
    "session.HEADER": session.HEADER,
    "sealed.SIZE": sealed.SIZE,
    "sealed.SEAL": sealed.SEAL,
    "sealed.WITHIN": sealed.WITHIN,
    "smallfile.HEADER": smallfile.HEADER,
    "snapshot_format.HEAD": snapshot_format.HEAD,
    "snapshot_format.CHUNK": snapshot_format.CHUNK,
    "snapshot_format.ENTRY": snapshot_format.ENTRY,
    "snapshot_format.TRAILER": snapshot_format.TRAILER,
}
PARTS = {"frame.CHAIN", "frame.BODY_HEADER", "session.ACCESSED", "session.CAP", "snapshot_format.CHECK"}
"""Structs that are a part of another one, which the page has."""

MAGICS: dict[str, tuple[str, bytes]] = {
    "segment.HEADER": ("magic", segment.HEADER_MAGIC),
    "segment.FOOTER_HEAD": ("magic", segment.FOOTER_MAGIC),
    "segment.FOOTER_END": ("magic", segment.END_MAGIC),
    "frame.HEADER": ("magic", frame.MAGIC.to_bytes(4, "little")),
    "mark.SLOT": ("magic", mark.MAGIC),
    "snapshot_format.HEAD": ("magic", snapshot_format.HEAD_MAGIC),
    "snapshot_format.CHUNK": ("magic", snapshot_format.CHUNK_MAGIC.to_bytes(4, "little")),
    "snapshot_format.TRAILER": ("magic", snapshot_format.TRAILER_MAGIC),
}

DOCSTRINGS: list[tuple[ModuleType, list[struct.Struct]]] = [
    (frame, [frame.HEADER]),
    (event, [event.HEADER]),
    (mark, [mark.SLOT]),
    (session, [session.HEADER]),
    (sealed, [sealed.SEAL, sealed.WITHIN, sealed.SIZE]),
    (smallfile, [smallfile.HEADER]),
    (segment, [segment.HEADER, segment.FOOTER_HEAD]),
    (
        snapshot_format,
        [snapshot_format.HEAD, snapshot_format.CHUNK, snapshot_format.ENTRY, snapshot_format.TRAILER],
    ),
]


def table_after(marker: str) -> list[Row]:
    """The rows of the page's table behind a marker, without its head."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(marker + "\n") == 1, f"the page has no single {marker}"
    rows: list[Row] = []
    for line in text.partition(marker + "\n")[2].splitlines():
        if not line.startswith("|"):
            break
        rows.append(tuple(cell.strip() for cell in line.strip("|").split("|")))
    return rows[2:]


def places(layout: struct.Struct) -> list[tuple[int, int]]:
    """(offset, size) of each field."""
    sizes = field_sizes(layout)
    return [(sum(sizes[:number]), size) for number, size in enumerate(sizes)]


@pytest.mark.parametrize("name", STRUCTS)
def test_table_of_a_struct_when_the_struct_is_measured_has_its_offsets_and_sizes(name: str) -> None:
    rows = table_after(f"<!-- struct: {name} -->")
    layout = STRUCTS[name]
    fixed = [(int(row[0]), int(row[1])) for row in rows if row[1] != "..."]
    assert fixed == places(layout)
    assert [int(row[0]) for row in rows if row[1] == "..."] in ([], [layout.size])


@pytest.mark.parametrize("name", MAGICS)
def test_table_of_a_struct_when_it_names_a_magic_names_the_one_in_the_code(name: str) -> None:
    field, magic = MAGICS[name]
    found = [row[3] for row in table_after(f"<!-- struct: {name} -->") if row[2] == field]
    assert found == [f"`{magic.decode()}`"]


def test_page_when_the_modules_are_searched_for_structs_has_a_table_for_each() -> None:
    found = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module, _ in DOCSTRINGS
        for name, value in vars(module).items()
        if isinstance(value, struct.Struct)
    }
    assert found - PARTS == set(STRUCTS)


@pytest.mark.parametrize(("module", "layouts"), DOCSTRINGS, ids=lambda item: getattr(item, "__name__", ""))
def test_docstring_when_its_layouts_are_read_has_the_offsets_and_sizes_of_the_structs(
    module: ModuleType, layouts: list[struct.Struct]
) -> None:
    found = docstring_tables(module.__doc__ or "")
    for layout in layouts:
        expected = places(layout)
        assert expected in [table[: len(expected)] for table in found]
    assert len(found) == len(layouts)


def docstring_tables(text: str) -> list[list[tuple[int, int]]]:
    """The layouts in a docstring: columns under "offset  size  field", each starting anew at offset 0."""
    lines = text.splitlines()
    head = next(line for line in lines if "offset  size  field" in line)
    starts = [match.start() for match in re.finditer("offset  size", head)] + [1000]
    tables: list[list[tuple[int, int]]] = []
    for start, end in itertools.pairwise(starts):
        for line in lines:
            match = re.match(r"(\d+) +(\d+) +\S", line[start:end])
            if match is None:
                continue
            if match[1] == "0":
                tables.append([])
            tables[-1].append((int(match[1]), int(match[2])))
    return tables


@pytest.mark.parametrize("name", ["event.Kind", "event.Reason", "page.Word"])
def test_table_of_an_enum_when_the_enum_is_listed_has_its_numbers_and_names(name: str) -> None:
    module, _, kind = name.partition(".")
    enum: type[IntEnum] = getattr({"event": event, "page": page}[module], kind)
    rows = table_after(f"<!-- enum: {name} -->")
    assert [(int(row[0]), row[1]) for row in rows] == [(int(item), item.name) for item in enum]


def test_table_of_names_when_the_constants_are_listed_has_each_of_them() -> None:
    constants = {
        value: name
        for name, value in vars(names).items()
        if name.isupper() and isinstance(value, str) and not name.startswith("_")
    }
    assert {row[0].strip("`"): row[1] for row in table_after("<!-- names -->")} == constants


def test_table_of_limits_when_the_constants_are_read_has_their_values() -> None:
    rows = table_after("<!-- limits -->")
    assert len(rows) >= 10
    for row in rows:
        module, _, constant = row[3].partition(".")
        assert getattr(importlib.import_module(f"perdure.store.{module}"), constant) == int(row[1]), row


def test_tail_table_when_page_and_module_are_compared_is_the_same_in_both() -> None:
    rows = [line.strip() for line in (tail.__doc__ or "").splitlines() if line.strip().startswith("|")]
    in_module = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in rows][2:]
    assert in_module == table_after("<!-- tail -->")


def test_hex_blocks_when_they_are_made_anew_are_those_of_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_blocks(text) == text, "run `python -m tests.format.worked_example --write`"


@pytest.mark.parametrize("name", ["segment", "mark", "snapshot"])
def test_hex_block_when_its_bytes_are_read_back_has_every_byte_once_and_in_order(name: str) -> None:
    at = 0
    for line in blocks()[name].splitlines():
        match = re.match(r"([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)", line)
        if match:
            assert int(match[1], 16) == at
            at += len(bytes.fromhex(match[2]))
    assert at > 0
