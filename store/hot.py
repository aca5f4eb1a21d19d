"""Hot sessions: stored sessions that were read and checked a moment ago, kept to be read again at once.

Owns what is kept and how much: two generations of a dict, so that what is read again stays and the rest
goes, without work for each entry. Invariant: what is kept under a key is what the state at `View.state` holds
under it. The view forgets keys that the state changes, under its mutex, before it shows the new state; a key
in its tail map is not looked for here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

HOT_BYTES: Final = 8 << 20
HOT_BYTES_MAX: Final = 1 << 40
ENTRY_BYTES: Final = 320
"""What an entry takes beside the stored session: its key, numbers, and its place in the dict."""
SEEN_MASK: Final = (1 << 14) - 1
SEEN_SHIFT: Final = 56
"""Which bits of a record's hash are its place in `seen`, and which its byte there."""

Hot: TypeAlias = tuple[bytes, int, int, int, int, int]
"""Stored session, where its metadata begin, last access, idle timeout, refresh window, latest expiry; ms."""


class HotSessions:
    """Changed with the view's mutex held; `young` and `old` may be read without."""

    def __init__(self, budget_bytes: int) -> None:
        """`budget_bytes` 0 keeps nothing."""
        self.young: dict[bytes, Hot] = {}
        self.old: dict[bytes, Hot] = {}
        self.seen = bytearray(SEEN_MASK + 1)
        """A byte of the hash of the session that was read last of those that share its place here."""
        self._generation_bytes = budget_bytes // 2
        self._young_bytes = 0

    def keep(self, key: bytes, entry: Hot) -> None:
        """It was read; the caller has checked that the state still holds it."""
        size = ENTRY_BYTES + len(entry[0])
        self._young_bytes += size
        if self._young_bytes > self._generation_bytes:
            if size > self._generation_bytes:
                self._young_bytes -= size
                return
            self.old, self.young, self._young_bytes = self.young, {}, size
        self.young[key] = entry

    def forget(self, keys: Iterable[bytes]) -> None:
        """The state holds something else under these keys from now on."""
        young, old = self.young, self.old
        if young or old:
            for key in keys:
                young.pop(key, None)
                old.pop(key, None)

    def clear(self) -> None:
        """The state is another one."""
        self.young, self.old, self._young_bytes = {}, {}, 0
