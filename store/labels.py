"""Labels: what sessions can be found by besides their id. Pure.

Owns the terms of the index: group, tags, home node and priority of a stored session, each as one short
word of text, and which of them a change of a session adds and removes. A back end keeps pairs of term and
key, and knows nothing of what they mean.

Invariant: the state has exactly the pairs that the terms of its sessions make, besides those of the kind
USED, which only store.capacity makes and removes. A session without labels, with normal priority, has none,
and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final

from .errors import DECODE_ERRORS, UsageError
from .ports import Backend, Change, Labelled, Record
from .session import ACCESSED_OFFSET, HEADER_BYTES, Priority, decode_tags, unpack_header, unpack_lifetime

GROUP: Final = b"g"
TAG: Final = b"t"
HOME_NODE: Final = b"n"
PRIORITY: Final = b"p"
USED: Final = b"u"
"""Pairs by the time of last use, for eviction (see capacity)."""

TERM_BYTES_MAX: Final = 64
NO_LABELS: Final = bytes([int(Priority.NORMAL), 0, 0, 0, 0, 0])
"""Bytes 2 to 8 of a stored session with normal priority and no labels: its priority and their lengths."""
LABELS_AT: Final = 10
"""Where they are in a record (see fold), up to LABELS_END."""
LABELS_END: Final = 16
BEHIND: Final = b"\x01"
"""Makes of a term the least that is above it: terms hold no NUL."""
USED_BEGUN: Final = (USED, b"begun")
"""In the index: from now on each session that is new to the state gets its pair of the kind USED."""
USED_COMPLETE: Final = (USED, b"complete")
"""Each session has one, at or before its last use."""
_PRIORITIES: Final = {int(priority): PRIORITY + b"%d" % priority for priority in Priority}
NORMAL: Final = _PRIORITIES.pop(Priority.NORMAL)
"""The priority that most sessions have: it is no term of theirs."""
PRIORITY_TERMS: Final = tuple(_PRIORITIES.values())
"""Those of all others."""


def term_of(kind: bytes, label: bytes) -> bytes:
    """The term of a label, without NUL and at most 64 bytes: of a longer label a hash."""
    if len(label) < TERM_BYTES_MAX - 1 and b"\0" not in label:
        return kind + label
    return kind + b"#" + blake2b(label, digest_size=31).hexdigest().encode()


def checked_term(kind: bytes, label: object, what: str) -> bytes:
    """The term of a label that an application names. Raises UsageError for what no session can have."""
    if not isinstance(label, str) or not label:
        raise UsageError(f"{what} is text that is not empty, not {label!r}")
    try:
        return term_of(kind, label.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is valid Unicode, not {label!r}") from error


def members_of(members: Iterable[str]) -> list[str]:
    """The names of nodes that a caller gives. Raises UsageError for one text: its characters are no nodes."""
    if isinstance(members, str):
        raise UsageError(f"members are a list of node names, not {members!r}", hint="Give a list.")
    return list(members)


def priority_term(priority: object) -> bytes:
    """The term of a priority: NORMAL for the normal one, which is not in the index. Raises UsageError."""
    try:
        return _PRIORITIES.get(int(Priority(priority)), NORMAL)  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(
            f"a priority is one of {', '.join(Priority.__members__)}, not {priority!r}"
        ) from error


def kind_range(kind: bytes) -> tuple[bytes, bytes]:
    """Below and at the end of all terms of a kind."""
    return kind, kind + b"\xff"


def has_priority(record: Record | None) -> bool:
    """Has a record another priority than the normal one?"""
    return record is not None and record[LABELS_AT] != Priority.NORMAL


def has_terms(record: Record | None, terms: Iterable[bytes]) -> bool:
    """Has a record all these terms? The normal priority counts as one."""
    if record is None:
        return False
    own = terms_of_record(record)
    return all(term in own or (term == NORMAL and record[LABELS_AT] == Priority.NORMAL) for term in terms)


def terms_of(value: bytes) -> tuple[bytes, ...]:
    """The terms of a stored session. One that does not decode has none: the index is no check."""
    if value[2:8] == NO_LABELS or len(value) < HEADER_BYTES:
        return ()
    return _terms(value)


def terms_of_record(record: Record | None) -> tuple[bytes, ...]:
    """As terms_of, of a record (see fold); none for None."""
    if record is None or record[LABELS_AT:LABELS_END] == NO_LABELS or len(record) < HEADER_BYTES + 8:
        return ()
    return _terms(record[8:])


def _terms(value: bytes) -> tuple[bytes, ...]:
    _, _, priority, home, group, tagged = unpack_header(value)[:6]
    terms: list[bytes] = []
    if priority in _PRIORITIES:
        terms.append(_PRIORITIES[priority])
    at = HEADER_BYTES
    if home:
        terms.append(term_of(HOME_NODE, value[at : at + home]))
    at += home
    if group:
        terms.append(term_of(GROUP, value[at : at + group]))
    at += group
    if tagged:
        try:
            tags = decode_tags(value[at : at + tagged])
        except DECODE_ERRORS:
            tags = ()
        terms += dict.fromkeys(term_of(TAG, tag.encode()) for tag in tags)
    return tuple(terms)


def plan_labels(
    changes: Iterable[Change], base_terms: Mapping[bytes, tuple[bytes, ...]]
) -> tuple[list[Labelled], list[Labelled]]:
    """(pairs to add, pairs to remove), in order, for changes to a base whose changed keys have `base_terms`.

    A key that is not in `base_terms` has none there.
    """
    labelled: list[Labelled] = []
    unlabelled: list[Labelled] = []
    if not base_terms:
        changes = [pair for pair in changes if pair[1] and pair[1][LABELS_AT:LABELS_END] != NO_LABELS]
    for key, record in changes:
        new = terms_of_record(record)
        old = base_terms.get(key, ())
        if new == old:
            continue
        labelled += [(term, key) for term in new if term not in old]
        unlabelled += [(term, key) for term in old if term not in new]
    labelled.sort()
    unlabelled.sort()
    return labelled, unlabelled


def used_term(accessed_ms: int) -> bytes:
    """The term of a time of last use."""
    return USED + b"%016x" % accessed_ms


def used_pair(key: bytes, record: Record) -> Labelled:
    """The pair for a session's time of last use."""
    return used_term(unpack_lifetime(record, 8 + ACCESSED_OFFSET)[0]), key


def plan_used(backend: Backend, new: Iterable[Change]) -> list[Labelled]:
    """The pairs of the kind USED to add for records that are new to the state, if it keeps any."""
    if not backend.has_labels or not backend.find((USED, b""), USED, 1):
        return []
    return [used_pair(key, record) for key, record in new if record is not None]
