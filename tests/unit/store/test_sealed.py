"""Compressed and sealed values: what is stored, what is refused, what is never shown."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.store import CorruptError, KeyMissingError, Keyring, PerdureError, UsageError, WrongKeyError
from perdure.store import sealer as sealer_module
from perdure.store.errors import SessionTooLargeError
from perdure.store.event import VALUE_BYTES_MAX
from perdure.store.keyring import ALGORITHMS, KeySource, new_keyring, with_new_key
from perdure.store.labels import GROUP, TAG
from perdure.store.sealed import (
    COMPRESSED,
    HIDDEN,
    SEALED,
    is_sealed,
    labels_end,
    outline,
    pack_metadata,
    seal_of,
    unpack_hidden,
    unpack_metadata,
    with_flags,
)
from perdure.store.sealer import COMPRESS_MIN_BYTES, Sealer, SealOptions
from perdure.store.session import (
    ACCESSED_OFFSET,
    TIMEOUT_OFFSET,
    Session,
    encode_session,
    with_accessed,
)

ID, KEY = "user-42", b"user-42"
RING = new_keyring(ALGORITHMS[0], 1)


def plain_value(metadata: dict[str, Any] | None = None, **labels: Any) -> bytes:
    return encode_session(3, 1_000, 2_000, 60_000, 9_000_000, metadata or {"secret": "s3cr3t"}, **labels)


def make(ring: Keyring | None = RING, *, hides: bool = False, compression: str = "none") -> Sealer:
    source = None if ring is None else KeySource(ring)
    return Sealer(SealOptions(compression, 64, source, hides if ring else None), is_hidden=None)


FORMS: dict[str, Callable[[], Sealer]] = {
    "compressed": lambda: make(None, compression="zstd"),
    "sealed": make,
    "chacha": lambda: make(new_keyring(ALGORITHMS[1], 1)),
    "sealed-compressed": lambda: make(compression="zstd"),
    "hidden": lambda: make(hides=True),
    "hidden-compressed": lambda: make(hides=True, compression="zstd"),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Sealer:
    return FORMS[request.param]()


METADATA = st.dictionaries(
    st.text(max_size=20),
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.text(max_size=300), st.binary(max_size=300)
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMS)),
    id=st.text(min_size=1, max_size=80),
    metadata=METADATA,
    group=st.text(max_size=30),
    home_node=st.text(max_size=30),
    tags=st.lists(st.text(max_size=10), max_size=5),
)
def test_what_is_sealed_opens_as_it_was(
    name: str, id: str, metadata: dict[str, Any], group: str, home_node: str, tags: list[str]
) -> None:
    sealer = FORMS[name]()
    plain = plain_value(metadata, group=group, home_node=home_node, tags=tuple(tags))
    key = sealer.key_of(id)
    stored = sealer.seal(id, key, plain)
    assert sealer.open_with_id(key, stored) == (id, plain)
    shown = Session(id, outline(stored))
    whole = Session(id, plain)
    assert shown.metadata == {}
    assert (shown.version, shown.created_at, shown.expires_at) == (3, 1_000, whole.expires_at)
    assert (shown.group == group) is (not sealer.hides_ids or not group)


def test_every_changed_byte_of_a_sealed_value_but_the_last_access_is_refused() -> None:
    for sealer in (make(), make(hides=True, compression="zstd"), make(new_keyring(ALGORITHMS[1], 1))):
        key = sealer.key_of(ID)
        plain = plain_value({"a": "b" * 200}, group="g", tags=("t",))
        stored = sealer.seal(ID, key, plain)
        refused = 0
        for offset in range(len(stored)):
            for bit in (1, 0x80):
                changed = bytearray(stored)
                changed[offset] ^= bit
                try:
                    opened = sealer.open(key, bytes(changed))
                    metadata = Session(ID, opened).metadata
                except (PerdureError, UnicodeDecodeError):
                    refused += 1
                    continue
                assert ACCESSED_OFFSET <= offset < TIMEOUT_OFFSET, (offset, bit, metadata)
                assert metadata == {"a": "b" * 200}
        assert refused == 2 * (len(stored) - 8)


def test_every_cut_of_a_stored_value_is_refused(form: Sealer) -> None:
    key = form.key_of(ID)
    stored = form.seal(ID, key, plain_value({"a": "b" * 200}, tags=("x", "y")))
    for size in range(len(stored)):
        with pytest.raises(PerdureError):
            Session(ID, form.open(key, stored[:size])).metadata  # noqa: B018 - decoding it is what raises


def test_a_sealed_value_under_another_key_is_refused() -> None:
    sealer = make()
    stored = sealer.seal(ID, KEY, plain_value())
    with pytest.raises(WrongKeyError, match="user-43"):
        sealer.open(b"user-43", stored)


def test_a_touch_without_a_key_leaves_a_sealed_value_readable(form: Sealer) -> None:
    key = form.key_of(ID)
    touched = with_accessed(form.seal(ID, key, plain_value({"a": 1})), struct.pack("<Q", 777_777))
    assert Session(ID, form.open(key, touched)).last_accessed == 777_777


def test_a_key_that_is_missing_and_one_that_is_wrong_are_told_apart() -> None:
    stored = make().seal(ID, KEY, plain_value())
    for ring in (None, new_keyring(ALGORITHMS[0], 1)):
        with pytest.raises(KeyMissingError, match=f"{RING.active:08x}") as caught:
            make(ring).open(KEY, stored)
        assert type(caught.value) is KeyMissingError
        assert caught.value.key_id == RING.active
        assert caught.value.hint
    other = new_keyring(ALGORITHMS[0], 1)
    same_id = Keyring(
        1, RING.active, other.id_secret, (type(RING.keys[0])(RING.active, ALGORITHMS[0], 1, "ab" * 32),)
    )
    with pytest.raises(WrongKeyError):
        make(same_id).open(KEY, stored)


def test_an_older_key_opens_what_a_newer_one_does_not_seal_any_more() -> None:
    stored = make().seal(ID, KEY, plain_value())
    rotated = make(with_new_key(RING, None, 2))
    assert rotated.open(KEY, stored) == plain_value()
    assert seal_of(rotated.seal(ID, KEY, plain_value()))[0] != RING.active


def test_no_salt_and_counter_come_twice_also_when_the_counter_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealer_module, "COUNTER_LIMIT", 7)
    sealer = make()
    stored = [sealer.seal(ID, KEY, plain_value()) for _ in range(50)]
    used = {seal_of(value)[1:] for value in stored}
    assert len(used) == 50
    assert len({salt for salt, _ in used}) == 8
    assert max(counter for _, counter in used) == 6
    assert all(sealer.open(KEY, value) == plain_value() for value in stored)


def test_a_forked_child_never_goes_on_with_the_parents_counter() -> None:
    sealer = make()
    sealer.seal(ID, KEY, plain_value())
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, sealer.seal(ID, KEY, plain_value()))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        of_child = pipe.read()
    os.waitpid(child, 0)
    own = sealer.seal(ID, KEY, plain_value())
    assert seal_of(of_child)[1] != seal_of(own)[1]
    assert sealer.open(KEY, of_child) == plain_value()


def test_nothing_of_the_session_shows_in_its_sealed_form() -> None:
    labels: dict[str, Any] = {
        "group": "group-of-alice",
        "home_node": "node-of-alice",
        "tags": ("tag-of-alice",),
    }
    plain = plain_value({"name": "metadata-of-alice"}, **labels)
    sealed = make().seal(ID, KEY, plain)
    assert b"metadata-of-alice" not in sealed
    assert b"group-of-alice" in sealed  # labels are hidden only where ids are
    hiding = make(hides=True)
    key = hiding.key_of("id-of-alice")
    hidden = hiding.seal("id-of-alice", key, plain)
    assert b"alice" not in key + hidden
    assert len(key) == 32 and int(key, 16)
    shown = Session("", outline(hidden))
    assert (shown.group, shown.tags) == (
        hiding.label(GROUP, "group-of-alice"),
        (hiding.label(TAG, "tag-of-alice"),),
    )
    assert hiding.label(GROUP, "x") != hiding.label(TAG, "x")
    assert hiding.label(GROUP, "") == ""


def test_metadata_is_compressed_only_where_that_makes_it_smaller() -> None:
    sealer = Sealer(SealOptions("zstd"), is_hidden=None)
    noise = random.Random(5).randbytes(5_000)
    large, small = plain_value({"a": "b" * 5_000}), plain_value({"a": "b" * 900})
    assert len(small) < COMPRESS_MIN_BYTES
    packed = sealer.seal(ID, KEY, large)
    assert packed[1] == COMPRESSED
    assert len(packed) < 200
    assert sealer.seal(ID, KEY, small) == small
    assert sealer.seal(ID, KEY, plain_value({"n": noise})) == plain_value({"n": noise})


def test_compressed_metadata_that_announce_too_much_are_refused_unread() -> None:
    packed = pack_metadata(b"\x81\xa1a\x01" * 100)
    assert unpack_metadata(packed) == b"\x81\xa1a\x01" * 100
    for size in (0, 399, 401, VALUE_BYTES_MAX, VALUE_BYTES_MAX + 1, (1 << 32) - 1):
        with pytest.raises(CorruptError):
            unpack_metadata(struct.pack("<I", size) + packed[4:])
    bomb = pack_metadata(bytes(VALUE_BYTES_MAX))
    with pytest.raises(CorruptError):
        unpack_metadata(struct.pack("<I", 10) + bomb[4:])


@pytest.mark.parametrize("flags", [HIDDEN, HIDDEN | COMPRESSED, 8, 0x80, 0xFF])
def test_flags_that_are_not_known_are_an_unknown_format(flags: int) -> None:
    value = with_flags(plain_value(), flags)
    for call in (labels_end, outline, lambda value: make().open(KEY, value)):
        with pytest.raises(CorruptError, match="format"):
            call(value)
    with pytest.raises(CorruptError, match="format"):
        Session(ID, with_flags(plain_value(), SEALED)).check()


def test_random_bytes_raise_only_the_codecs_own_errors() -> None:
    seed = int(os.environ.get("PERDURE_SEED", random.randrange(1 << 32)))
    print(f"PERDURE_SEED={seed}")
    source = random.Random(seed)
    sealer, hiding = make(compression="zstd"), make(hides=True)
    good = sealer.seal(ID, KEY, plain_value({"a": "b" * 500}))
    for _ in range(3_000):
        data = bytearray(good if source.random() < 0.7 else source.randbytes(source.randrange(150)))
        for _ in range(source.randrange(4)):
            if data:
                data[source.randrange(len(data))] = source.choice((0, 1, 2, 3, 7, 255, source.randrange(256)))
        for opening in (sealer, hiding):
            try:
                opening.open(KEY, bytes(data))
            except PerdureError:
                pass
        is_sealed(bytes(data))
        try:
            unpack_hidden(bytes(data))
        except CorruptError:
            pass


def test_a_value_that_is_too_large_only_when_sealed_is_refused() -> None:
    plain = plain_value({"a": random.Random(1).randbytes(VALUE_BYTES_MAX - 70)})
    assert len(plain) < VALUE_BYTES_MAX
    with pytest.raises(SessionTooLargeError, match="sealed"):
        make().seal(ID, KEY, plain)


def test_more_tags_than_their_hashes_have_room_for_are_refused() -> None:
    tags = tuple(chr(0x41 + n % 26) for n in range(2_000))
    assert make().seal(ID, KEY, plain_value(tags=tags))
    with pytest.raises(UsageError, match="tags"):
        make(hides=True).seal(ID, KEY, plain_value(tags=tags))


def test_without_the_package_keys_are_refused_and_compression_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        if name.startswith("cryptography"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return import_module(name)

    sealer_module.ciphers.cache_clear()
    monkeypatch.setattr(sealer_module, "import_module", missing)
    try:
        with pytest.raises(UsageError, match="perdure\\[encryption\\]"):
            SealOptions(keys=KeySource(RING))
        assert make(None, compression="zstd").seal(ID, KEY, plain_value({"a": "b" * 300}))[1] == COMPRESSED
    finally:
        sealer_module.ciphers.cache_clear()


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compress_min_bytes": -1},
        {"compress_min_bytes": True},
        {"compress_min_bytes": VALUE_BYTES_MAX + 1},
        {"hide_ids": True},
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SealOptions(**options)


def test_a_known_value_opens_for_ever() -> None:
    """Bytes that were written once: what they mean must never change."""
    key = type(RING.keys[0])(0x01020304, ALGORITHMS[0], 1, "11" * 32)
    ring = Keyring(1, key.id, "22" * 32, (key,))
    sealer = make(ring)
    stored = bytes.fromhex(KNOWN)
    assert Session(ID, sealer.open(KEY, stored)).metadata == {"secret": "s3cr3t"}
    hiding = make(ring, hides=True)
    assert hiding.key_of(ID).decode() == KNOWN_KEY


KNOWN = (
    "01020200000000000300000000000000e803000000000000d00700000000000060ea000000000000"
    "405489000000000004030201000102030405060708090a0b0c0d0e0f050000005704407e8d8b9835"
    "496f9fd8abd4b6fffe41c6b1d3bb2700cdd448b3332911"
)
KNOWN_KEY = "6c24521c5f4523c3cc7748cb70bd339e"
