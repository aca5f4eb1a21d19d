"""Why a node of the demo did not start is told as the node told it."""

from __future__ import annotations

from pathlib import Path

from perdure.cli.demo.nodes import why_not_started


def test_a_node_that_says_why_it_does_not_start_is_quoted_with_its_hint(tmp_path: Path) -> None:
    said: dict[str, object] = {"error": {"message": "etcd needs the package httpx", "code": 2, "hint": "pip"}}
    error = why_not_started("n1", said, tmp_path, "something else")
    assert (error.message, error.hint) == ("n1 did not start: etcd needs the package httpx", "pip")


def test_a_node_that_says_nothing_is_told_of_by_the_end_of_its_output(tmp_path: Path) -> None:
    error = why_not_started("n1", {}, tmp_path, "Killed")
    assert (error.message, error.hint) == ("n1 did not start: Killed", "")
