"""Ports for processes that tests tell where to listen: chosen as a demo does it."""

from __future__ import annotations

from perdure.cli.demo.ports import HOST, free_ports

__all__ = ["HOST", "free_ports"]
