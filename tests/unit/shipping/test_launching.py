"""Tests of how a process is started: the same face for exec and fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from perdure.shipping import Task
from perdure.shipping.launching import end_process, execute

ECHO = """
    import os, signal, sys, time
    import msgspec
    from perdure.shipping.launching import read_task

    class Said(msgspec.Struct):
        word: str
        code: int = 0

    def main():
        task = read_task(Said)
        listed = sorted(int(name) for name in os.listdir("/proc/self/fd"))
        kept = [number for number in listed if os.path.exists(f"/proc/self/fd/{number}")]
        facts = [task.word, os.getsid(0) == os.getpid(), kept, open("/proc/self/comm").read().strip()]
        os.write(1, repr(facts).encode() + b"\\n")
        if task.word == "raise":
            raise ValueError("no such word")
        if task.word == "exit":
            sys.exit(task.code)
        if task.word == "wait":
            os.read(0, 1)
        if task.word == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(1, b"deaf\\n")
            time.sleep(600)
        return task.code
"""
PARENT = """
    import os, signal, subprocess, sys, time
    import echo
    from perdure.shipping.launching import end_process, fork

    def told(child):
        return child.stdout.readline().decode().strip()
"""


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """The program of a process with one thread, which can start the module `echo`; to be extended."""
    (tmp_path / "echo.py").write_text(textwrap.dedent(ECHO))
    return tmp_path


def run(place: Path, program: str) -> list[str]:
    """The lines that a program says."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(PARENT) + textwrap.dedent(program)],
        check=False,
        cwd=place,
        env=dict(os.environ)
        | {"PYTHONPATH": os.pathsep.join([os.path.abspath(path) for path in sys.path if path])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_forked_process_gets_its_task_its_name_and_nothing_else_that_was_open(parent: Path) -> None:
    said = run(
        parent,
        """
        first = fork("echo", echo.Said("wait"), name="perdure-first")
        one, other = os.pipe()
        second = fork("echo", echo.Said("word", 3), [one], name="perdure-second")
        print(told(first))
        print(told(second))
        print(one, second.wait(10), second.poll(), second.returncode)
        os.close(other)
        first.stdin.close()  # its lifeline, of which no other child has an end
        print(first.wait(10))
        """,
    )
    passed = said[2].split()[0]
    assert said[0] == "['wait', True, [0, 1, 2], 'perdure-first']"
    assert said[1] == f"['word', True, [0, 1, 2, {passed}], 'perdure-second']"
    assert said[2:] == [f"{passed} 3 3 3", "0"]


def test_a_forked_process_ends_with_the_code_that_its_main_gives_raises_or_is_killed_with(
    parent: Path,
) -> None:
    said = run(
        parent,
        """
        sys.stdout.write("said once")  # still in the buffer at the fork
        for word in ("raise", "exit", "wait"):
            child = fork("echo", echo.Said(word, 4), name=word)
            told(child)
            if word == "wait":
                child.kill()
            print("", word, child.wait(10))
            child.terminate()  # of one that has ended: nothing happens
        """,
    )
    assert said == ["said once raise 1", " exit 4", f" wait {-signal.SIGKILL}"]


def test_a_forked_process_that_does_not_end_in_time_is_killed(parent: Path) -> None:
    said = run(
        parent,
        """
        child = fork("echo", echo.Said("deaf"), name="deaf")
        told(child), told(child)
        try:
            child.wait(0.05)
        except subprocess.TimeoutExpired:
            print("late")
        print(end_process(child, "deaf", 0.1), child.stdin.closed, child.stdout.closed)
        """,
    )
    assert said == ["late", f"{-signal.SIGKILL} True True"]


def test_a_signal_for_the_parent_is_not_taken_by_the_child(parent: Path) -> None:
    said = run(
        parent,
        """
        asked = []
        signal.signal(signal.SIGTERM, lambda *_: asked.append(os.getpid()))
        child = fork("echo", echo.Said("wait"), name="wait")
        told(child)
        child.terminate()
        print(child.wait(10), asked)
        os.kill(os.getpid(), signal.SIGTERM)
        print(asked == [os.getpid()])
        """,
    )
    assert said == [f"{-signal.SIGTERM} []", "True"]


def test_a_process_with_threads_is_not_forked(parent: Path) -> None:
    said = run(
        parent,
        """
        import threading
        held = threading.Event()
        thread = threading.Thread(target=held.wait)
        thread.start()
        try:
            fork("echo", echo.Said("wait"), name="wait")
        except RuntimeError as error:
            print(error)
        held.set()
        """,
    )
    assert said == ["a process with threads cannot be forked"]


def test_a_process_by_exec_has_the_same_face(tmp_path: Path) -> None:
    task = Task("folder", str(tmp_path / "none"))
    child = execute("perdure.shipping.__main__", task, name="perdure-folder")
    try:
        assert child.stdout is not None
        assert b"StoreMissingError" in child.stdout.readline()
        assert child.wait(30) == 5
    finally:
        assert end_process(child, "folder") == 5
