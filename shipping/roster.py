"""The roster: which nodes a primary ships to, and where they are. Pure.

Owns how the newest CONFIG in the log and a node's own configuration go together: the addresses of the
CONFIG count; what the configuration names counts for nodes whose address the CONFIG does not say. Once a
CONFIG names members, a node that is neither among them nor votes was taken out, whatever a configuration
still says. Nothing is shipped to witnesses.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..store.control import Config
from ..store.option import split_address

Address = tuple[str, int]


def node_addresses(config: Config, own: str, configured: Mapping[str, Address]) -> dict[str, Address]:
    """(host, port) of the receivers of all other nodes, witnesses included."""
    told = {name: split_address(address) for name, address in config.members.items()}
    kept = {
        name: address
        for name, address in configured.items()
        if not config.members or name in config.voters or name in config.members
    }
    return {name: address for name, address in (kept | told).items() if name != own}


def replica_addresses(config: Config, own: str, configured: Mapping[str, Address]) -> dict[str, Address]:
    """(host, port) of the receivers of all nodes that a primary ships to."""
    found = node_addresses(config, own, configured)
    return {name: address for name, address in found.items() if name not in config.witnesses}
