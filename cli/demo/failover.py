"""The promotion of the demo: whoever of the replicas is furthest takes over.

Owns the choice between the replicas and what is kept of the promotion. Asking, promising and counting are the
recovery room's, the same that `perdure promote` uses.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ...recovery import WireVoters, promote


class Promoted(msgspec.Struct, frozen=True):
    """What a promotion did. `at_risk` says in words which writes may be lost, empty if none."""

    node: str
    epoch: int
    before_lsn: int
    """Where its log ended when it was promised."""
    promisers: tuple[str, ...]
    promotion_ms: int
    at_risk: str


def promote_furthest(
    directories: Mapping[str, Path],
    addresses: Mapping[str, tuple[str, int]],
    *,
    cluster_id: bytes,
    secret: bytes,
    accept_data_loss: bool,
) -> Promoted:
    """Ask the replicas how far they are, and promote the furthest of them. Raises as promote."""
    started_s = time.monotonic()
    voters = WireVoters(addresses, cluster_id=cluster_id, secret=secret)
    states = [voters.state(node) for node in directories]
    furthest = max(states, key=lambda state: (state.end.epoch, state.end.lsn))
    report = promote(directories[furthest.node], voters, accept_data_loss=accept_data_loss)
    return Promoted(
        node=report.node,
        epoch=report.epoch,
        before_lsn=report.before.lsn,
        promisers=report.promisers,
        promotion_ms=round((time.monotonic() - started_s) * 1000),
        at_risk=report.at_risk,
    )
