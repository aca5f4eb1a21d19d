"""Going on without replicas and back: each step by itself, and a model that is broken off everywhere.

The model runs the real decisions (next_step, the witness's rules, the count of promises) over a primary p, a
replica r and a witness w whose messages are lost, delayed and come twice, and which crash. After each action
one question is asked: whoever could be promoted now without consent, has it every acknowledged write?
"""

from __future__ import annotations

import random

import msgspec
import pytest

from perdure.recovery import availability
from perdure.recovery.availability import ALONE_AFTER_MS, Act, Scene, Step, config_after, next_step
from perdure.recovery.promises import Answer, count_promises
from perdure.store import Config, Position, Promise, PromiseRefusedError
from perdure.store.witness import InSync, WitnessState, promised, recorded

CONFIG = Config(("p", "r", "w"), 1, witnesses=("w",), policy="available")
ALONE = config_after(CONFIG, Step(Act.GO_ALONE), 9)


def scene(
    config: Config = CONFIG, *, following: int = 0, held: InSync | None = None, **more: object
) -> Scene:
    known = {} if held is None else {"w": held}
    values: dict[str, object] = {"is_config_committed": True, "is_caught_up": True, "since_ms": 60_000}
    return Scene(primary="p", config=config, following=following, held=known, **(values | more))  # type: ignore[arg-type]


def test_a_primary_that_is_left_asks_records_and_only_then_goes_on() -> None:
    assert next_step(scene()) == Step(Act.ASK, "w")
    nothing = InSync()
    assert next_step(scene(held=nothing)) == Step(Act.RECORD, "w", ("p",), nothing)
    assert next_step(scene(held=InSync(1, 1, ("p",)))) == Step(Act.GO_ALONE)
    assert (ALONE.sync_replicas, ALONE.degraded_from, ALONE.changed_lsn, ALONE.before) == (0, 1, 10, None)


def test_it_goes_on_as_soon_as_the_option_says() -> None:
    held = InSync(1, 1, ("p",))
    assert next_step(scene(held=held, since_ms=100, alone_after_ms=100)).act is Act.GO_ALONE
    assert next_step(scene(held=held, since_ms=99, alone_after_ms=100)).act is Act.NOTHING


@pytest.mark.parametrize(
    "still",
    [
        scene(since_ms=ALONE_AFTER_MS - 1),
        scene(since_ms=ALONE_AFTER_MS, alone_after_ms=ALONE_AFTER_MS + 1),
        scene(is_config_committed=False),
        scene(msgspec.structs.replace(CONFIG, policy="strict")),
        scene(Config(("p", "r"), 1, policy="available")),
        scene(Config(("p", "w"), 0, witnesses=("w",), policy="available")),
        scene(following=1, held=InSync()),
        scene(following=1, held=InSync(1, 1, ("p",)), is_caught_up=False),
        scene(following=1, held=InSync(1, 2, ("p", "r"))),
        scene(ALONE, held=InSync(1, 1, ("p",))),
        scene(ALONE, following=1, held=InSync(1, 1, ("p",)), since_ms=0),
    ],
)
def test_nothing_is_done(still: Scene) -> None:
    assert next_step(still).act is Act.NOTHING


def test_going_back_waits_for_the_replica_first_in_the_log_and_then_at_the_witness() -> None:
    held = InSync(1, 1, ("p",))
    assert next_step(scene(ALONE, following=1, held=held)) == Step(Act.GO_BACK)
    back = config_after(ALONE, Step(Act.GO_BACK), 20)
    assert (back.sync_replicas, back.degraded_from, back.changed_lsn) == (1, 0, 21)
    assert next_step(scene(back, following=1, held=held)) == Step(Act.RECORD, "w", ("p", "r"), held)


def test_a_primary_that_was_started_anew_makes_sure_of_the_record_before_it_does_anything_else() -> None:
    assert next_step(scene(ALONE, following=1)) == Step(Act.ASK, "w")
    other = InSync(1, 3, ("p", "r"))
    assert next_step(scene(ALONE, following=1, held=other)) == Step(Act.RECORD, "w", ("p",), other)


