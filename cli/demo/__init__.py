"""The demo: session traffic, the writers' ledgers, and the processes that carry both through a failover.

Owns what the demo needs and nothing that the store needs. Nothing here is part of the public interface.
"""

__all__: list[str] = []
