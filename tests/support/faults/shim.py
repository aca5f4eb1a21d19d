"""The fault shim from Python: compile it, plan a fault, say where it applies, read what was called.

Owns the command line of the compiler, the grammar of a plan (shim_plan.h) and the layout of the counts
file. Starts no process: `Injection.environment` gives the environment to start one with.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

KINDS = (
    "write", "pwrite", "writev", "sendfile", "copyrange", "fsync", "fdatasync", "trunc", "fallocate",
    "create", "rename", "link", "unlink", "rmdir", "mkdir",
)  # fmt: skip
"""Kinds of call, in the order of `enum kind` in shim_plan.h."""
WRITES = frozenset({"write", "pwrite", "writev", "sendfile", "copyrange"})
"""The kinds that can be torn."""

_HERE = Path(__file__).resolve().parent
_SOURCES = ("shim.c", "shim_plan.h", "shim_record.h")
_FLAGS = ("-O2", "-Wall", "-Wextra", "-shared", "-fPIC")
_LIBRARIES = ("-ldl", "-pthread")
_HEAD = struct.Struct("<QQ48x")
_SLOT = struct.Struct("<II40s16Q16x")
_COUNTS_MAGIC = 0x53544E554F435446
assert _HEAD.size == 64 and _SLOT.size == 192


class NoCompilerError(Exception):
    """There is no gcc on this machine, so the shim cannot be built; a test skips with this text."""


def build_shim(cache: Path | None = None) -> Path:
    """Compile the shim unless this very source was compiled before.

    cache: where to keep it, by default $PERDURE_TEST_CACHE or ~/.cache/perdure-tests. Safe to call from
    several processes at once. Raises NoCompilerError, or CalledProcessError with gcc's words.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        raise NoCompilerError("gcc is not installed, and the fault shim is compiled on demand")
    digest = hashlib.sha256(" ".join((platform.machine(), *_FLAGS, *_LIBRARIES)).encode())
    for name in _SOURCES:
        digest.update((_HERE / name).read_bytes())
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "perdure-tests"
    cache = cache or Path(os.environ.get("PERDURE_TEST_CACHE", default))
    library = cache / f"faults-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            made = Path(scratch) / library.name
            command = [compiler, *_FLAGS, "-o", str(made), str(_HERE / "shim.c"), *_LIBRARIES]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(library)
    return library


@dataclass(frozen=True)
class Rule:
    """One planned fault.

    kind: one of KINDS, or a group: anywrite, sync, names, any. action: see shim_plan.h, e.g. "KILL",
    "KILL_AFTER", "TORN=50%", "SHORT=7", "EIO", "DELAY=20" (ms), "STOP". n: the call that is struck,
    counted from 1 in each process by this rule. until: last call that is struck; None only the n-th;
    0 all from there. role: only in processes of this role. glob: only paths that match, relative to the
    directory.
    """

    kind: str
    n: int
    action: str
    until: int | None = None
    role: str = ""
    glob: str = ""

    def __str__(self) -> str:
        until = "" if self.until is None else f"..{self.until}" if self.until else "+"
        when = f"{self.n}{until}"
        role = f"{self.role}/" if self.role else ""
        glob = f"@{self.glob}" if self.glob else ""
        return f"{role}{self.kind}{glob}:{when}:{self.action}"


@dataclass(frozen=True)
class Injection:
    """Where the shim looks, and what it does there.

    directory: everything below it is watched; it need not exist yet, its parent must. plan: the faults.
    trace: file to record to. counts: file for the counters. role: this process's role. is_sync_skipped:
    record syncs without making them.
    """

    directory: Path
    plan: tuple[Rule, ...] = ()
    trace: Path | None = None
    counts: Path | None = None
    role: str = ""
    is_sync_skipped: bool = False

    def variables(self, library: Path) -> dict[str, str]:
        """The environment variables that make a process start under the shim."""
        found = {"LD_PRELOAD": str(library), "FAULTS_DIR": str(real_path(self.directory))}
        if self.plan:
            found["FAULTS_PLAN"] = ";".join(map(str, self.plan))
        if self.trace:
            found["FAULTS_TRACE"] = str(self.trace)
        if self.counts:
            found["FAULTS_COUNTS"] = str(self.counts)
        if self.role:
            found["FAULTS_ROLE"] = self.role
        if self.is_sync_skipped:
            found["FAULTS_NOSYNC"] = "1"
        return found

    def environment(self, library: Path, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """`base` (the own environment by default) with the shim's variables, and no older ones."""
        kept = os.environ if base is None else base
        clean = {name: value for name, value in kept.items() if not name.startswith("FAULTS_")}
        return clean | self.variables(library)


def real_path(path: Path) -> Path:
    """The path with the links of its parent resolved: the form in which the shim compares paths."""
    return path.parent.resolve() / path.name


def take_role(name: str) -> None:
    """Give the calling process a role in the plan and in the counts; nothing happens without the shim.

    For forked children, which inherit the environment of their parent. The counters start again at 0.
    """
    try:
        function = ctypes.CDLL(None).faults_role
    except AttributeError:
        return
    function(name.encode())


@dataclass(frozen=True)
class ProcessCounts:
    """What one process called: calls per kind, and how many rules struck it."""

    pid: int
    role: str
    calls: Mapping[str, int] = field(default_factory=dict[str, int])
    struck: int = 0


def read_counts(path: Path) -> list[ProcessCounts]:
    """The counts file, a slot per process (or per role that a process took), oldest first."""
    if not path.exists():
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as page:
        magic, used = _HEAD.unpack_from(page)
        if magic != _COUNTS_MAGIC:
            raise ValueError(f"{path}: not a counts file of the fault shim")
        rows: list[ProcessCounts] = []
        for index in range(min(used, (len(page) - _HEAD.size) // _SLOT.size)):
            pid, struck, role, *numbers = _SLOT.unpack_from(page, _HEAD.size + index * _SLOT.size)
            calls = {kind: n for kind, n in zip(KINDS, numbers, strict=False) if n}
            rows.append(ProcessCounts(pid, role.split(b"\0")[0].decode(), calls, struck))
        return rows


def most_calls(rows: Iterable[ProcessCounts]) -> dict[tuple[str, str], int]:
    """(role, kind) -> the most calls of that kind that one process of the role made."""
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        for kind, n in row.calls.items():
            found[row.role, kind] = max(n, found.get((row.role, kind), 0))
    return found