def test_with_two_witnesses_both_have_to_know() -> None:
    two = Config(("p", "r", "v", "w"), 1, witnesses=("v", "w"), policy="available")
    alone = InSync(1, 1, ("p",))
    held = {"v": alone}
    seen = Scene("p", two, True, True, 0, 60_000, held)
    assert next_step(seen) == Step(Act.ASK, "w")
    assert next_step(msgspec.structs.replace(seen, held=held | {"w": alone})) == Step(Act.GO_ALONE)


# -- the model -------------------------------------------------------------------------------------


ACTIONS = (*["write"] * 2, *["step"] * 4, "leave", "come", "crash", "late_arrives", "stand", "again")


class World:
    """p is primary, r may follow. A log is a list of CONFIGs and writes (numbers), an LSN a place in it."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.epoch = 1
        self.starts = 0
        self.log: list[Config | int] = [CONFIG]
        self.copied = 1
        """So much of p's log is on r's disk."""
        self.is_there = True
        """r follows."""
        self.is_up = True
        """p runs."""
        self.is_fenced = False
        self.committed = 1
        self.held: dict[str, InSync] = {}
        self.witness = promised(WitnessState(bytes(16), "w", 0), Promise(1, "p"))
        self.late: list[tuple[Promise, InSync, tuple[str, ...]]] = []
        """Messages that the network still has, or has twice."""
        self.acknowledged: set[int] = set()
        self.did: list[str] = []

    @property
    def config(self) -> Config:
        return next(entry for entry in reversed(self.log) if isinstance(entry, Config))

    def act(self) -> None:
        name = self.chance.choice(ACTIONS)
        self.did.append(name)
        getattr(self, name)()
        self.commit()

    def write(self) -> None:
        if self.is_up and not self.is_fenced and (self.config.sync_replicas == 0 or self.is_there):
            self.log.append(len(self.log))

    def commit(self) -> None:
        """r copies while it follows; what is committed is acknowledged to whoever wrote it."""
        if not self.is_up or self.is_fenced:
            return
        if self.is_there and self.chance.random() < 0.4:
            self.copied = len(self.log)
        if self.config.sync_replicas == 0:
            self.committed = len(self.log)
        elif self.is_there and self.copied > self.starts:
            self.committed = max(self.committed, self.copied)
        self.acknowledged |= {entry for entry in self.log[: self.committed] if isinstance(entry, int)}

    def leave(self) -> None:
        self.is_there = False

    def come(self) -> None:
        self.is_there = True

    def crash(self) -> None:
        """p forgets what witnesses said; its log and what it knows as committed stay."""
        self.held.clear()

    def step(self) -> None:
        if not self.is_up or self.is_fenced:
            return
        seen = scene(
            self.config,
            following=int(self.is_there),
            held=self.held.get("w"),
            is_caught_up=self.config.sync_replicas > 0
            and self.committed >= max(self.config.changed_lsn, self.starts + 1),
        )
        step = next_step(seen)
        self.did[-1] += f":{step.act.value}"
        if step.act in (Act.GO_ALONE, Act.GO_BACK):
            self.log.append(config_after(self.config, step, len(self.log)))
        elif step.act is not Act.NOTHING:
            self.held.pop("w", None)
            self.send((Promise(self.epoch, "p"), step.expected, step.nodes))

    def send(self, message: tuple[Promise, InSync, tuple[str, ...]]) -> None:
        fate = self.chance.choice(["arrives", "arrives", "arrives", "lost", "late", "twice", "no answer"])
        if fate in ("late", "twice"):
            self.late.append(message)
        if fate in ("arrives", "twice", "no answer") and self.deliver(message) and fate != "no answer":
            self.held["w"] = self.witness.in_sync

    def deliver(self, message: tuple[Promise, InSync, tuple[str, ...]]) -> bool:
        try:
            self.witness = recorded(self.witness, *message)
        except PromiseRefusedError:
            self.is_fenced = self.is_fenced or message[0].epoch == self.epoch
            return False
        return True

    def late_arrives(self) -> None:
        if self.late:
            self.deliver(self.late.pop(self.chance.randrange(len(self.late))))

    def stand(self) -> None:
        """r asks the witness for a promise, and gets no further: nobody may lose anything by that."""
        if self.chance.random() < 0.1:
            self.witness = promised(self.witness, Promise(self.witness.promise.epoch + 1, "r"))

    def again(self) -> None:
        """p is promoted again, by the witness or by r, in an epoch of its own."""
        if self.chance.random() < 0.5:
            return
        epoch = max(self.witness.promise.epoch, self.epoch) + 1
        by_witness = self.chance.random() < 0.6
        answer = self.answer(epoch, "p") if by_witness else self.of_r()
        own = Answer("p", Position(self.epoch, len(self.log), 7), True)
        if not count_promises(self.config, own, [answer]).is_granted:
            return
        if by_witness:
            self.witness = promised(self.witness, Promise(epoch, "p"))
        config = self.config
        if config.degraded_from:
            config = msgspec.structs.replace(config, sync_replicas=config.degraded_from, degraded_from=0)
        self.epoch, self.is_fenced, self.starts = epoch, False, len(self.log)
        self.held.clear()
        self.log.append(config)

    def answer(self, epoch: int, candidate: str) -> Answer:
        """What the witness would answer to a candidate; nothing is changed."""
        state = promised(self.witness, Promise(epoch, candidate))
        return Answer("w", Position(0, 0, 0), True, in_sync=state.in_sync.nodes)

    def of_r(self) -> Answer:
        return Answer("r", Position(1, self.copied, 7), True)

    def check(self) -> bool:
        """Could r be promoted now by the witness alone? Then it has every acknowledged write."""
        config = next(entry for entry in reversed(self.log[: self.copied]) if isinstance(entry, Config))
        epoch = self.witness.promise.epoch + 1
        if not count_promises(config, self.of_r(), [self.answer(epoch, "r")]).is_granted:
            return False
        missing = self.acknowledged - {entry for entry in self.log[: self.copied] if isinstance(entry, int)}
        if missing:
            raise AssertionError(f"r lacks {sorted(missing)} after {' '.join(self.did)}")
        return True


def play(seed: int, walks: int, steps: int = 60) -> tuple[int, int]:
    """How often r could have been promoted, and how often it could not."""
    chance = random.Random(seed)
    could = could_not = 0
    for _ in range(walks):
        world = World(chance)
        for _ in range(steps):
            world.act()
            if world.check():
                could += 1
            else:
                could_not += 1
    return could, could_not


def test_broken_off_anywhere_whoever_can_be_promoted_has_every_acknowledged_write(seed: int) -> None:
    could, could_not = play(seed, 400)
    assert could > 1_000
    assert could_not > 1_000


def test_a_record_made_after_the_first_write_alone_is_found(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = availability.is_recorded

    def late(seen: Scene, witness: str, nodes: tuple[str, ...]) -> bool:
        return not seen.config.degraded_from or real(seen, witness, nodes)

    monkeypatch.setattr(availability, "is_recorded", late)
    with pytest.raises(AssertionError, match="r lacks"):
        play(seed, 5_000)


def test_a_record_that_is_taken_back_before_the_replica_has_everything_is_found(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = availability.next_step

    def early(seen: Scene) -> Step:
        return real(msgspec.structs.replace(seen, is_caught_up=True))

    monkeypatch.setitem(globals(), "next_step", early)
    with pytest.raises(AssertionError, match="r lacks"):
        play(seed, 5_000)


def test_records_without_numbers_are_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = recorded

    def any_time(
        state: WitnessState, asked: Promise, _expected: InSync, nodes: tuple[str, ...]
    ) -> WitnessState:
        return real(state, asked, state.in_sync, nodes)

    monkeypatch.setitem(globals(), "recorded", any_time)
    with pytest.raises(AssertionError, match="r lacks"):
        play(seed, 5_000)
