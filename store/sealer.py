"""The sealer of one open store: from plain sessions to what is stored, and back.

Owns which form new values get (the options), the subkey they are sealed under, and the ciphers of those
that are read. Sealing under one random 96-bit nonce per value would come close to a repeated nonce at the
rates of a session store; so each sealer derives a subkey of its own (HKDF-SHA256, RFC 5869, over a random
salt of 16 bytes), and counts its nonces.

Invariant: no (subkey, counter) is used twice. A forked child, and a counter that ends, begin a new salt.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib import import_module
from itertools import count, islice
from typing import Any, Final

import msgspec

from .errors import KeyMissingError, PerdureError, SessionTooLargeError, UsageError, WrongKeyError
from .event import VALUE_BYTES_MAX
from .fold import HASH_BYTES, RECORD_BYTES_MIN
from .forks import watch_forks
from .keyring import AES_256_GCM, Key, Keyring, KeySource, key_name
from .labels import GROUP, HOME_NODE, TAG
from .ports import Record
from .sealed import (
    COMPRESSED,
    COUNTER_LIMIT,
    HIDDEN,
    SALT_BYTES,
    SEALED,
    Cipher,
    labels_end,
    pack_hidden,
    pack_metadata,
    revealed,
    seal_at,
    seal_of,
    sealed,
    text_of,
    unpack_hidden,
    unpack_metadata,
    unsealed,
    with_flags,
    with_labels,
    with_metadata_unpacked,
)
from .session import HEADER_BYTES, check_id, unpack_header
from .view import View

COMPRESSIONS: Final = ("none", "zstd")
COMPRESS_MIN_BYTES: Final = 1024
HIDDEN_BYTES: Final = 16
TAGS_STORED_MAX: Final = 0xFFFF
CIPHERS_MAX: Final = 4096
"""Subkeys that are kept ready for reading: each handle that wrote has one."""
PROBES_MAX: Final = 8
"""Sessions that are tried when a store with hidden ids is opened; one that opens is enough."""
_ID: Final = b"i"
_INFO: Final = b"perdure session value\x01"
_MODULE: Final = "cryptography.hazmat.primitives.ciphers.aead"
_encode_tags = msgspec.msgpack.Encoder().encode
_decode_tags = msgspec.msgpack.Decoder(tuple[str, ...]).decode


@dataclass(frozen=True)
class SealOptions:
    """In which form values are stored. Sizes in bytes."""

    compression: str = "none"
    compress_min_bytes: int = COMPRESS_MIN_BYTES
    keys: KeySource | None = None
    """New values are sealed if there are keys."""
    hide_ids: bool | None = None
    """None: as the sessions that are there have it; those of a new store are not hidden."""

    def __post_init__(self) -> None:
        """Raises UsageError; that too if there are keys and no package to use them with."""
        if self.compression not in COMPRESSIONS:
            raise UsageError(
                f"there is no compression {self.compression!r}", hint=f"There are: {', '.join(COMPRESSIONS)}."
            )
        least = self.compress_min_bytes
        if type(least) is not int or not 0 <= least <= VALUE_BYTES_MAX:
            raise UsageError(
                f"compress_min_bytes is a whole number from 0 to {VALUE_BYTES_MAX}, not {least!r}"
            )
        if self.hide_ids and self.keys is None:
            raise UsageError(
                "hide_ids needs keys", hint="Name a key file; `perdure keys init FILE` makes one."
            )
        if self.keys is not None:
            ciphers()


PLAIN: Final = SealOptions()


@cache
def ciphers() -> tuple[Any, Any, type[Exception]]:
    """(AES-GCM, ChaCha20-Poly1305, what they raise for a wrong tag), from the package `cryptography`.

    Loaded when the first store with keys is opened. Raises UsageError if it is not installed.
    """
    try:
        aead, exceptions = import_module(_MODULE), import_module("cryptography.exceptions")
    except ImportError as error:
        raise UsageError(
            "encryption needs the package `cryptography`, which is not installed",
            hint="Install it: pip install 'perdure[encryption]'.",
        ) from error
    return aead.AESGCM, aead.ChaCha20Poly1305, exceptions.InvalidTag


def cipher_of(key: Key, salt: bytes) -> Cipher:
    """The cipher under the subkey that a salt gives."""
    extracted = hmac.digest(salt, key.secret_bytes, "sha256")
    subkey = hmac.digest(extracted, _INFO, "sha256")
    aes, chacha, _ = ciphers()
    cipher: Cipher = (aes if key.algorithm == AES_256_GCM else chacha)(subkey)
    return cipher


def are_ids_hidden(view: View) -> bool | None:
    """Are the ids of a store's sessions hidden? As any of them has it; None if there are none.

    All have the same, because a store without sessions alone can be opened either way.
    """
    found = some_records(view, 1)
    return bool(found[0][1][HASH_BYTES + 1] & HIDDEN) if found else None


def some_records(view: View, limit: int) -> list[tuple[bytes, Record]]:
    """Up to so many (key, record) of a store's sessions; none of a state that cannot be read."""
    with view.mutex:
        changed = ((key, entry[1]) for key, entry in view.tail.items() if entry[1] is not None)
        found = list(islice(changed, limit))
        return found or _of_state(view, limit)


