"""The cases as data: what they promise to the systems and to each other."""

from __future__ import annotations

from itertools import islice

import msgspec
import pytest

from bench.systems.ports import Client
from bench.workloads import ADDING, CASES, LARGE_BYTES, ONE_NODE, SMALL_BYTES, TWO_NODES, sessions_of


def test_each_case_has_a_name_of_its_own() -> None:
    names = [(case.group, case.name) for case in CASES]
    assert len(set(names)) == len(names)


def test_operations_are_those_of_the_ports() -> None:
    known = {name for base in Client.__mro__ for name in vars(base) if not name.startswith("_")}
    assert {operation for case in CASES for operation in case.mix} <= known | {"get_update"}
    assert all(sum(case.mix.values()) == pytest.approx(1.0) for case in CASES)


@pytest.mark.parametrize("classes", [ONE_NODE, TWO_NODES])
def test_no_case_that_adds_sessions_comes_before_one_that_does_not(classes: tuple[str, ...]) -> None:
    cases = [case for case in CASES if set(case.classes) & set(classes)]
    adds = [any(operation in ADDING for operation in case.mix) for case in cases]
    assert adds == sorted(adds)


@pytest.mark.parametrize("value_bytes", [SMALL_BYTES, LARGE_BYTES])
def test_sessions_are_about_as_large_as_said_and_differ(value_bytes: int) -> None:
    made = [msgspec.msgpack.encode(fields) for fields in islice(sessions_of(value_bytes, 1), 100)]
    assert all(0.95 * value_bytes <= len(one) <= 1.05 * value_bytes for one in made)
    assert len(set(made)) == 100
