"""Any run of calls on a store answers as the model does, on each back end. A failure prints how to repeat it.

Two handles work on one store; time is the test's; background work rests, so that the run alone says when
something is folded or written. A crash leaves what SIGKILL leaves: files as they are at that moment, without
anything that a handle does when it is closed. Once the state goes on as it is, once the store's files are
copied away from under the handle, so that the state has to be made anew.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from perdure.store import Priority, Session, SessionNotFoundError, SessionStore, VersionConflictError
from perdure.store.opening import OpenOptions, open_store
from tests.contract.session_model import DAY_MS, Held, Model, fields_of
from tests.support.machine import stop_background

EXAMPLES = int(os.environ.get("PERDURE_MACHINE_EXAMPLES", "200"))
LAB_EXAMPLES = 25 * EXAMPLES
STEPS = 16

IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where syncs cost nothing: the runs do not lose power."""

FIXED = ("a", "ab", "b", "k" * 600, "k" * 600 + "a")
FRESH = ("new-0", "new-1")
"""Stand for the newest ids that the store made."""
IDS = st.sampled_from(FIXED + FRESH)
PREFIXES = st.sampled_from(["", "a", "ab", "k", "k" * 550, "z"])
METADATA = st.dictionaries(
    st.sampled_from(["user", "n", "cart"]), st.integers(0, 9) | st.text(max_size=3), max_size=2
)
TTLS = st.none() | st.sampled_from([1, 500, 30_000, 3_600_000])
GROUPS = st.sampled_from(["", "user 1", "user 2", "g" * 70])
TAGS = st.lists(st.sampled_from(["web", "eu", "t\u00e4g"]), unique=True, max_size=2).map(tuple)
NODES = st.sampled_from(["", "n1", "n2", "n3"])
PRIORITIES = st.sampled_from(list(Priority))
LABELS = st.fixed_dictionaries(
    {}, optional={"priority": PRIORITIES, "group": GROUPS, "tags": TAGS, "home_node": NODES}
)
HANDLES = st.sampled_from([0, 0, 1])
STEPS_MS = st.sampled_from([0, 1, 49, 60, 501, 3_100, 33_001, 60_001, 3_660_001, DAY_MS])


@dataclass
class Clock:
    ms: int = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


@dataclass
class Handle:
    """An open store, and the refreshes that wait in its memory."""

    store: SessionStore
    waiting: dict[str, int] = field(default_factory=dict)


