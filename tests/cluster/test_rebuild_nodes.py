"""A whole node that is started with a damaged log has it made anew by the primary, and follows again."""

from __future__ import annotations

from pathlib import Path

import pytest

import perdure
from perdure.shipping.rebuild import why_unfit
from perdure.store import names
from tests.cluster.elections import Nodes, until
from tests.cluster.test_rebuild import flip

pytestmark = [pytest.mark.xdist_group("elections"), pytest.mark.timeout(300)]


def test_a_node_that_starts_with_a_damaged_log_comes_back_by_itself(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, failover='coordinator = "manual"')
    second = tmp_path / "n2"
    try:
        for node in ("n1", "n2"):
            nodes.start(node)
        store = nodes.store("n1")
        for number in range(50):
            store.create({"n": number})
        assert nodes.stop("n2") == 0
        (second / names.CONTROL_PAGE).unlink()  # as after a power cut
        flip(second)
        nodes.start("n2")
        until(lambda: not why_unfit(second), "its log is whole again")
        assert list((second / names.ASIDE / "damaged-log").glob("*.seg"))
        kept = store.create({"n": "after"})  # which n2 has to confirm
        with perdure.open(second, config=nodes.config("n2"), forward=False) as copy:
            until(lambda: copy.peek(kept) is not None and copy.count() == 51, "n2 has all sessions")
    finally:
        nodes.end()
