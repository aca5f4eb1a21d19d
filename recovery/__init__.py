"""Snapshots, replay, verify, rejoin, retention and failover; imports the store and shipping rooms."""

__all__: list[str] = []