class StoreMachine(RuleBasedStateMachine):
    """Model against store. Subclasses name the back end and the options."""

    backend: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.model = Model()
        self.fresh: list[str] = []
        self.place = tempfile.TemporaryDirectory(prefix="perdure-machine-", dir=IN_MEMORY)
        self.path = Path(self.place.name) / "0"
        self.copies = 0
        self.handles: list[Handle | None] = [None, None]
        self.folds = False

    def teardown(self) -> None:
        try:
            self._check_all()
            for number in (0, 1):
                self._close(number)
            self._check_all()
        finally:
            for handle in filter(None, self.handles):
                handle.store.close()
            self.place.cleanup()

    # -- handles ---------------------------------------------------------------------------------

    def _open(self) -> Handle:
        options = OpenOptions(backend=self.backend, clock=self.clock, **self.options)
        store = SessionStore(open_store(self.path, options), options, None)
        stop_background(store)  # no background work: the run decides what happens when
        return Handle(store)

    def _handle(self, number: int) -> Handle:
        handle = self.handles[number] = self.handles[number] or self._open()
        return handle

    def _close(self, number: int) -> None:
        handle, self.handles[number] = self.handles[number], None
        if handle is not None:
            self._write_refreshes(handle)
            handle.store.close()

    def _drop(self) -> None:
        """What is left of both processes when they are killed: their locks are free, nothing else is done."""
        for handle in filter(None, self.handles):
            keeper = handle.store._keeper
            if keeper._thread is not None:
                keeper._thread.join()
            keeper._thread = None  # so that closing does none of the last work
            for lock in (keeper._fold_lock, keeper._seal_lock):
                lock.close()
            handle.store.close()
        self.handles = [None, None]

    def _write_refreshes(self, handle: Handle) -> None:
        for id, at_ms in handle.waiting.items():
            self.model.use(id, at_ms)
        handle.waiting.clear()

    def _id(self, name: str) -> str:
        if name not in FRESH:
            return name
        number = FRESH.index(name)
        return self.fresh[-1 - number] if number < len(self.fresh) else "f" * 32

    # -- single sessions -------------------------------------------------------------------------

    @rule(number=HANDLES, metadata=METADATA, timeout=TTLS, lifetime=TTLS, labels=LABELS)
    def create(
        self,
        number: int,
        metadata: dict[str, Any],
        timeout: int | None,
        lifetime: int | None,
        labels: dict[str, Any],
    ) -> None:
        id = self._handle(number).store.create(
            metadata, timeout_ms=timeout, max_lifetime_ms=lifetime, **labels
        )
        assert id not in self.model.held
        now = self.clock.ms
        self.model.held[id] = Held(
            1, now, now, timeout or 0, now + lifetime if lifetime else 0, metadata, **labels
        )
        self.fresh.append(id)

    @rule(
        number=HANDLES,
        name=IDS,
        metadata=METADATA,
        ttl=TTLS,
        sliding=st.booleans(),
        labels=LABELS,
        expects=st.none() | st.integers(0, 2),
    )
    def put(
        self,
        number: int,
        name: str,
        metadata: dict[str, Any],
        ttl: int | None,
        sliding: bool,
        labels: dict[str, Any],
        expects: int | None,
    ) -> None:
        id, store = self._id(name), self._handle(number).store
        if not self._conflicts(
            id, expects, lambda: store.put(id, metadata, ttl, sliding=sliding, if_version=expects, **labels)
        ):
            session = store.put(id, metadata, ttl, sliding=sliding, if_version=expects, **labels)
            held = self.model.put(id, self.clock.ms, ttl, sliding, metadata=metadata, **labels)
            assert fields_of(session) == held.fields()

    @rule(number=HANDLES, name=IDS, refreshes=st.booleans())
    def read(self, number: int, name: str, refreshes: bool) -> None:
        id, handle = self._id(name), self._handle(number)
        now, held = self.clock.ms, self.model.live(id, self.clock.ms)
        session = handle.store.get(id) if refreshes else handle.store.peek(id)
        assert (None if session is None else fields_of(session)) == (None if held is None else held.fields())
        assert handle.store.exists(id) == (id in handle.store) == (held is not None)
        if refreshes and held is not None and self.model.waits_for_refresh(held, now):
            handle.waiting[id] = now

    @rule(
        number=HANDLES,
        name=IDS,
        metadata=METADATA,
        how=st.sampled_from(["merge", "replace", "patch", "raise"]),
        labels=LABELS,
        timeout=TTLS,
        expects=st.none() | st.integers(0, 2),
    )
    def update(
        self,
        number: int,
        name: str,
        metadata: dict[str, Any],
        how: str,
        labels: dict[str, Any],
        timeout: int | None,
        expects: int | None,
    ) -> None:
        id, handle = self._id(name), self._handle(number)
        held = self.model.live(id, self.clock.ms)

        def function(session: Session) -> Session:
            assert held is not None
            assert fields_of(session) == held.fields()
            if how == "raise":
                raise ZeroDivisionError
            return (
                session.merge(metadata)
                if how == "merge"
                else session.replace(metadata=metadata, timeout_ms=timeout, **labels)
            )

        def call() -> Session:
            if how == "patch":
                return handle.store.patch(id, metadata, if_version=expects)
            return handle.store.update(id, function, if_version=expects)

        if self._conflicts(id, expects, call) or self._is_missing(id, call):
            return
        if how == "raise":
            with pytest.raises(ZeroDivisionError):
                call()
            return
        assert held is not None
        session = call()
        if how == "replace":
            held = self.model.change(id, self.clock.ms, metadata=metadata, timeout_ms=timeout or 0, **labels)
        else:
            held = self.model.change(id, self.clock.ms, metadata={**held.metadata, **metadata})
        assert fields_of(session) == held.fields()
        handle.waiting.pop(id, None)

    @rule(number=HANDLES, name=IDS, expects=st.none() | st.integers(0, 2))
    def touch(self, number: int, name: str, expects: int | None) -> None:
        id, handle = self._id(name), self._handle(number)

        def call() -> None:
            handle.store.touch(id, if_version=expects)

        if not self._conflicts(id, expects, call) and not self._is_missing(id, call):
            call()
            handle.waiting.pop(id, None)
            self.model.held[id] = replace(self.model.held[id], accessed_ms=self.clock.ms)

    @rule(number=HANDLES, name=IDS, expects=st.none() | st.integers(0, 2))
    def delete(self, number: int, name: str, expects: int | None) -> None:
        id, handle = self._id(name), self._handle(number)
        if self._conflicts(id, expects, lambda: handle.store.delete(id, if_version=expects)):
            return
        held = self.model.live(id, self.clock.ms)
        assert handle.store.delete(id, if_version=expects) == (held is not None)
        if held is not None:
            del self.model.held[id]
            handle.waiting.pop(id, None)

    @rule(number=HANDLES, name=IDS, expects=st.none() | st.integers(0, 2))
    def regenerate_id(self, number: int, name: str, expects: int | None) -> None:
        id, handle = self._id(name), self._handle(number)

        def call() -> str:
            return handle.store.regenerate_id(id, if_version=expects)

        if not self._conflicts(id, expects, call) and not self._is_missing(id, call):
            new = call()
            self.model.held[new] = self.model.held.pop(id)
            handle.waiting.pop(id, None)
            self.fresh.append(new)

    def _conflicts(self, id: str, expects: int | None, call: Any) -> bool:
        held = self.model.live(id, self.clock.ms)
        actual = held.version if held else 0
        if expects is None or expects == actual:
            return False
        with pytest.raises(VersionConflictError) as caught:
            call()
        assert (caught.value.expected, caught.value.actual) == (expects, actual or None)
        return True

    def _is_missing(self, id: str, call: Any) -> bool:
        if self.model.live(id, self.clock.ms) is not None:
            return False
        with pytest.raises(SessionNotFoundError):
            call()
        return True

    # -- many sessions ---------------------------------------------------------------------------

    @rule(
        number=HANDLES,
        changes=st.lists(
            st.tuples(st.sampled_from(["create", "put", "touch", "delete"]), IDS, METADATA, TTLS, LABELS),
            max_size=6,
        ),
        breaks_off=st.booleans(),
    )
    def batch(
        self,
        number: int,
        changes: list[tuple[str, str, dict[str, Any], int | None, dict[str, Any]]],
        breaks_off: bool,
    ) -> None:
        handle, now = self._handle(number), self.clock.ms
        before, waiting = dict(self.model.held), dict(handle.waiting)
        fresh = list(self.fresh)
        try:
            with handle.store.batch() as batch:
                for what, name, metadata, ttl, labels in changes:
                    id = self._id(name)
                    if what == "create":
                        id = batch.create(metadata, timeout_ms=ttl, **labels)
                        self.model.held[id] = Held(1, now, now, ttl or 0, 0, metadata, **labels)
                        fresh.append(id)
                    elif what == "put":
                        batch.put(id, metadata, ttl, **labels)
                        self.model.put(id, now, ttl, sliding=False, metadata=metadata, **labels)
                    elif self.model.live(id, now) is None:
                        getattr(batch, what)(id)  # does nothing
                    elif what == "touch":
                        batch.touch(id)
                        self.model.held[id] = replace(self.model.held[id], accessed_ms=now)
                    else:
                        batch.delete(id)
                        del self.model.held[id]
                if breaks_off:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            self.model.held, handle.waiting = before, waiting
        else:
            self.fresh = fresh

    @rule(number=HANDLES, group=GROUPS.filter(bool), touches=st.booleans())
    def change_group(self, number: int, group: str, touches: bool) -> None:
        handle, now = self._handle(number), self.clock.ms
        members = self.model.ids("", "", lambda held: held.group == group)
        live = [id for id in members if self.model.live(id, now)]
        done = handle.store.touch_group(group) if touches else handle.store.delete_group(group)
        assert done == (len(live), True)
        for id in live if touches else members:
            handle.waiting.pop(id, None)
            if touches:
                self.model.held[id] = replace(self.model.held[id], accessed_ms=now)
            else:
                del self.model.held[id]

    @rule(number=HANDLES, members=st.sets(NODES.filter(bool), min_size=1), adopts=st.booleans())
    def change_orphans(self, number: int, members: set[str], adopts: bool) -> None:
        handle, now = self._handle(number), self.clock.ms
        orphans = self.model.orphans(members)
        assert sorted(handle.store.orphans(members)) == sorted(orphans)
        assert handle.store.count_orphans(members) == len(orphans)
        live = [id for id in orphans if self.model.live(id, now)]
        if adopts:
            home = min(members)
            assert handle.store.adopt_orphans(members, home) == len(live)
            for id in live:
                old = self.model.held[id]
                self.model.held[id] = replace(old, version=old.version + 1, home_node=home)
        else:
            assert handle.store.cleanup_orphans(members) == len(live)
            for id in orphans:
                handle.waiting.pop(id, None)
                del self.model.held[id]

    @rule(number=HANDLES, step_ms=STEPS_MS)
    def cleanup_expired(self, number: int, step_ms: int) -> None:
        self.clock.ms += step_ms
        handle = self._handle(number)
        self._write_refreshes(handle)
        assert handle.store.cleanup_expired() == self.model.sweep(self.clock.ms)

    @rule(number=HANDLES, prefix=PREFIXES, after=IDS | st.just(""))
    def list_some(self, number: int, prefix: str, after: str) -> None:
        store, after = self._handle(number).store, self._id(after)
        assert list(store.ids(prefix, after)) == self.model.ids(prefix, after)
        live = [id for id in self.model.ids(prefix, after) if self.model.live(id, self.clock.ms)]
        assert [session.id for session in store.sessions(prefix=prefix, after=after)] == live

    @rule(
        number=HANDLES,
        group=st.none() | GROUPS.filter(bool),
        tag=st.none() | st.just("web"),
        home=st.none() | NODES.filter(bool),
        priority=st.none() | PRIORITIES,
        prefix=PREFIXES,
    )
    def find(
        self,
        number: int,
        group: str | None,
        tag: str | None,
        home: str | None,
        priority: Priority | None,
        prefix: str,
    ) -> None:
        store = self._handle(number).store

        def has(held: Held) -> bool:
            return (
                group in (None, held.group)
                and (tag is None or tag in held.tags)
                and home in (None, held.home_node)
                and priority in (None, held.priority)
            )

        labels: dict[str, Any] = {"group": group, "tag": tag, "home_node": home, "priority": priority}
        assert list(store.ids(prefix, **labels)) == self.model.ids(prefix, "", has)
        assert store.count(**labels) == len(self.model.ids("", "", has))
        held = self.model.held.values()
        assert set(store.groups()) == {one.group for one in held} - {""}
        assert set(store.tags()) == {tag for one in held for tag in one.tags}
        assert set(store.home_nodes()) == {one.home_node for one in held} - {""}

    # -- time, fold, and what happens to processes -----------------------------------------------

    @rule(step_ms=STEPS_MS)
    def time_passes(self, step_ms: int) -> None:
        self.clock.ms += step_ms

    @rule(number=HANDLES)
    def fold(self, number: int) -> None:
        self._handle(number).store.fold()

    @rule(number=HANDLES)
    def flush(self, number: int) -> None:
        handle = self._handle(number)
        handle.store.flush()
        self._write_refreshes(handle)

    @rule(number=HANDLES)
    def close(self, number: int) -> None:
        self._close(number)

    @rule()
    def crash(self) -> None:
        self._drop()

    @rule()
    def crash_and_lose_the_state(self) -> None:
        self._handle(0)
        self.copies += 1
        copy = Path(self.place.name) / str(self.copies)
        shutil.copytree(self.path, copy, ignore=shutil.ignore_patterns("state", "aside", "*.sock"))
        self._drop()
        shutil.rmtree(self.path)
        self.path = copy

    @initialize(folds=st.booleans())
    def decide(self, folds: bool) -> None:
        """In half of the runs whatever is written is folded at once: then the state is what is read."""
        self.folds = folds

    @invariant()
    def every_handle_sees_what_the_model_holds(self) -> None:
        for handle in filter(None, self.handles):
            if self.folds:
                handle.store.fold()
            self._check(handle.store)

    def _check_all(self) -> None:
        self._check(self._handle(0).store)

    def _check(self, store: SessionStore) -> None:
        model, now = self.model, self.clock.ms
        ids = model.ids("", "")
        assert (store.count(), list(store.ids())) == (len(ids), ids)
        live = [(id, one.fields()) for id in ids if (one := model.live(id, now))]
        assert [(session.id, fields_of(session)) for session in store.sessions()] == live
        held = model.held
        for group in {one.group for one in held.values()} - {""}:
            assert list(store.ids(group=group)) == [id for id in ids if held[id].group == group]
        for priority in (Priority.HIGH, Priority.LOW):
            assert list(store.ids(priority=priority)) == [id for id in ids if held[id].priority == priority]


def run_machine(machine: type[StoreMachine], examples: int) -> None:
    chosen = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        database=None,
        derandomize=False,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)


def machine_of(backend: str, **options: Any) -> type[StoreMachine]:
    return type(f"Machine_{backend}", (StoreMachine,), {"backend": backend, "options": options})


@pytest.mark.timeout(900)
def test_any_run_of_calls_on_a_store_answers_as_the_model_does(backend_name: str) -> None:
    run_machine(machine_of(backend_name), EXAMPLES)


@pytest.mark.lab
@pytest.mark.timeout(3600)
def test_any_of_many_runs_of_calls_on_a_store_answers_as_the_model_does(backend_name: str) -> None:
    run_machine(machine_of(backend_name), LAB_EXAMPLES)