def _of_state(view: View, limit: int) -> list[tuple[bytes, Record]]:
    try:
        scan = view.scan()
        try:
            return list(islice((pair for pair in scan if len(pair[1]) >= RECORD_BYTES_MIN), limit))
        finally:
            scan.close()
    except PerdureError:
        return []  # a damaged state is reported by what reads it


class _Subkey:
    """One subkey to seal under, and its counter: `next_counter` is atomic."""

    __slots__ = ("cipher", "counters", "key_id", "ring", "salt")

    def __init__(self, ring: Keyring) -> None:
        key = ring.active_key
        self.ring = ring
        self.key_id = key.id
        self.salt = os.urandom(SALT_BYTES)
        self.cipher = cipher_of(key, self.salt)
        self.counters: Iterator[int] = count()


class Sealer:
    """Seals and opens the session values of one open store. Safe for threads.

    `changes` says whether it stores anything but plain values. `hides_ids` and with it the form of keys is
    settled once, when the store is opened.
    """

    def __init__(self, options: SealOptions, *, is_hidden: bool | None) -> None:
        """`is_hidden`: are the ids of the store's sessions hidden? None if there are none.

        Raises UsageError if the options say otherwise.
        """
        self.keys = options.keys
        self._id_secret = b"" if options.keys is None else options.keys.ring.id_secret_bytes
        self._compresses = options.compression != "none"
        self._min_bytes = options.compress_min_bytes
        self._ciphers: dict[tuple[int, bytes], Cipher] = {}
        self._subkey: _Subkey | None = None
        asked = options.hide_ids
        if asked is not None and is_hidden is not None and asked != is_hidden:
            raise UsageError(
                f"the ids of this store are {'' if is_hidden else 'not '}hidden, and hide_ids is {asked}",
                hint="That is settled while a store has no sessions: open it as it is, or copy them.",
            )
        self.hides_ids = bool(is_hidden if asked is None else asked)
        self.changes = self._compresses or self.keys is not None or self.hides_ids
        self.key_of: Callable[[str], bytes] = self.hidden_key if self.hides_ids else check_id
        """The key that an id is stored under. Raises InvalidIdError, KeyMissingError."""
        watch_forks(self)

    def sever(self) -> object:
        """In a forked child: never go on with the parent's counter."""
        self._subkey = None
        return None

    # -- ids and labels --------------------------------------------------------------------------

    def hidden_key(self, id: str) -> bytes:
        """The key of an id where ids are hidden: a keyed hash, as 32 hexadecimal characters."""
        return self._hash(_ID, check_id(id)).encode()

    def start_after(self, prefix: str, after: str) -> bytes:
        """Where a listing goes on behind an id, where ids are hidden. Raises UsageError for a prefix."""
        if prefix:
            raise UsageError(
                "hidden ids cannot be listed by prefix", hint="List all of them, or ask for a group or a tag."
            )
        return self.hidden_key(after) if after else b""

    def label(self, kind: bytes, text: str) -> str:
        """A label as the readable part of a stored session has it: hashed where ids are hidden.

        `kind` is GROUP, TAG or HOME_NODE (see labels): each its own hashes. The empty label stays empty.
        """
        return self._hash(kind, text.encode()) if self.hides_ids and text else text

    def _hash(self, kind: bytes, text: bytes) -> str:
        if self.keys is None:
            raise KeyMissingError(
                "the ids of this store are hidden, and it was opened without keys", hint=_GIVE_KEYS
            )
        return blake2b(kind + text, digest_size=HIDDEN_BYTES, key=self._id_secret).hexdigest()

    def check_id_secret(self, view: View) -> None:
        """Look at some sessions: were their ids hidden with the secret that is at hand?

        With another one every id would seem to be missing, and a put would store it a second time. Raises
        KeyMissingError, that too where none of them opens.
        """
        if not self.hides_ids or self.keys is None:
            return
        failure: PerdureError | None = None
        for key, record in some_records(view, PROBES_MAX):
            try:
                id, _ = self._open(key, record[HASH_BYTES:])
                if id is None or self.hidden_key(text_of(id)) == key:
                    return
                failure = KeyMissingError(
                    "the ids of this store were hidden with the secret of another key file",
                    path=self.keys.path,
                    hint="Bring back the key file that the store was written with.",
                )
            except KeyMissingError as error:
                failure = error
            except PerdureError:
                continue  # what is damaged is reported by what reads it
        if failure is not None:
            raise failure

    # -- sealing ---------------------------------------------------------------------------------

    def seal(self, id: str, key: bytes, plain: bytes) -> bytes:
        """What is stored, under `key`, for the plain stored session of an id.

        Raises SessionTooLargeError if the sealed form is larger than any value may be.
        """
        start = labels_end(plain)
        head, body, flags = plain[:start], plain[start:], 0
        if self._compresses and len(body) >= self._min_bytes:
            packed = pack_metadata(body)
            if len(packed) < len(body):
                body, flags = packed, COMPRESSED
        if self.keys is None:
            return with_flags(head, flags) + body if flags else plain
        if self.hides_ids:
            body = pack_hidden(id.encode(), head) + body
            head = self._with_hidden_labels(head)
            flags |= HIDDEN
        return self._sealed(key, with_flags(head, flags | SEALED), body)

    def _sealed(self, key: bytes, head: bytes, body: bytes) -> bytes:
        subkey, counter = self._next()
        stored = sealed(head, key, body, subkey.cipher, subkey.key_id, subkey.salt, counter)
        if len(stored) > VALUE_BYTES_MAX:
            raise SessionTooLargeError(
                f"session {_name(key)!r} takes {len(stored)} bytes when it is sealed,"
                f" the limit is {VALUE_BYTES_MAX}",
                hint="Keep large data elsewhere.",
            )
        return stored

    def _next(self) -> tuple[_Subkey, int]:
        """A subkey of the active key, and a counter that it was never used with."""
        ring = self._source().ring
        while True:
            subkey = self._subkey
            if subkey is None or subkey.ring is not ring:
                subkey = self._subkey = _Subkey(ring)
            counter = next(subkey.counters)
            if counter < COUNTER_LIMIT:
                return subkey, counter
            self._subkey = None

    def _with_hidden_labels(self, head: bytes) -> bytes:
        _, _, _, home, group, tags, *_ = unpack_header(head)
        if not home and not group and not tags:
            return head
        group_at = HEADER_BYTES + home
        tags_at = group_at + group
        hashed_home = self.label(HOME_NODE, head[HEADER_BYTES:group_at].decode()).encode()
        hashed_group = self.label(GROUP, head[group_at:tags_at].decode()).encode()
        hashed_tags = b""
        if tags:
            hashed_tags = _encode_tags(
                [self._hash(TAG, tag.encode()) for tag in _decode_tags(head[tags_at:])]
            )
        if len(hashed_tags) > TAGS_STORED_MAX:
            raise UsageError(
                "a session with hidden labels has at most 1,900 tags", hint="Nothing was written."
            )
        labels = hashed_home + hashed_group + hashed_tags
        return with_labels(head, labels, len(hashed_home), len(hashed_group), len(hashed_tags))

    # -- opening ---------------------------------------------------------------------------------

    def open(self, key: bytes, stored: bytes) -> bytes:
        """The plain stored session of what stands under `key`, whatever its form.

        Raises KeyMissingError if its key is not at hand, WrongKeyError if that does not open it,
        CorruptError for what is no stored session.
        """
        return self._open(key, stored)[1]

    def open_with_id(self, key: bytes, stored: bytes) -> tuple[str, bytes]:
        """As open(), with the session's id."""
        hidden_id, plain = self._open(key, stored)
        return text_of(key if hidden_id is None else hidden_id), plain

    def open_event(self, key: bytes, stored: bytes) -> tuple[str, bytes]:
        """As open_with_id(), for what a log's event holds: `stored` is empty where it carries no session.

        Of such an event a hidden id is not known: it is then what the id is stored as.
        """
        if not stored or not stored[1]:
            return text_of(key), stored
        return self.open_with_id(key, stored)

    def _open(self, key: bytes, stored: bytes) -> tuple[bytes | None, bytes]:
        """(the id, if it is hidden; the plain stored session)."""
        end = labels_end(stored)
        flags = stored[1]
        if not flags & SEALED:
            return None, with_metadata_unpacked(stored, end)
        body, id = self._unsealed(key, stored, end), None
        if not flags & HIDDEN:
            head = with_flags(stored[:end], 0)
        elif self.hides_ids:
            hidden, body = unpack_hidden(body)
            id, head = hidden.id, revealed(stored[:end], hidden)
        else:
            raise UsageError(
                "a session's id is hidden, and the store was opened without hide_ids",
                hint="Open the store again; every process gives it the same options.",
            )
        return id, head + (unpack_metadata(body) if flags & COMPRESSED else body)

    def refuse_plain(self, id: str, stored: bytes) -> None:
        """Raise KeyMissingError where a plain value would replace a sealed one."""
        if stored[1] & SEALED and self.keys is None:
            key_id = seal_of(stored)[0]
            raise KeyMissingError(
                f"session {id!r} is sealed, and would be replaced by one that is not",
                key_id=key_id,
                hint=_GIVE_KEYS,
            )

    def moved(self, key: bytes, stored: bytes, new_id: str, new_key: bytes) -> bytes | None:
        """What is stored for a session that goes on under another id; None if its bytes stay.

        Raises as open().
        """
        if not stored[1] & SEALED:
            return None
        return self.seal(new_id, new_key, self.open(key, stored))

    def resealed(self, key: bytes, stored: bytes, *, recompress: bool) -> bytes | None:
        """A stored session in the form that a new one would get; None if it has that.

        Without `recompress` what is compressed stays so, and nothing else becomes it. Raises as open().
        """
        ring = None if self.keys is None else self.keys.ring
        if ring is None and stored[1] & SEALED:
            key_id = seal_of(stored)[0]
            raise KeyMissingError(
                f"session {_name(key)!r} is sealed under key {key_name(key_id)}",
                key_id=key_id,
                hint=_GIVE_KEYS,
            )
        is_under = ring is None or (bool(stored[1] & SEALED) and seal_of(stored)[0] == ring.active)
        if not recompress:
            return None if is_under else self._rekeyed(key, stored)
        if is_under and not self._compresses and not stored[1] & COMPRESSED:
            return None
        id, plain = self.open_with_id(key, stored)
        new = self.seal(id, key, plain)
        return None if is_under and new[1] == stored[1] else new

    def _rekeyed(self, key: bytes, stored: bytes) -> bytes:
        """The same flags and content, sealed under the active key."""
        end = labels_end(stored)
        if stored[1] & SEALED:
            return self._sealed(key, stored[:end], self._unsealed(key, stored, end))
        return self._sealed(key, with_flags(stored[:end], stored[1] | SEALED), stored[end:])

    def refresh(self) -> bool:
        """Take note of a rotated key file (see KeySource.refresh)."""
        return self.keys is not None and self.keys.refresh()

    def _source(self) -> KeySource:
        if self.keys is None:
            raise KeyMissingError("the store was opened without keys", hint=_GIVE_KEYS)
        return self.keys

    def _unsealed(self, key: bytes, stored: bytes, end: int) -> bytes:
        key_id, salt, counter = seal_at(stored, end)
        cipher = self._ciphers.get((key_id, salt)) or self._cipher(key, key_id, salt)
        try:
            return unsealed(stored, end, key, cipher, counter)
        except ciphers()[2] as error:
            raise WrongKeyError(
                f"session {_name(key)!r} does not open with key {key_name(key_id)}: that key is another one, "
                "or the stored bytes were changed",
                key_id=key_id,
                path=self._source().path,
                hint="Compare the key file with the one that the session was written with.",
            ) from error

    def _cipher(self, key: bytes, key_id: int, salt: bytes) -> Cipher:
        found = None
        if self.keys is not None:
            found = self.keys.ring.key(key_id)
            if found is None and self.keys.refresh():
                found = self.keys.ring.key(key_id)
        if found is None:
            raise KeyMissingError(
                f"session {_name(key)!r} is sealed under key {key_name(key_id)}, which "
                + ("is not in the keyring" if self.keys is not None else "is needed to read it"),
                key_id=key_id,
                path=self.keys.path if self.keys is not None else None,
                hint=_GIVE_KEYS if self.keys is None else "Bring back the key file that holds this key.",
            )
        if len(self._ciphers) >= CIPHERS_MAX:
            self._ciphers.clear()
        cipher = self._ciphers[key_id, salt] = cipher_of(found, salt)
        return cipher


_GIVE_KEYS: Final = "Open the store with keys=, or name the key file (--keys FILE, PERDURE_KEYS)."


def _name(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
