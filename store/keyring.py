"""Keyrings: the keys that sessions are encrypted with, and the file that holds them.

Owns the file's form (JSON, replaced as a whole), its checks, and how a running process notices that it
was changed. Knows nothing of ciphers or sessions. A key that was once in a keyring keeps its id and its
secret; the secret that hides ids never changes. No secret is ever part of a message or of a repr.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from .errors import DECODE_ERRORS, CorruptError, KeyMissingError, UsageError
from .files import publish, read_small, translated
from .lock import FileLock

logger = logging.getLogger(__name__)

AES_256_GCM: Final = "aes-256-gcm"
CHACHA20_POLY1305: Final = "chacha20-poly1305"
ALGORITHMS: Final = (AES_256_GCM, CHACHA20_POLY1305)
FORMAT: Final = 1
SECRET_BYTES: Final = 32
KEY_ID_MAX: Final = (1 << 32) - 1
KEYS_MAX: Final = 1000
FILE_BYTES_MAX: Final = 1 << 20
LOCK_SUFFIX: Final = ".lock"
LOCK_TIMEOUT_MS: Final = 10_000
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_Seen: TypeAlias = "tuple[int, int, int, int]"


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key: `id` from 1 to 2^32 - 1, `created_ms` since 1970, `secret` as 64 hexadecimal characters."""

    id: int
    algorithm: str
    created_ms: int
    secret: str

    @property
    def secret_bytes(self) -> bytes:
        return bytes.fromhex(self.secret)

    def __repr__(self) -> str:
        return f"Key(id={key_name(self.id)}, algorithm={self.algorithm!r}, created_ms={self.created_ms})"


