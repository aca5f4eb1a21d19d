"""Starting a node whose log is damaged: it waits for the primary, which makes the log anew.

Owns that wait alone: whether the log may be given up is recovery's (rebuild_log), and a node that runs
already has its chores look after it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ..recovery import known_reach, rebuild_log
from ..shipping.permission import AUTO
from ..shipping.rebuild import read_log_fault
from ..store import CorruptError, NotPrimaryError, WireError
from .supervisor import NodePlan, Supervisor

logger = logging.getLogger(__name__)

LOOK_S = 1.0


def run_node(plan: NodePlan, should_stop: Callable[[], bool], on_ready: Callable[[int], object]) -> None:
    """Run a node until `should_stop` says so. Raises as Supervisor.run, and as rebuild_log if its log is
    damaged and may not be made anew."""
    while True:
        try:
            Supervisor(plan).run(should_stop, on_ready)
            return
        except CorruptError:
            if plan.rejoin != AUTO or not read_log_fault(plan.directory):
                raise
        if not _await_rebuild(plan, should_stop):
            return


def _await_rebuild(plan: NodePlan, should_stop: Callable[[], bool]) -> bool:
    """Is the damaged log out of the way? False if the node is to stop first."""
    reach = known_reach(plan.directory, {}, plan.secret, configured=plan.replicas)
    said = ""
    while not should_stop():
        try:
            logger.warning("the log is damaged: %s", rebuild_log(plan.directory, reach))
            return True
        except (NotPrimaryError, WireError) as error:
            if error.message != said:
                logger.error("waiting for the primary: %s", error)
                said = error.message
            time.sleep(LOOK_S)
    return False
