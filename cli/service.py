"""What commands share that run until they are told to stop: signals, log lines, and the word that they are
ready.

Owns the process-wide settings of such a command. SIGTERM and SIGINT ask it to end in order; a second one
kills.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from . import render

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def until_stopped(*, is_verbose: bool = False) -> Generator[Callable[[], bool], None, None]:
    """Give a function that says whether this process was asked to stop; log lines go to stderr meanwhile."""
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        asked.append(number)
        signal.signal(number, signal.SIG_DFL)

    level = logging.INFO if is_verbose else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format=LOG_FORMAT)
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ready(values: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Say that the work has begun: one JSON line on stdout, or one line of text on stderr."""
    if as_json:
        render.write_json(values)
    else:
        render.note(text)
