"""Running commands as a user does, in this process or as real ones, and reading what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from perdure.cli.app import narrowed

COMMAND = [sys.executable, "-m", "perdure.cli"]


def run(*arguments: object) -> Result:
    """Run one command in this process; its exit code, stdout and stderr are in the result."""
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(narrowed(words), words, catch_exceptions=False)


def run_json(*arguments: object, code: int = 0) -> dict[str, Any]:
    """Run one command with --json; stdout must be one JSON object, and the exit code as expected."""
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    said: dict[str, Any] = json.loads(result.stdout)
    assert isinstance(said, dict)
    return said


def environment() -> dict[str, str]:
    """What a command's own process needs to find the package, whether it is installed or not."""
    import perdure

    package = Path(perdure.__file__).parent.parent
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH")))),
    }


def process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start one command as a process of its own, in a process group of its own."""
    return subprocess.Popen(
        [*COMMAND, *(str(argument) for argument in arguments)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment(),
        process_group=0,
    )
