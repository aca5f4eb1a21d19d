"""Small programs that the harness's own tests run under the shim."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import lmdb

from tests.support.faults.ledger import Item, Ledger
from tests.support.faults.shim import take_role

FAMILY_WRITES = 2000
_ATTEMPT = [Item("put", "key", "digest")]


def _new(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)


def use_every_call(directory: Path, ledger: Path) -> int:
    """Each call that changes a file, at least once, by several ways to the same file."""
    directory.mkdir()
    a = _new(directory / "a")
    os.write(a, b"hello ")
    os.writev(a, [b"two ", b"parts"])
    os.pwrite(a, b"J", 0)
    os.pwritev(a, [b"x" * 5000, b"y" * 100], 20)
    copy = os.dup(a)
    os.lseek(copy, 0, os.SEEK_END)
    os.write(copy, b"through a duplicate")
    os.ftruncate(a, 5000)
    os.fdatasync(a)
    appended = _new(directory / "appended", os.O_APPEND)
    for _ in range(3):
        os.write(appended, b"line\n")
    os.pwrite(appended, b"appended nevertheless\n", 0)
    source = os.open(__file__, os.O_RDONLY)
    sent = _new(directory / "sent")
    os.sendfile(sent, source, 0, 100)
    os.copy_file_range(source, sent, 50, 10, 200)
    os.posix_fallocate(_new(directory / "grown"), 0, 9000)
    os.truncate(directory / "grown", 8000)
    os.link(directory / "a", directory / "linked")
    (directory / "sub").mkdir()
    (directory / "sub" / "inner").write_bytes(b"inside")
    os.chdir(directory)
    os.rename("sub", "moved")
    Path("moved", "late").write_bytes(b"relative")
    os.replace("appended", "moved/appended")
    handle = os.open("moved", os.O_RDONLY)
    os.close(os.open("by-handle", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=handle))
    os.unlink("by-handle", dir_fd=handle)
    os.fsync(handle)
    os.write(appended, b"after the move\n")
    Path("a").open("r+b").close()
    Path("replaced").write_bytes(b"old content")
    Path("replaced").write_bytes(b"new")
    Path("gone").mkdir()
    Path("gone").rmdir()
    Path("unlinked").write_bytes(b"")
    Path("unlinked").unlink()
    outside = ledger.with_name("outside")
    outside.write_bytes(b"not watched")
    return 0


def work_as_a_family(directory: Path, ledger: Path) -> int:
    """A process, a forked child, and one started anew, which all write to one file."""
    directory.mkdir()
    shared = _new(directory / "shared", os.O_APPEND)
    os.write(shared, b"parent 1\n")
    pid = os.fork()
    if pid == 0:
        take_role("child")
        for _ in range(FAMILY_WRITES):
            os.write(shared, b"child\n")
        os._exit(0)
    for _ in range(FAMILY_WRITES):
        os.write(shared, b"parent 2\n")
    os.waitpid(pid, 0)
    code = "import os,sys; f = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND); os.write(f, b'anew\\n')"
    environment = os.environ | {"FAULTS_ROLE": "anew"}
    subprocess.run([sys.executable, "-c", code, str(directory / "shared")], env=environment, check=True)
    os.write(shared, b"parent 3\n")  # the start of a process must not have made the shim forget it
    return 0


def write_lines(directory: Path, ledger: Path, count: str = "5") -> int:
    """Write and sync numbered lines; a refusal is printed, not raised. A short write is not continued."""
    directory.mkdir(exist_ok=True)
    own = Ledger(ledger, "w")
    file = _new(directory / "lines", os.O_APPEND)
    for number in range(1, int(count) + 1):
        own.attempt(f"w-{number}", _ATTEMPT)
        began = time.monotonic()
        try:
            os.write(file, b"line %05d\n" % number)
            os.fsync(file)
        except OSError as error:
            print(number, errno.errorcode[error.errno or 0])
        if time.monotonic() - began > 0.9:
            print(number, "slow")
        own.acknowledge(f"w-{number}")
    return 0


def leave_a_child_behind(directory: Path, ledger: Path) -> int:
    """End while a child in another session waits for ever."""
    directory.mkdir()
    if os.fork() == 0:
        os.setsid()
        (directory / "child").write_text(str(os.getpid()))
        while True:
            time.sleep(60)
    while not (directory / "child").exists() or not (directory / "child").read_text():
        time.sleep(0.001)
    return 0


def leave_a_stranger_behind(directory: Path, ledger: Path) -> int:
    """End while a command that was started without the shim waits for ever."""
    directory.mkdir()
    process = subprocess.Popen(["sleep", "600"], env={"PATH": os.environ["PATH"]})
    (directory / "child").write_text(str(process.pid))
    return 0


def never_end(directory: Path, ledger: Path) -> int:
    """Wait for ever."""
    directory.mkdir()
    while True:
        time.sleep(60)


def fill_lmdb(directory: Path, ledger: Path, transactions: str, sync: str) -> int:
    """Transactions of 20 puts each, with LMDB's own syncs or without."""
    directory.mkdir()
    environment = lmdb.open(str(directory / "state"), map_size=1 << 24, sync=sync == "sync")
    own = Ledger(ledger, "w")
    for number in range(1, int(transactions) + 1):
        own.attempt(f"w-{number}", _ATTEMPT)
        with environment.begin(write=True) as transaction:
            for key in range(20):
                transaction.put(b"%d" % ((number * 7 + key * 13) % 500), b"%d" % number * 40)
            transaction.put(b"last", b"%d" % number)
        own.acknowledge(f"w-{number}")
    environment.close()
    return 0


def change_role_by_hand(directory: Path, ledger: Path) -> int:
    """The C entry point, as a program without these modules would call it."""
    directory.mkdir()
    ctypes.CDLL(None).faults_role(b"renamed")
    os.write(_new(directory / "file"), b"x")
    return 0
