"""Every byte of a store's files flipped, every length cut, and bits of its state: never wrong, never silent.

With the mark, the control page and the state in place, as they are in the boot that wrote them, damage is
named by `verify`, and opening gives exactly the right sessions or a named error. Without them (the state's
files and the page are another boot's, the mark is gone) `verify` never says that all is well.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from perdure.recovery import Depth, Finding, Level, take_snapshot, verify
from perdure.shipping import Slot, write_slot
from perdure.store import CorruptError, OpenOptions, PerdureError, SessionStore, names, open_store
from perdure.store.cursor import list_segments
from perdure.store.segment import FOOTER_MAGIC
from tests.recovery.stores import contents
from tests.support.faults.content import Content
from tests.support.faults.flips import Damage, cuts, damage_sweep, random_flips
from tests.support.faults.shards import ShardResult
from tests.support.machine import stop_background

SEGMENT_BYTES = 1500
FILES = ("sealed segment", "tail segment", "snapshot", "mark", "promise", "slot", "identity")
BAD = frozenset({Level.UNKNOWN, Level.WARNING, Level.CORRUPT})
NAMED = BAD | {Level.NOTICE}
DEATH = "the checking process died"


@dataclass
class Template:
    """A closed store, all that is in it, and how to bring it back to that."""

    path: Path
    sessions: dict[str, object]
    files: dict[str, Content]
    directories: set[str]
    state_inode: int

    @classmethod
    def make(cls, path: Path, durability: str, more: int = 0) -> Template:
        """Sealed segments and a tail, a snapshot in the middle, a slot; everything folded.

        more: sessions on top, so that the state has many pages.
        """
        options = OpenOptions(segment_bytes=SEGMENT_BYTES)
        with SessionStore(open_store(path, options), options, None) as store:
            for number in range(12):
                store.put(f"key-{number}", {"n": number, "pad": "x" * 40}, None)
            take_snapshot(store._opened)
            for number in range(6, 16):
                store.put(f"key-{number}", {"n": number * 2}, None)
            store.delete("key-1")
            store.update("key-2", lambda session: session.merge({"m": 1}))
            with store.batch() as batch:
                for number in range(more):
                    batch.put(f"more-{number}", {"n": number, "pad": f"{number:03d}" * 30}, None)
            at = store._log.cursor.at
            store._keeper._seal()
            if durability == "disk":
                store._log.flush(at.lsn)
            write_slot(path, Slot("replica", at.epoch, at.lsn, at.chain, "streaming", 1))
            sessions = contents(store)
        found = cls(path, sessions, {}, set(), (path / names.STATE).stat().st_ino)
        found.files = {name: Content.load(path / name) for name in found._walk()}
        found.directories = found._directories()
        return found

    def restore(self) -> None:
        """Bring back every byte, in the very files: a state in other files is a copy, and not trusted."""
        if (self.path / names.STATE).stat().st_ino != self.state_inode:
            aside = [p for p in (self.path / names.ASIDE).iterdir() if p.stat().st_ino == self.state_inode]
            shutil.rmtree(self.path / names.STATE)
            aside[0].rename(self.path / names.STATE)
        for name in self._walk() - self.files.keys():
            (self.path / name).unlink()
        for name in sorted(self._directories() - self.directories, reverse=True):
            (self.path / name).rmdir()
        for name, content in self.files.items():
            descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o600)
            if os.fstat(descriptor).st_size != content.size or name.endswith(".mdb"):
                os.ftruncate(descriptor, 0)
                os.ftruncate(descriptor, content.size)
            os.pwrite(descriptor, content.data, 0)
            os.close(descriptor)

    def place_of(self, what: str) -> Path:
        segments = list_segments(self.path / names.LOG)
        return {
            "sealed segment": segments[1].path,
            "tail segment": segments[-1].path,
            "snapshot": next((self.path / names.SNAPSHOTS).iterdir()),
            "mark": self.path / names.LOG / names.MARK,
            "promise": self.path / names.PROMISE,
            "slot": self.path / names.SLOTS / names.slot_name("replica"),
            "identity": self.path / names.IDENTITY,
        }[what]

    def copy_of_another_boot(self, *, has_mark: bool) -> Path:
        """The store as it stands, without what speaks for this boot alone."""
        target = self.path.with_name(f"{self.path.name}-copy")
        shutil.rmtree(target, ignore_errors=True)
        left_out = (names.STATE, names.CONTROL_PAGE, names.ASIDE, *(() if has_mark else (names.MARK,)))
        shutil.copytree(self.path, target, ignore=shutil.ignore_patterns(*left_out, "*.sock"))
        (target / names.ASIDE).mkdir()
        return target

    def _walk(self) -> set[str]:
        return {
            str(path.relative_to(self.path))
            for path in self.path.rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    def _directories(self) -> set[str]:
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_dir()}


@pytest.fixture(params=["os", "disk"])
def template(request: pytest.FixtureRequest, workdir: Path) -> Template:
    return Template.make(workdir / "store", request.param)


def opening(path: Path, expected: dict[str, object], what: str) -> list[str]:
    """The sessions of a store that is opened, if they are not the right ones. A named error is right."""
    try:
        with SessionStore.open(path, create=False) as store:
            found = contents(store)
    except PerdureError as error:
        return [] if str(error) else [f"{what} ended with {type(error).__name__}, which says nothing"]
    if found == expected:
        return []
    lost = sorted(expected.keys() - found.keys())
    return [f"{what} gave other sessions: lost {lost}, {len(found)} in all"]


def findings(path: Path, level: Depth = Depth.CHAIN, at_least: frozenset[Level] = BAD) -> list[Finding]:
    return [found for found in verify(path, level=level) if found.level in at_least]


def names_file(found: Iterable[Finding], path: Path) -> bool:
    """By its path, or, of a segment that ends too early, in what is said of the one behind it."""
    return any((one.path is not None and str(path) in one.path) or path.name in one.message for one in found)


def lost_its_footer(what: str, damage: Damage, data: bytes) -> bool:
    """A segment cut before its footer is as one that was not sealed yet: nothing is lost, and it is said."""
    return damage.kind == "cut" and what == "sealed segment" and data.rfind(FOOTER_MAGIC) == damage.offset


def sweep(template: Template, what: str, damages: Iterable[Damage], durability: str) -> ShardResult:
    path = template.place_of(what)
    data = path.read_bytes()

    def judge(damage: Damage, damaged: bytes) -> Iterable[object]:
        template.restore()
        path.write_bytes(damaged)
        found = findings(template.path, at_least=NAMED if lost_its_footer(what, damage, data) else BAD)
        if not names_file(found, path):
            yield f"verify does not name {path.name}: {[str(one) for one in found]}"
        if what != "mark":
            copy = template.copy_of_another_boot(has_mark=False)
            if not findings(copy):
                yield "without mark and state verify says that all is well"
        if durability == "disk":
            copy = template.copy_of_another_boot(has_mark=True)
            yield from opening(copy, template.sessions, "opening in another boot")
        yield from opening(template.path, template.sessions, "opening")

    result = damage_sweep(data, damages, judge, workers=1, stop_after=30)
    template.restore()
    return result


def test_an_undamaged_store_is_found_to_be_well_and_opens_with_its_state(template: Template) -> None:
    assert findings(template.path, Depth.REPLAY) == []
    with SessionStore.open(template.path, create=False) as store:
        assert store._opened.rebuilt == ""
        assert contents(store) == template.sessions
    template.restore()
    with SessionStore.open(template.path, create=False) as store:
        assert store._opened.rebuilt == ""
    for has_mark in (True, False):
        copy = template.copy_of_another_boot(has_mark=has_mark)
        assert {one.level for one in findings(copy)} <= {Level.UNKNOWN}
        assert opening(copy, template.sessions, "opening") == []


@pytest.mark.parametrize("what", FILES)
def test_a_flipped_bit_or_a_lost_end_is_named_and_never_served(
    template: Template, request: pytest.FixtureRequest, seed: int, what: str
) -> None:
    size = template.place_of(what).stat().st_size
    damages = [*random_flips(size, 24, seed), *cuts(size, step=size // 12 + 1), Damage("cut", size - 1)]
    result = sweep(template, what, damages, request.node.callspec.params["template"])
    assert result.violations == []
    assert result.totals["checked"] >= 30


@pytest.mark.lab
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("what", FILES)
def test_every_flipped_byte_and_every_length_is_named_and_never_served(
    template: Template, request: pytest.FixtureRequest, seed: int, what: str
) -> None:
    size = template.place_of(what).stat().st_size
    bits = random_flips(8, 8, seed)
    flipped = [Damage("flip", at, bits[(at * 5 + seed) % 8].value or 1) for at in range(size)]
    result = sweep(template, what, [*flipped, *cuts(size)], request.node.callspec.params["template"])
    print(result.totals)
    assert result.violations == []
    assert result.totals["checked"] == 2 * size


@pytest.mark.parametrize("kept", ["changed", "half", "none"])
def test_the_last_frame_of_a_killed_writer_is_missed_in_the_boot_that_wrote_it(
    workdir: Path, kept: str
) -> None:
    """No sync, no fold and no later frame speaks of it: only the control page does."""
    path = workdir / "store"
    with SessionStore.open(path):
        pass
    if (pid := os.fork()) == 0:
        store = SessionStore.open(path)
        stop_background(store)  # no fold
        store.put("first", {"n": 1}, None)
        store.put("last", {"n": 2}, None)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    segment = list_segments(path / names.LOG)[-1].path
    data = segment.read_bytes()
    last = data.rindex(b"PDF1") - 16
    segment.write_bytes(
        {"changed": data[:-1] + bytes([data[-1] ^ 1]), "half": data[: last + 90], "none": data[:last]}[kept]
    )
    with pytest.raises(CorruptError, match="the control page says that LSN 4 was written"):
        SessionStore.open(path, create=False)
    segment.write_bytes(data)
    with SessionStore.open(path, create=False) as store:
        assert contents(store) == {"first": {"n": 1}, "last": {"n": 2}}


# -- the state ---------------------------------------------------------------------------------------


def judge_state(template: Template, damage: Damage) -> tuple[str, list[str]]:
    """(what came of it, what is wrong): open and read all; verify must find what is hidden or extra."""
    template.restore()
    path = template.path / names.STATE / "lmdb" / "data.mdb"
    with path.open("r+b") as file:
        file.seek(damage.offset)
        byte = file.read(1)[0]
        file.seek(damage.offset)
        file.write(bytes([byte ^ damage.value]))
    try:
        with SessionStore.open(template.path, create=False) as store:
            if store._opened.rebuilt:
                is_right = contents(store) == template.sessions
                return "made anew", [] if is_right else ["the state was made anew, and is wrong"]
            outcome, wrong = read_all(store, template.sessions)
    except PerdureError:
        return "refused", []
    if outcome == "hidden or extra" and not findings(template.path, Depth.REPLAY):
        wrong.append("a session is hidden, or there is one too many, and verify says that all is well")
    return outcome, wrong


def read_all(store: SessionStore, expected: Mapping[str, object]) -> tuple[str, list[str]]:
    """(the worst that came of reading every session, the wrong values that were read)"""
    outcome, wrong = "right", list[str]()
    for id in [*expected, "key-1", "key-99"]:
        for read in (store.peek, store.get):
            try:
                session = read(id)
            except PerdureError:
                outcome = "refused" if outcome == "right" else outcome
                continue
            if session is None:
                outcome = "hidden or extra" if id in expected else outcome
            elif dict(session.metadata) != expected.get(id):
                wrong.append(f"{id} reads as {dict(session.metadata)}")
    try:
        return ("hidden or extra" if set(store.ids()) != expected.keys() else outcome), wrong
    except PerdureError:
        return ("refused" if outcome == "right" else outcome), wrong


def flip_state(workdir: Path, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Flips in bytes that hold something, of old pages too."""
    template = Template.make(workdir / "store", "os", more=150)
    state = template.files[f"{names.STATE}/lmdb/data.mdb"]
    used = [at for at, byte in enumerate(state.data) if byte]
    places = random_flips(len(used), count, seed)

    def judge(damage: Damage, _: bytes) -> Iterable[object]:
        outcome, wrong = judge_state(template, Damage("flip", used[damage.offset], damage.value))
        with (workdir / "outcomes").open("a") as file:
            file.write(f"{outcome}\n")
        return wrong

    result = damage_sweep(bytes(len(used)), places, judge, workers=1, stop_after=10_000)
    # The death of a reading child is LMDB's, and contained.
    dead = [text for text in result.violations if DEATH in text]
    outcomes = Counter((workdir / "outcomes").read_text().splitlines())
    outcomes["ended its reader"] = len(dead)
    print(dict(outcomes))
    return outcomes, [text for text in result.violations if DEATH not in text]


def test_a_flipped_bit_of_the_state_is_never_served(workdir: Path, seed: int) -> None:
    outcomes, wrong = flip_state(workdir, 60, seed)
    assert wrong == []
    assert outcomes.total() == 60


@pytest.mark.lab
@pytest.mark.timeout(1800)
def test_a_thousand_flipped_bits_of_the_state_are_never_served(workdir: Path, seed: int) -> None:
    outcomes, wrong = flip_state(workdir, 1000, seed)
    assert wrong == []
    assert outcomes.total() == 1000
    assert outcomes["refused"] > 10
