"""Listing: the keys that are there, and those with a label, as readers see them, some at a time.

Owns how what the state has in order is merged with the tail map. Each function takes the view's mutex only
while it finds out where it stands; of what changes after that it may show the old or the new.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from .event import KEY_BYTES_MAX
from .fold import unreadable
from .labels import BEHIND, NORMAL, PRIORITY_TERMS, has_priority, has_terms, terms_of_record
from .ports import KeyScan, Record, Scan
from .tail_map import Entry
from .view import View

LISTED_MIN: Final = 1000
LISTED_MAX: Final = 16_000
"""Keys that are listed at once: at first and with labels, and where all are taken."""
PRIORITISED_AT_ONCE: Final = 1000
_BEHIND_ALL: Final = b"\xff" * (KEY_BYTES_MAX + 1)
_GONE: Final = b""


def list_chunks(
    view: View, read: Callable[[bytes], Record | None], prefix: bytes, after: bytes, terms: Sequence[bytes]
) -> Iterator[Iterable[bytes]]:
    """The keys above `after` that begin with `prefix` and have all these terms, in order, in chunks.

    The first term is looked up, the others are checked in the records.
    """
    count = LISTED_MIN
    while True:
        if not terms or terms[0] == NORMAL:
            chunk = list_keys(view, prefix, after, count)
        else:
            chunk = list_members(view, terms[0], prefix, after, count)
        if len(terms) == 1 and terms[0] == NORMAL and chunk:
            others = list_prioritised(view, after, chunk[-1])
            yield [key for key in chunk if key not in others]
        elif len(terms) > 1:
            yield (key for key in chunk if has_terms(read(key), terms))
        else:
            yield chunk
        if len(chunk) < count:
            return
        after = chunk[-1]
        if not terms:
            count = min(4 * count, LISTED_MAX)


def ids_of(keys: Iterable[bytes]) -> Iterable[str]:
    """The ids that keys are. Raises CorruptError behind those before one that is none."""
    if isinstance(keys, list):
        try:
            return list(map(bytes.decode, keys))
        except UnicodeDecodeError:
            pass
    return map(id_of, keys)


def id_of(key: bytes) -> str:
    """The id that a key of the state is; keys carry no hash of their own."""
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise unreadable(error) from error


def list_keys(view: View, prefix: bytes, after: bytes, limit: int) -> list[bytes]:
    """Up to `limit` keys above `after` that begin with `prefix`, in order; fewer only if these are all."""
    with view.mutex:
        _renew(view)
        tail = dict(view.tail)
        scan = view.scan(max(after, prefix_floor(prefix)))
    # As lists, and without a look at each key: a list of all ids is little else than this.
    behind = prefix + _BEHIND_ALL
    changed = sorted([key for key in tail if key > after and key.startswith(prefix)])
    found: list[bytes] = []
    try:
        next_keys = scan.next_keys if isinstance(scan, KeyScan) else _KeysOfPairs(scan).next_keys
        while True:
            chunk = next_keys(limit)
            is_last = len(chunk) < limit or chunk[-1] > behind
            upto = len(changed) if is_last else bisect_right(changed, chunk[-1])
            start = max(bisect_right(chunk, after), bisect_left(chunk, prefix))
            found += _merged(chunk[start : bisect_left(chunk, behind)], changed[:upto], tail)
            if is_last or len(found) >= limit:
                return found[:limit]
            del changed[:upto]
    finally:
        scan.close()


class _KeysOfPairs:
    """The keys of a scan that gives pairs only."""

    def __init__(self, scan: Scan) -> None:
        self._pairs = iter(scan)

    def next_keys(self, limit: int) -> list[bytes]:
        return [key for key, _ in islice(self._pairs, limit)]


def _merged(stored: list[bytes], changed: Sequence[bytes], tail: Mapping[bytes, Entry]) -> list[bytes]:
    """`stored`, which may change in place, with what the tail says of the keys `changed`; all in order."""
    new: list[bytes] = []
    is_any_gone, at = False, 0
    for key in changed:
        at = bisect_left(stored, key, at)
        is_stored = at < len(stored) and stored[at] == key
        if tail[key][1] is None:
            if is_stored:
                stored[at] = _GONE
                is_any_gone, at = True, at + 1
        elif not is_stored:
            new.append(key)
    if is_any_gone:
        stored = list(filter(None, stored))
    return sorted(stored + new) if new else stored


def list_members(
    view: View, term: bytes, prefix: bytes, after: bytes, limit: int, *, newest: bool = False
) -> list[bytes]:
    """Up to `limit` keys above `after` with a term (see labels), in order, that begin with `prefix`.

    As readers see them, or with `newest` as writers do: uncommitted frames included.
    """
    with view.mutex:
        _renew(view)
        changed = {**view.tail, **view.pending} if newest and view.pending else view.tail
        new = sorted(
            key for key, entry in changed.items() if key > after and term in terms_of_record(entry[1])
        )
        after = max(after, prefix_floor(prefix))
        found: list[bytes] = []
        for key in heapq.merge(_stored_members(view, term, after, changed, limit), new):
            if key < prefix:
                continue
            if not key.startswith(prefix) or len(found) >= limit:
                break
            found.append(key)
        return found


def _stored_members(
    view: View, term: bytes, after: bytes, changed: Mapping[bytes, Entry], limit: int
) -> Iterable[bytes]:
    if not view.backend.has_labels:
        return
    while pairs := view.backend.find((term, after), term, limit):
        for _, key in pairs:
            if key not in changed:
                yield key
        after = pairs[-1][1]


def list_prioritised(view: View, after: bytes, last: bytes) -> set[bytes]:
    """The keys above `after` up to `last` with another priority than the normal one."""
    with view.mutex:
        _renew(view)
        found: set[bytes] = set()
        for term in PRIORITY_TERMS:
            for key in _stored_members(view, term, after, view.tail, PRIORITISED_AT_ONCE):
                if key > last:
                    break
                found.add(key)
        found.update(key for key, entry in view.tail.items() if has_priority(entry[1]))
        return found


def list_terms(view: View, after: bytes, last: bytes) -> list[bytes]:
    """The terms above `after` up to `last` that sessions may have, in order."""
    with view.mutex:
        _renew(view)
        found = {
            term for entry in view.tail.values() for term in terms_of_record(entry[1]) if after < term <= last
        }
        while view.backend.has_labels and (pairs := view.backend.find((after + BEHIND, b""), last, 1)):
            after = pairs[0][0]
            found.add(after)
        return sorted(found)


def prefix_floor(prefix: bytes) -> bytes:
    """A key below every key that begins with `prefix`, and above as many others as is easy."""
    if not prefix or prefix[-1] == 0:
        return prefix[:-1]
    return prefix[:-1] + bytes([prefix[-1] - 1]) + b"\xff" * 8


def _renew(view: View) -> None:
    view.catch_up()
    view.advance()
    view.refresh()
    view.check_floor()
