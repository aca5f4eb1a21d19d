"""A system in a file, and contestants whose speed is written in a list: what the method is tested with."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.contestants import Growth
from bench.latency import Histogram
from bench.systems.embedded import EmbeddedRunning
from bench.systems.ports import Address, Client, Durability, Fields, RandomIds, Running
from bench.workloads import Case


class FileSystem:
    """Sessions are lines of a file, and every client reads it when it connects. Refuses touches."""

    name = "tests.bench.fakes:FileSystem"
    settings: Mapping[Durability, str] = {Durability.OS: "a file"}

    def why_not(self) -> str:
        return ""

    def version(self) -> str:
        return "file 1"

    def start(self, folder: Path, durability: Durability) -> Running:
        (folder / "lines").touch()
        return EmbeddedRunning(folder, {"path": str(folder / "lines")}, {"state": ("lines",)})

    def connect(self, address: Address) -> Client:
        return FileClient(Path(str(address["path"])))


class FileClient:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids = RandomIds()
        lines = path.read_text().splitlines()
        self._sessions: dict[str, Fields] = dict(json.loads(line) for line in lines)
        self._due: list[str] = []

    def create(self, fields: Fields) -> str:
        return self.create_many([fields])[0]

    def get(self, id: str) -> Fields | None:
        return self._sessions.get(id)

    def update(self, id: str, changes: Fields) -> None:
        self._sessions[id] = {**self._sessions[id], **changes}

    def touch(self, id: str) -> None:
        raise ConnectionError("nobody answers")

    def delete(self, id: str) -> None:
        del self._sessions[id]

    def create_many(self, many: list[Fields]) -> list[str]:
        new = {self._ids.take(): fields for fields in many}
        with self._path.open("a") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in new.items())
        self._sessions |= new
        return list(new)

    def ids(self) -> Iterator[str]:
        return iter(list(self._sessions))

    def create_due(self, many: list[Fields]) -> list[str]:
        ids = self.create_many(many)
        self._due += ids
        return ids

    def expire_due(self) -> int:
        due, self._due = self._due, []
        for id in due:
            self.delete(id)
        return len(due)

    def close(self) -> None:
        pass


class ScriptedContestant:
    """Reaches the speeds of a list, one a round; an exception among them is raised."""

    version = "1"
    setting = "as written"

    def __init__(
        self, name: str, speeds: Sequence[float | Exception], calls: list[str], durability: str = "os"
    ) -> None:
        self.name = name
        self.durability = Durability(durability)
        self._speeds = speeds
        self._calls = calls

    def why_not(self, case: Case) -> str:
        return ""

    def fill(self, value_bytes: int, count: int, *, limit_s: float) -> Growth:
        return Growth(count * 10, {"state": count * 20, "log": count * 30}, 5, count)

    def sessions(self, value_bytes: int) -> int:
        return 100_000 if value_bytes == 200 else 10_000

    def make_ready(self, case: Case) -> None:
        pass

    def slice(self, case: Case, number: int, seconds: float) -> tuple[float, Histogram]:
        self._calls.append(f"{number} {self.name}")
        speed = self._speeds[number]
        if isinstance(speed, Exception):
            raise speed
        latencies = Histogram()
        latencies.record([int(1e9 / speed)] * 10)
        return speed, latencies

    def close(self) -> None:
        self._calls.append(f"close {self.name}")


class SlowSystem(FileSystem):
    """Takes a second for a batch."""

    def connect(self, address: Address) -> Client:
        return SlowClient(Path(str(address["path"])))


class SlowClient(FileClient):
    def create_many(self, many: list[Fields]) -> list[str]:
        time.sleep(0.6)
        return super().create_many(many)
