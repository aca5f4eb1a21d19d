"""Images of a state that are compared: buckets, overlays and differences, against the plain way to do it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from perdure.recovery.reconcile import differences
from perdure.recovery.state_pass import (
    BUCKETS,
    Buckets,
    StatePass,
    hash_of_record,
    merged,
    pack_bits,
    unpack_bits,
)
from perdure.store import BusyError, DivergedError, SessionStore, StatePosition, WireError
from perdure.store.fold import record_of

SEED = int(os.environ.get("PERDURE_SEED", "0")) or random.SystemRandom().randrange(1 << 32)


def test_bits_and_sums_come_back_as_they_went() -> None:
    chosen = {0, 7, 8, 4095}
    assert unpack_bits(pack_bits(chosen)) == chosen
    buckets = Buckets()
    buckets.sums[5], buckets.counts[5] = (1 << 64) - 1, 3
    buckets.sums[4095] = 7
    back = Buckets.unpack(buckets.pack())
    assert (back.digest, back.session_count) == (6, 3)
    assert back.differing(Buckets()) == {5, 4095}


@pytest.mark.parametrize("data", [b"", b"x" * 511, b"x" * 513])
def test_bits_or_sums_of_another_size_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        unpack_bits(data)
    with pytest.raises(WireError):
        Buckets.unpack(data)


def test_differences_of_two_streams_are_those_of_two_dicts() -> None:
    print(f"PERDURE_SEED={SEED}")
    rng = random.Random(SEED)
    for _ in range(200):
        one = {bytes([rng.randrange(40)]): rng.randrange(3) for _ in range(rng.randrange(30))}
        other = {bytes([rng.randrange(40)]): rng.randrange(3) for _ in range(rng.randrange(30))}
        found = list(differences(iter(sorted(one.items())), iter(sorted(other.items()))))
        expected = [
            (key, "missing" if key not in other else "extra" if key not in one else "different")
            for key in sorted({*one, *other})
            if one.get(key) != other.get(key)
        ]
        assert found == expected


def test_an_overlay_stands_in_place_of_what_is_stored() -> None:
    print(f"PERDURE_SEED={SEED}")
    rng = random.Random(SEED)
    for _ in range(200):
        stored = {bytes([rng.randrange(30)]): b"s" for _ in range(rng.randrange(20))}
        overlay = {bytes([rng.randrange(30)]): rng.choice([None, b"o"]) for _ in range(rng.randrange(20))}
        expected = {key: record for key, record in {**stored, **overlay}.items() if record is not None}
        assert list(merged(iter(sorted(stored.items())), overlay)) == sorted(expected.items())


def test_a_record_with_a_damaged_hash_of_its_own_differs() -> None:
    good = record_of(b"k", b"value")
    assert hash_of_record(b"k", good) == int.from_bytes(good[:8], "little")
    assert hash_of_record(b"k", b"\0" * 8 + good[8:]) != hash_of_record(b"k", good)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with SessionStore.open(tmp_path / "store") as store:
        for number in range(300):
            store.put(f"s{number}", {"n": number})
    return tmp_path / "store"


def summed(image: StatePass, step: int = 70) -> Buckets:
    while not image.add_up(step):
        pass
    image.rewind()
    return image.buckets


def test_an_image_adds_up_to_what_the_log_says_at_each_later_position(path: Path) -> None:
    image = StatePass(path)
    try:
        positions: list[StatePosition] = [image.at]
        with SessionStore.open(path) as store:
            for change in (
                lambda: store.put("s5", {"n": "again"}),
                lambda: store.delete("s6"),
                lambda: store.regenerate_id("s7"),
                lambda: store.touch("s8"),
                lambda: store.create({}),
            ):
                change()
                positions.append(store._log.cursor.at)
        for to in positions:
            assert image.align(to)
            assert image.at == to
            sums = summed(image)
            assert (sums.digest, sums.session_count) == (to.digest, to.session_count)
        assert image.get(b"s6") is None and image.get(b"s9") is not None
    finally:
        image.close()


@pytest.mark.parametrize("record", [b"", b"zz", b"\0" * 8])
def test_a_record_that_is_cut_off_adds_up_to_what_it_is_compared_by(path: Path, record: bytes) -> None:
    image = StatePass(path)
    try:
        whole = summed(image)
        image._overlay[b"s5"] = record
        cut = summed(image)
        (place,) = cut.differing(whole)
        good = image._stored(b"s5")
        assert good is not None
        change = hash_of_record(b"s5", record) - hash_of_record(b"s5", good)
        assert (cut.sums[place] - whole.sums[place] - change) % (1 << 64) == 0
        assert cut.session_count == whole.session_count
    finally:
        image.close()


def test_names_are_all_keys_of_the_chosen_buckets_in_order(path: Path) -> None:
    image = StatePass(path)
    try:
        found: list[tuple[bytes, int]] = []
        is_complete = False
        while not is_complete:
            some, is_complete = image.names(set(range(BUCKETS)), 50, 200)
            found += some
        assert [key for key, _ in found] == sorted(f"s{number}".encode() for number in range(300))
        assert sum(hashed for _, hashed in found) % (1 << 64) == image.at.digest
    finally:
        image.close()


def test_an_image_is_not_taken_back_nor_ahead_of_the_log_nor_into_another_history(path: Path) -> None:
    image = StatePass(path)
    try:
        at = image.at
        with pytest.raises(BusyError):
            image.align(at._replace(lsn=at.lsn - 1))
        assert not image.align(at._replace(lsn=at.lsn + 1))
        with pytest.raises(DivergedError):
            image.align(at._replace(chain=at.chain ^ 1))
    finally:
        image.close()
