"""The simplest store that the demo's operations can be carried out on: a dict that refuses what cannot be."""

from __future__ import annotations

from collections.abc import Iterable

from perdure.cli.demo.expectation import Replayed
from perdure.cli.demo.operations import (
    Content,
    Create,
    Delete,
    Expire,
    Get,
    Operation,
    Peek,
    Regenerate,
    Touch,
    Update,
)


class ModelStore:
    """Sessions as the operations leave them. Carrying out an operation that does not fit raises."""

    def __init__(self) -> None:
        self.sessions: dict[str, Content] = {}
        self.created = self.expired = self.deleted = self.regenerated = self.hits_ended = 0

    def run(self, operations: Iterable[Operation]) -> None:
        for operation in operations:
            self.apply(operation)

    def apply(self, operation: Operation) -> None:
        match operation:
            case Create(key=key, counter=counter, content=content):
                assert key not in self.sessions
                assert len(key.encode()) <= 64
                self._put(key, counter, content)
                self.created += 1
            case Update(key=key, counter=counter, content=content):
                assert self.sessions[key]["hits"] == counter - 1
                self._put(key, counter, content)
            case Regenerate(key=key, new_key=new_key, counter=counter, content=content):
                assert new_key not in self.sessions
                del self.sessions[key]
                self._put(new_key, counter, content)
                self.regenerated += 1
            case Delete(key=key, counter=counter) | Expire(key=key, counter=counter):
                assert self.sessions.pop(key)["hits"] == counter
                self.hits_ended += counter
                self.deleted += isinstance(operation, Delete)
                self.expired += isinstance(operation, Expire)
            case Get(key=key, counter=counter) | Peek(key=key, counter=counter):
                assert self.sessions[key]["hits"] == counter
            case Touch(key=key):
                assert key in self.sessions

    def replayed(self) -> Replayed:
        return Replayed(
            created=self.created,
            expired=self.expired,
            deleted=self.deleted,
            regenerated=self.regenerated,
            hits_ended=self.hits_ended,
        )

    def _put(self, key: str, counter: int, content: Content) -> None:
        assert content["hits"] == counter
        self.sessions[key] = content
