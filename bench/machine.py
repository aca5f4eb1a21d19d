"""What a run was measured on, and how busy that was."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path


def machine(directory: Path) -> dict[str, str | int | float]:
    """The machine, and the file system of this directory."""
    memory_kb = next(
        (int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0
    )
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), ""
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 0,
        "memory_gib": round(memory_kb / (1 << 20), 1),
        "kernel": platform.release(),
        "file_system": file_system_of(directory),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 1),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def file_system_of(directory: Path) -> str:
    """Its type, as ext4; the longest mount point above the directory decides."""
    here = directory.resolve()
    best, kind = -1, ""
    for line in _lines("/proc/mounts"):
        mount, its = line.split()[1:3]
        point = Path(mount.replace("\\040", " "))
        if here.is_relative_to(point) and len(point.parts) > best:
            best, kind = len(point.parts), its
    return kind


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
