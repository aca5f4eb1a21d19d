"""Any run of calls on a back end answers as a dict does. A failure prints how to repeat it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, given, settings

from perdure.store.ids import NOWHERE
from perdure.store.ports import Backend, KeyScan
from tests.contract.children import at, open_way
from tests.contract.conftest import is_shared

EXAMPLES = int(os.environ.get("PERDURE_MODEL_EXAMPLES", "50"))
KEYS = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from(
        [b"k" * size + end for size in (478, 479, 510, 511, 512, 1020) for end in (b"", b"a", b"b")]
    ),
)
RECORDS = st.one_of(st.none(), st.binary(min_size=8, max_size=40), st.just(b"big" * 3000))
TERMS = st.sampled_from([b"ga", b"gab", b"gb", b"ta", b"u", b"u0001", b"g" * 64])
PAIRS = st.lists(st.tuples(TERMS, KEYS), max_size=12)
DEADLINES = st.lists(st.tuples(st.integers(0, 60_000), KEYS), max_size=30)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("fold"), st.dictionaries(KEYS, RECORDS, max_size=12), DEADLINES, st.integers(0, 40), PAIRS
        ),
        st.tuples(st.just("refresh")),
        st.tuples(st.just("scan"), KEYS),
        st.tuples(st.just("find"), st.tuples(TERMS, KEYS), TERMS, st.integers(1, 20)),
        st.tuples(st.just("due"), st.integers(0, 70_000), st.integers(1, 40)),
        st.tuples(st.just("reopen")),
    ),
    max_size=14,
)


class Model:
    """What a back end must answer."""

    def __init__(self, way: str, place: Path) -> None:
        self.way, self.place = way, place
        self.backend: Backend = open_way(way, place)
        self.sessions: dict[bytes, bytes] = {}
        self.seen: dict[bytes, bytes] = {}
        self.armed: set[tuple[int, bytes]] = set()
        self.pairs: set[tuple[bytes, bytes]] = set()
        self.pairs_seen: set[tuple[bytes, bytes]] = set()
        self.lsn = 0

    def do_fold(
        self,
        changes: dict[bytes, Any],
        armed: list[tuple[int, bytes]],
        disarm: int,
        pairs: list[tuple[bytes, bytes]],
    ) -> None:
        self.lsn += 1
        unlabelled = sorted(self.pairs - set(pairs))[:disarm:3]
        disarmed = sorted(self.armed)[:disarm:2]
        self.backend.fold(sorted(changes.items()), armed, disarmed, at(self.lsn), pairs, unlabelled)
        self.pairs = (self.pairs - set(unlabelled)) | set(pairs)
        merged: dict[bytes, Any] = self.sessions | changes
        self.sessions = {key: record for key, record in merged.items() if record is not None}
        self.armed = (self.armed - set(disarmed)) | set(armed)
        for key in changes:
            assert self.backend.get(key) == self.seen.get(key)

    def do_refresh(self) -> None:
        assert self.backend.refresh() == (at(self.lsn) if self.lsn else NOWHERE)
        self.seen = dict(self.sessions)
        self.pairs_seen = set(self.pairs)
        assert self.backend.has_labels == bool(self.pairs)
        for key, record in self.seen.items():
            assert self.backend.get(key) == record

    def do_scan(self, after: bytes) -> None:
        scan = self.backend.scan(after)
        try:
            expected = sorted((key, record) for key, record in self.sessions.items() if key > after)
            assert list(scan) == expected
        finally:
            scan.close()
        self.check_keys(after, [key for key, _ in expected])

    def check_keys(self, after: bytes, expected: list[bytes]) -> None:
        scan = self.backend.scan(after)
        try:
            if isinstance(scan, KeyScan):
                for start in range(0, len(expected) + 2, 2):
                    assert scan.next_keys(2) == expected[start : start + 2]
        finally:
            scan.close()

    def do_find(self, above: tuple[bytes, bytes], last_term: bytes, limit: int) -> None:
        expected = sorted(pair for pair in self.pairs_seen if pair > above and pair[0] <= last_term)
        assert self.backend.find(above, last_term, limit) == expected[:limit]

    def do_due(self, until_ms: int, limit: int) -> None:
        expected = sorted(entry for entry in self.armed if entry[0] <= until_ms)[:limit]
        assert self.backend.due(until_ms, limit) == expected

    def do_reopen(self) -> None:
        self.backend.close()
        self.backend = open_way(self.way, self.place)
        if not is_shared(self.way):
            self.sessions, self.armed, self.pairs, self.lsn = {}, set(), set(), 0
        self.do_refresh()


def test_any_run_of_calls_answers_as_a_dict_does(way: str) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(STEPS)
    def run(steps: list[tuple[Any, ...]]) -> None:
        with tempfile.TemporaryDirectory() as place:
            model = Model(way, Path(place))
            try:
                model.do_refresh()
                for name, *arguments in steps:
                    getattr(model, f"do_{name}")(*arguments)
                model.do_refresh()
                model.do_scan(b"")
            finally:
                model.backend.close()

    run()