class Keyring(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of a store. New values are sealed under the active one; the others open older values.

    `id_secret` hides ids and labels. It has nothing to do with the keys and is never rotated.
    """

    format: int
    active: int
    id_secret: str
    keys: tuple[Key, ...]

    def key(self, id: int) -> Key | None:
        """The key with that id, None if it is not here."""
        for key in self.keys:
            if key.id == id:
                return key
        return None

    @property
    def active_key(self) -> Key:
        return self.key(self.active) or self.keys[-1]

    @property
    def id_secret_bytes(self) -> bytes:
        return bytes.fromhex(self.id_secret)

    def __repr__(self) -> str:
        return f"Keyring(active={key_name(self.active)}, keys={list(self.keys)!r})"


def key_name(id: int) -> str:
    """A key's id as people write it: eight hexadecimal digits."""
    return f"{id:08x}"


def parse_key_name(text: str) -> int:
    """The id that key_name() wrote. Raises UsageError."""
    try:
        id = int(text, 16) if text.isascii() and text.isalnum() else 0
    except ValueError:
        id = 0
    if not 0 < id <= KEY_ID_MAX:
        raise UsageError(f"{text!r} is no key", hint="`perdure keys list FILE` shows the ids of the keys.")
    return id


def new_key(algorithm: str, now_ms: int, taken: tuple[Key, ...] = ()) -> Key:
    """A new random key. Its id is random, too, so that keys of different files have different ids."""
    if algorithm not in ALGORITHMS:
        raise UsageError(f"there is no algorithm {algorithm!r}", hint=f"There are: {', '.join(ALGORITHMS)}.")
    ids = {key.id for key in taken}
    id = 0
    while id == 0 or id in ids:
        id = secrets.randbits(32)
    return Key(id, algorithm, now_ms, secrets.token_hex(SECRET_BYTES))


def new_keyring(algorithm: str, now_ms: int) -> Keyring:
    """A keyring with one new key and a new secret for ids."""
    key = new_key(algorithm, now_ms)
    return Keyring(FORMAT, key.id, secrets.token_hex(SECRET_BYTES), (key,))


def with_new_key(ring: Keyring, algorithm: str | None, now_ms: int) -> Keyring:
    """The keyring with one more key, which is active; of the same algorithm unless another is named."""
    if len(ring.keys) >= KEYS_MAX:
        raise UsageError(f"a keyring holds at most {KEYS_MAX} keys", hint="Retire those that nothing uses.")
    key = new_key(algorithm or ring.active_key.algorithm, now_ms, ring.keys)
    return Keyring(FORMAT, key.id, ring.id_secret, (*ring.keys, key))


def without_key(ring: Keyring, id: int) -> Keyring:
    """The keyring without a key that is not the active one. Raises UsageError."""
    if ring.key(id) is None:
        raise UsageError(f"there is no key {key_name(id)}", hint="`perdure keys list FILE` shows the keys.")
    if id == ring.active:
        raise UsageError(
            f"{key_name(id)} is the active key", hint="Rotate first: `perdure keys rotate FILE DIR`."
        )
    return Keyring(FORMAT, ring.active, ring.id_secret, tuple(key for key in ring.keys if key.id != id))


def parse_keyring(text: bytes | str, path: str | Path | None = None) -> Keyring:
    """The keyring that JSON text holds. Raises CorruptError, which tells nothing of the text itself."""
    try:
        ring = msgspec.json.decode(text, type=Keyring)
    except (*DECODE_ERRORS, ValueError) as error:
        raise CorruptError("a keyring does not decode", path=path, hint=_REMAKE) from error
    if problem := _problem_of(ring):
        raise CorruptError(f"a keyring is damaged: {problem}", path=path, hint=_REMAKE)
    return ring


def read_keyring(path: Path) -> Keyring:
    """The keyring in a file. Raises KeyMissingError if there is none, CorruptError, StorageError.

    A file that others than its owner may read is warned of in the log.
    """
    data = read_small(path, FILE_BYTES_MAX)
    if data is None:
        raise KeyMissingError(
            "there is no key file", path=path, hint="`perdure keys init FILE` makes one; check the path."
        )
    if is_open_to_others(path):
        logger.warning("others may read the key file: path=%s; say chmod 600", path)
    return parse_keyring(data, path)


def is_open_to_others(path: Path) -> bool:
    """May others than its owner read or write the file?"""
    with translated("cannot look at the key file", path):
        return bool(os.stat(path).st_mode & _OTHERS)


def make_keyring(path: Path, algorithm: str, now_ms: int) -> Keyring:
    """Make a key file with one key, mode 0600. Raises UsageError if there is a file."""

    def make(old: Keyring | None) -> Keyring:
        if old is not None:
            raise UsageError(
                "there is a key file already", path=path, hint="Take another name, or rotate it."
            )
        return new_keyring(algorithm, now_ms)

    return _change(path, make)


def rotate_keyring(path: Path, algorithm: str | None, now_ms: int) -> Keyring:
    """Add a new key to a key file and make it the active one, atomically."""
    return change_keyring(path, lambda ring: with_new_key(ring, algorithm, now_ms))


def change_keyring(path: Path, change: Callable[[Keyring], Keyring]) -> Keyring:
    """Replace a key file by what `change` makes of it; nobody else changes it meanwhile.

    Survives a crash: the old file or the new one, whole.
    """

    def changed(old: Keyring | None) -> Keyring:
        return change(old if old is not None else read_keyring(path))

    return _change(path, changed)


def _change(path: Path, change: Callable[[Keyring | None], Keyring]) -> Keyring:
    lock = FileLock(path.with_name(path.name + LOCK_SUFFIX))
    try:
        lock.acquire(LOCK_TIMEOUT_MS, "another process that changes the key file")
        ring = change(read_keyring(path) if os.path.lexists(path) else None)
        publish(path, msgspec.json.format(msgspec.json.encode(ring)) + b"\n")
        return ring
    finally:
        lock.close()


_REMAKE: Final = "Bring back a copy of it: without its keys the sessions sealed under them cannot be read."


def _problem_of(ring: Keyring) -> str:
    """What is wrong with a keyring that decodes, empty if nothing."""
    ids = [key.id for key in ring.keys]
    if ring.format != FORMAT:
        return f"it has format {ring.format}, not {FORMAT}"
    if not 0 < len(ids) <= KEYS_MAX or len(set(ids)) != len(ids):
        return "it holds no keys, too many, or one id twice"
    if ring.active not in ids:
        return f"its active key {ring.active} is not among its keys"
    for key in ring.keys:
        if not 0 < key.id <= KEY_ID_MAX or key.algorithm not in ALGORITHMS or not _is_secret(key.secret):
            return f"key {key.id} has an impossible id, algorithm or secret"
    return "" if _is_secret(ring.id_secret) else "its secret for ids is not 64 hexadecimal characters"


def _is_secret(text: str) -> bool:
    try:
        return len(text) == 2 * SECRET_BYTES and len(bytes.fromhex(text)) == SECRET_BYTES
    except ValueError:
        return False


def _path_of(keys: str | os.PathLike[str]) -> Path:
    try:
        path = os.fspath(keys)
    except TypeError as error:
        raise UsageError(f"keys is the path of a key file, or a keyring, not {keys!r}") from error
    if not path or "\0" in path:
        raise UsageError("keys is the path of a key file, or a keyring; this path is none")
    return Path(path)


class KeySource:
    """Where an open store has its keys from: a keyring in memory, or a file that may be rotated.

    Safe for threads. `ring` is replaced as a whole, and never by one whose secret for ids differs.
    """

    def __init__(self, keys: Keyring | str | os.PathLike[str]) -> None:
        """`keys` is a keyring, the path of a key file, or the text of one (which begins with a brace)."""
        self.path: Path | None = None
        self._seen: _Seen | None = None
        self._reading = threading.Lock()
        self.ring: Keyring
        if isinstance(keys, Keyring):
            self.ring = keys
        elif isinstance(keys, str) and keys.lstrip().startswith("{"):
            self.ring = parse_keyring(keys)
        else:
            self.path = _path_of(keys)
            self._seen = self._look()
            self.ring = read_keyring(self.path)

    def refresh(self) -> bool:
        """Read the file again if it was changed; says whether the keyring is another one now.

        Costs one stat() if it was not. Raises as read_keyring(); the keys stay as they were then.
        """
        if self.path is None:
            return False
        seen = self._look()
        if seen == self._seen:
            return False
        with self._reading:
            ring = read_keyring(self.path)
            if ring.id_secret != self.ring.id_secret:
                raise CorruptError(
                    "the key file was replaced by one with another secret for ids",
                    path=self.path,
                    hint="Bring the old one back; close the store before another keyring is put in place.",
                )
            self._seen = seen
            is_other = ring != self.ring
            self.ring = ring
        return is_other

    def _look(self) -> _Seen | None:
        try:
            found = os.stat(self.path or "")
        except OSError:
            return None  # read_keyring() says what is wrong with it
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
