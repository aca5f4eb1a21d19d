"""What the node process holds for its monitor and elector: the port, and the pipe between them.

Owns them for the life of the node. While either process is started again its peer waits, and others who
connect to the port do: a refused connection says that the whole node has ended.
"""

from __future__ import annotations

from ..shipping import pipe_pair
from ..shipping.link import listen
from ..store import WireError


class MonitorSockets:
    """A listening socket and the two ends of a pipe."""

    def __init__(self, address: tuple[str, int], *, is_configured: bool) -> None:
        """A default port that is taken gives way to a free one: others ask the receiver where it is.

        Raises WireError if a configured address is taken.
        """
        try:
            self.listener = listen(*address)
        except WireError:
            if is_configured:
                raise
            self.listener = listen(address[0], 0)
        self.port = int(self.listener.getsockname()[1])
        self.monitor_end, self.elector_end = pipe_pair()

    def close(self) -> None:
        for held in (self.listener, self.monitor_end, self.elector_end):
            held.close()
