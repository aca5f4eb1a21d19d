"""Has something become slower? Compares a run's ratios with those of the committed baseline.

Owns what is kept of a run, and what counts as worse. Times and rates are another machine's or another
hour's; ratios are of one run, to the limit and to the peers, and can be held against each other. A ratio
has got worse when it is lower than before (where less is better: higher) by more than explain both runs' own
spread and how far the two runs differ in all ratios, which on a machine that others use, too, is much more;
a figure that was measured once has no spread, and is held against nothing. A group of ratios that fell
together has got worse, too: its median moves far less from run to run than each of them. What of perdure
could not be measured at all has no ratio, and is named as failed.

`python -m bench.gate [RESULT]` compares build/bench.json, or another result, with bench/baseline.json, or
makes it the baseline. Exit codes: 0 nothing is worse, 1 something is worse or failed, 2 there is nothing to
compare.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from .report import Result, failed_of, read_json
from .rows import SIGMA_OF_MAD, Row

BASELINE: Final = Path(__file__).parent / "baseline.json"
SIGMAS: Final = 3.0
LEAST_ALLOWED: Final = 0.10
"""Runs of the same program differ by so much, however quiet their rounds were."""
FEW: Final = 30
"""Of fewer ratios it can't be said how far runs differ."""
ALIKE: Final = 5
"""So many ratios of a group move together: one row of ours stands beside several peers."""
COMPARED: Final = ("sessions", "large_sessions", "slice_s", "open_s")
"""Options of a plan without which ratios are of something else."""
HINT: Final = "python -m bench makes a result, and with --save-baseline the baseline"
_ERROR_OF_MEDIAN: Final = 1.25
_MEASURED = re.compile(r" \(p\d+ [\d.,]+\)")


class Kept(msgspec.Struct, frozen=True):
    """One ratio of a run."""

    ratio: float
    spread: float
    rounds: int = 5
    is_less_better: bool = False

    @property
    def error(self) -> float:
        """Standard error of the median, as a share of it (that of a normal sample is 1.25 of the mean's)."""
        return _ERROR_OF_MEDIAN * self.spread / math.sqrt(max(1, self.rounds))


class Baseline(msgspec.Struct, frozen=True):
    """The ratios of a run that others are held against."""

    machine: dict[str, str | int | float]
    versions: dict[str, str]
    ratios: dict[str, Kept]
    options: dict[str, Any] = {}
    """The plan of the run."""


class Change(msgspec.Struct, frozen=True):
    """How a ratio compares with the baseline's."""

    name: str
    before: float
    now: float
    allowed: float
    """Worse by so much, as a logarithm, is within the spread."""
    is_less_better: bool = False

    @property
    def by(self) -> float:
        """The change as a share of what it was: -0.2 is a fifth lower."""
        return self.now / self.before - 1 if self.before else 0.0

    @property
    def is_worse(self) -> bool:
        return self.gain < -self.allowed

    @property
    def is_better(self) -> bool:
        return self.gain > self.allowed

    @property
    def gain(self) -> float:
        """The logarithm of the change; below 0 is worse."""
        if self.before <= 0 or self.now <= 0:
            return 0.0
        change = math.log(self.now / self.before)
        return -change if self.is_less_better else change


class Verdict(msgspec.Struct, frozen=True):
    changes: list[Change]
    missing: list[str]
    """Ratios of the baseline that this run did not measure."""
    other_versions: dict[str, str]
    """Systems that are not what they were: was -> is."""
    other_options: dict[str, str] = {}
    """What the plan of the run has otherwise: was -> is."""
    between: float = 0.0
    """How far all ratios differ from run to run, as a logarithm; 0: they are too few to say."""
    groups: list[Change] = []
    """The medians of groups of ratios."""
    failed: dict[str, str] = {}
    """What of ours could not be measured: why."""

    @property
    def worse(self) -> list[Change]:
        found = [one for one in (*self.groups, *self.changes) if one.is_worse]
        return sorted(found, key=lambda one: one.gain)


def baseline_of(result: Result) -> Baseline:
    """What is kept of a run: ours to the limit, and ours to each peer."""
    options = {name: value for name, value in result.options.items() if name in COMPARED}
    return Baseline(result.machine, _versions(result.rows), dict(_ratios(result.rows)), options)


def judge(baseline: Baseline, result: Result) -> Verdict:
    """Hold a run against the baseline."""
    now = baseline_of(result)
    before = {_name_of(name): kept for name, kept in baseline.ratios.items()}
    pairs = [(name, was, now.ratios[name]) for name, was in before.items() if name in now.ratios]
    plain = [Change(name, was.ratio, its.ratio, 0.0, its.is_less_better) for name, was, its in pairs]
    between = _spread_of([one.gain for one in plain]) if len(plain) >= FEW else 0.0
    changes = [
        msgspec.structs.replace(
            one, allowed=max(LEAST_ALLOWED, SIGMAS * math.hypot(was.error, its.error, between))
        )
        for one, (_, was, its) in zip(plain, pairs, strict=True)
    ]
    other = {
        system: f"{version} -> {now.versions[system]}"
        for system, version in baseline.versions.items()
        if now.versions.get(system, version) != version
    }
    options = {
        name: f"{was} -> {now.options[name]}"
        for name, was in baseline.options.items()
        if now.options.get(name, was) != was
    }
    missing = [name for name in before if name not in now.ratios]
    groups, failed = list(_groups_of(changes)), failed_of(result)
    return Verdict(changes, missing, other, options, between, groups, failed)


