"""When a transfer is done: the node that was meant has the sessions, and they are the same here."""

from __future__ import annotations

import pytest

from perdure.recovery import Comparison, NodeVerdict, TransferReport
from perdure.recovery.syncing import SyncReport
from perdure.store.ids import NOWHERE


def report(*verdicts: tuple[str, bool | None]) -> TransferReport:
    nodes = [NodeVerdict(node=node, is_right=is_right) for node, is_right in verdicts]
    return TransferReport(
        node="n2",
        sessions=None,
        not_in_log=[],
        sync=SyncReport("n1", 1, 1, ["n2"], [], 1, 0),
        differing=[],
        comparison=Comparison(at=NOWHERE, reference="n1", nodes=nodes, elapsed_ms=0),
        not_asked=[],
        elapsed_ms=0,
    )


@pytest.mark.parametrize(
    ("verdicts", "is_done"),
    [
        ([("n1", True), ("n2", True)], True),
        ([("n1", True), ("n2", False)], False),
        ([("n1", True), ("n2", None)], False),
        ([("n1", False), ("n2", True)], False),
        ([("n1", True)], False),
    ],
)
def test_a_transfer_is_done_if_both_nodes_are_known_to_be_right(
    verdicts: list[tuple[str, bool | None]], is_done: bool
) -> None:
    assert report(*verdicts).is_done is is_done
