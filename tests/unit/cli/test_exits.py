"""Every error has an exit code and one clear message; none becomes a traceback."""

from __future__ import annotations

import json

import pytest
import typer

from perdure.cli.exits import Exit, code_of, failure_of, reporting
from perdure.store import (
    CorruptError,
    DivergedError,
    FencedError,
    ForeignError,
    Indeterminate,
    LockTimeoutError,
    NoQuorumError,
    NotPrimaryError,
    PerdureError,
    PoisonedError,
    PositionGoneError,
    PromiseRefusedError,
    SessionNotFoundError,
    StorageFullError,
    StoreInUseError,
    StoreMissingError,
    UsageError,
    VersionConflictError,
    WireError,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), Exit.USAGE),
        (SessionNotFoundError("x"), Exit.FINDINGS),
        (VersionConflictError("x", expected=1, actual=2), Exit.FINDINGS),
        (NotPrimaryError("x"), Exit.REFUSED),
        (FencedError("x"), Exit.REFUSED),
        (LockTimeoutError("x"), Exit.REFUSED),
        (NoQuorumError("x"), Exit.REFUSED),
        (StoreInUseError("x"), Exit.REFUSED),
        (PromiseRefusedError("x"), Exit.REFUSED),
        (CorruptError("x"), Exit.CORRUPT),
        (ForeignError("x"), Exit.CORRUPT),
        (DivergedError("x"), Exit.CORRUPT),
        (StoreMissingError("x"), Exit.IO),
        (StorageFullError("x"), Exit.IO),
        (PoisonedError("x"), Exit.IO),
        (PositionGoneError("x"), Exit.IO),
        (WireError("x"), Exit.IO),
        (OSError(5, "input/output error"), Exit.IO),
        (Indeterminate("x", position=(1, 2, 3), operation_id=None), Exit.INDETERMINATE),
        (KeyboardInterrupt(), Exit.INTERRUPTED),
        (ZeroDivisionError("x"), Exit.INTERNAL),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: BaseException, code: Exit) -> None:
    assert code_of(error) is code


def _command(error: BaseException, as_json: bool) -> int:
    @reporting
    def command(as_json: bool) -> None:
        raise error

    with pytest.raises(typer.Exit) as exit:
        command(as_json=as_json)
    return exit.value.exit_code


def test_an_error_says_what_where_and_what_next_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    error = CorruptError("the frame does not check", path="/srv/n1/log/a.seg", offset=99, lsn=7, hint="Look.")
    assert _command(error, as_json=False) == 4
    out, err = capsys.readouterr()
    assert out == ""
    said = " ".join(err.split())
    assert "the frame does not check (path /srv/n1/log/a.seg, offset 99, lsn 7)" in said
    assert "hint: Look." in said
    assert "Traceback" not in err


def test_with_json_an_error_is_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        _command(StoreMissingError("there is no store here", path="/x", hint="Make one."), as_json=True) == 5
    )
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "error": {
            "error": "StoreMissingError",
            "message": "there is no store here",
            "code": 5,
            "path": "/x",
            "hint": "Make one.",
        }
    }


def test_an_unforeseen_error_is_a_message_and_code_70(capsys: pytest.CaptureFixture[str]) -> None:
    assert _command(ZeroDivisionError("by zero"), as_json=False) == 70
    err = capsys.readouterr().err
    assert "ZeroDivisionError: by zero" in err
    assert "Traceback" not in err


def test_an_indeterminate_error_gives_the_position_to_ask_for() -> None:
    error = Indeterminate("not known", position=(2, 41, 7), operation_id="ab")
    known = failure_of(error, code_of(error))
    assert (known["position"], known["operation_id"], known["lsn"]) == ((2, 41, 7), "ab", 41)


def test_every_error_of_the_tree_has_a_code_that_is_documented() -> None:
    def kinds(kind: type[PerdureError]) -> set[type[PerdureError]]:
        return {kind}.union(*(kinds(sub) for sub in kind.__subclasses__()))

    for kind in kinds(PerdureError):
        code = code_of(kind.__new__(kind))
        assert code in Exit and code not in (Exit.FINE, Exit.INTERNAL), kind