def _groups_of(changes: Sequence[Change]) -> Iterable[Change]:
    """The median change of each group that has enough ratios."""
    gains: dict[str, list[float]] = {}
    for one in changes:
        gains.setdefault(one.name.partition(":")[0], []).append(one.gain)
    for group, its in gains.items():
        if len(its) >= FEW:
            error = _ERROR_OF_MEDIAN * _spread_of(its) / math.sqrt(len(its) / ALIKE)
            name = f"{group}: the median of its {len(its)} ratios"
            yield Change(name, 1.0, math.exp(statistics.median(its)), max(LEAST_ALLOWED, SIGMAS * error))


def _spread_of(gains: Sequence[float]) -> float:
    """Scaled to a standard deviation; a few that got worse do not count."""
    middle = statistics.median(gains)
    return SIGMA_OF_MAD * statistics.median(abs(gain - middle) for gain in gains)


def text_of(verdict: Verdict) -> str:
    """What a person needs to know."""
    lines = [f"{len(verdict.changes)} ratios compared with the baseline"]
    if verdict.between:
        lines.append(f"from run to run they differ by {math.expm1(verdict.between):.0%} (standard deviation)")
    elif 0 < len(verdict.changes) < FEW:
        lines.append(
            f"fewer than {FEW} do not tell how far runs differ: measure again before a cause is sought"
        )
    lines += [f"failed: {name}: {why}" for name, why in verdict.failed.items()]
    lines += [f"worse: {_told(one)}" for one in verdict.worse]
    lines += [f"better: {_told(one)}" for one in verdict.changes if one.is_better]
    lines += [f"another version: {system}: {change}" for system, change in verdict.other_versions.items()]
    lines += [
        f"another plan, so that ratios may differ: {name}: {change}"
        for name, change in verdict.other_options.items()
    ]
    if verdict.missing:
        lines.append(f"not measured in this run: {len(verdict.missing)} of the baseline's ratios")
    if verdict.changes and not verdict.worse and not verdict.failed:
        lines.append("nothing got worse than its spread allows")
    return "\n".join(lines)


def exit_code_of(verdict: Verdict) -> int:
    if verdict.worse or verdict.failed:
        return 1
    return 0 if verdict.changes else 2


def read_baseline(path: Path = BASELINE) -> Baseline:
    """Raises OSError, or msgspec.DecodeError if it is none."""
    return msgspec.json.decode(path.read_bytes(), type=Baseline)


def write_baseline(baseline: Baseline, path: Path = BASELINE) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(baseline), indent=1) + b"\n")


def _told(one: Change) -> str:
    return (
        f"{one.name}: {one.before:.2f} -> {one.now:.2f} ({one.by:+.0%}, "
        f"the spread allows {math.expm1(math.copysign(one.allowed, one.by)):+.0%})"
    )


def _ratios(rows: Iterable[Row]) -> Iterable[tuple[str, Kept]]:
    for row in rows:
        is_ours = row.system.startswith("perdure")
        if is_ours and row.ratio_to_limit is not None and row.ratio_to_limit_spread is not None:
            kept = Kept(row.ratio_to_limit, row.ratio_to_limit_spread, row.rounds, row.is_less_better)
            yield _name_of(f"{row.key} / {row.limit}"), kept
        if not is_ours and row.ours_ratio is not None:
            name = f"{row.group}: {row.case}, {row.durability}, {row.ours} / {row.system}"
            yield name, Kept(row.ours_ratio, row.ours_ratio_spread or 0.0, row.rounds)


def _name_of(text: str) -> str:
    """The same from run to run: without the percentiles that the names of some figures tell."""
    return _MEASURED.sub("", text)


def _versions(rows: Iterable[Row]) -> dict[str, str]:
    return {row.system: row.version for row in rows if row.version and not row.system.startswith("perdure")}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gate",
        description="Compare the ratios of a run with those of the baseline, without measuring again.",
        epilog="example: python -m bench.gate build/bench.json",
    )
    parser.add_argument(
        "result", nargs="?", default="build/bench.json", type=Path, help="of a run; build/bench.json"
    )
    parser.add_argument("--baseline", default=BASELINE, type=Path, help="bench/baseline.json")
    parser.add_argument("--save", action="store_true", help="make the result the baseline instead")
    options = parser.parse_args(words)
    try:
        result = read_json(options.result)
        if options.save:
            write_baseline(baseline_of(result), options.baseline)
            return 0
        verdict = judge(read_baseline(options.baseline), result)
    except (OSError, msgspec.DecodeError) as error:
        print(f"nothing to compare: {error}; {HINT}", file=sys.stderr)
        return 2
    print(text_of(verdict))
    return exit_code_of(verdict)


if __name__ == "__main__":
    sys.exit(main())
