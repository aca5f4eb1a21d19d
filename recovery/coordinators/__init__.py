"""Coordinators: what decides which node tries to become primary, and when. Safety is in the promises."""

from .coordinator import Coordinator
from .manual import Manual
from .quorum import Quorum

__all__ = ["Coordinator", "Manual", "Quorum"]
