"""The typer commands and the node process; the room that may import all others."""

__all__: list[str] = []
