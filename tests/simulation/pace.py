"""How fast a simulated cluster lives.

Owns its times. What a step of a schedule costs is processor time, not simulated time; so all that waits
for long (silence, retries, timeouts) waits for a fraction of what it does by default, and what polls looks
seldom. The order in which things can happen stays: each time keeps its proportion to the others.
"""

from __future__ import annotations

import sys
from typing import Final

from perdure.recovery import ElectionOptions, availability
from perdure.recovery.voters import WireVoters
from perdure.shipping.monitor import MonitorOptions
from perdure.shipping.shipper import ShipperOptions

SPEED: Final = 4
"""Waits of the code that is simulated are so many times shorter than by default."""
POLL_MS: Final = 25
"""How often idle processes look; more often only costs steps."""
MONITORED: Final = MonitorOptions(heartbeat_ms=50, silence_ms=150, disk_stall_ms=250)
ELECTED: Final = ElectionOptions(silence_ms=MONITORED.silence_ms, candidacy_ms=40)
SHIPPED: Final = ShipperOptions(poll_ms=POLL_MS, use_watcher=False, silence_ms=120)
ASK_MS: Final = 60
COMMIT_MS: Final = 500
WRITE_TIMEOUT_MS: Final = 500
CATCH_UP_MS: Final = 500
ALONE_AFTER_MS: Final = 80
RESTART_MS: Final = 15
"""So soon a supervisor starts what has died."""
_LONG_MS: Final = 100
"""Waits of less than this stay as they are."""
_LOOKS: Final = ("POLL_MS", "LOOK_MS", "TICK_MS")
_LOOKING: Final = ("shipping.folder", "shipping.standby", "shipping.monitor", "recovery.elector")


def quicken() -> None:
    """Shorten the times of the modules that are loaded."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("perdure.shipping.", "perdure.recovery.")):
            for constant, value in list(vars(module).items()):
                if constant.isupper() and not constant.startswith("_"):
                    shorter = _shorter(constant, value)
                    if shorter is not None:
                        setattr(module, constant, shorter)
    for name in _LOOKING:
        module = sys.modules[f"perdure.{name}"]
        for constant in _LOOKS:
            if hasattr(module, constant):
                setattr(module, constant, POLL_MS)
    vars(availability).update(BACK_AFTER_MS=60)
    defaults = WireVoters.__init__.__kwdefaults__
    assert defaults is not None
    defaults["timeout_ms"] = ASK_MS


def _shorter(name: str, value: object) -> int | float | None:
    if name.endswith("_MS") and isinstance(value, int) and value >= _LONG_MS:
        return value // SPEED
    if name.endswith("_S") and isinstance(value, float) and value * 1000 >= _LONG_MS:
        return value / SPEED
    return None
