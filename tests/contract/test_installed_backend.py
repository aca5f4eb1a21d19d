"""Back ends of installed packages: the worked example of docs/backends.md, and packages that are wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.store import BackendKind, SessionStore, StorageError, UsageError, backend_kind, backend_names
from perdure.store import backends as registry
from perdure.store.backends import BACKENDS, open_backend
from tests.contract.installed import EXAMPLE, install, install_example

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from perdure.store import SessionStore
store = SessionStore.open(sys.argv[1], backend=sys.argv[2])
while True:
    for number in range(100):
        print(store.create({"n": number}, group="g"))
    store.fold()
    sys.stdout.flush()
"""


@pytest.fixture(autouse=True)
def _nothing_installed_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_installed", {})
    yield
    for module in [name for name in sys.modules if name.startswith("perdure_stdlib")]:
        del sys.modules[module]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(path)
    return path


def environment(site: Path) -> dict[str, str]:
    paths = [str(site), str(ROOT), *filter(None, sys.path)]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(paths), PERDURE_CONTRACT=EXAMPLE)


def test_the_worked_example_keeps_the_contract(site: Path, tmp_path: Path) -> None:
    install_example(site)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-x"]
    words += [f"--basetemp={tmp_path / 'contract'}", "tests/contract/test_backend.py"]
    done = subprocess.run(
        [*words, "tests/contract/test_model.py"],
        cwd=ROOT,
        env=environment(site),
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


def test_a_store_on_the_worked_example_keeps_its_sessions_through_a_kill(site: Path, tmp_path: Path) -> None:
    install_example(site)
    path = tmp_path / "store"
    with SessionStore.open(path, backend=EXAMPLE) as store:
        first = store.create({"user": "anna"}, group="g")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), EXAMPLE],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(site),
    )
    with process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline().strip() for _ in range(250)]
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.read().split("\n")[:-1]
    with SessionStore.open(path) as store:
        assert store.stats()["backend"] == EXAMPLE
        assert (path / "state" / EXAMPLE / "state.db").exists()
        assert all(store.peek(id) is not None for id in [first, *acknowledged])
        assert store.count() == store.count(group="g") >= len(acknowledged) + 1
        assert store._opened.rebuilt == ""
    with pytest.raises(StorageError, match=EXAMPLE):
        SessionStore.open(path, backend="lmdb")


def test_an_unknown_name_is_answered_with_all_that_there_are(site: Path) -> None:
    assert backend_names() == list(BACKENDS)
    install_example(site)
    assert backend_names() == [*BACKENDS, EXAMPLE]
    with pytest.raises(
        UsageError, match=r"Did you mean 'stdlib-sqlite'\? There are: lmdb, sqlite, memory, stdlib"
    ):
        backend_kind("stdlib-sqlit")


def test_a_store_is_not_made_with_a_back_end_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no back end 'stdlib-sqlite'"):
        SessionStore.open(tmp_path / "store", backend=EXAMPLE)
    assert not (tmp_path / "store" / "identity").exists()


def test_the_names_of_perdures_own_cannot_be_taken_over(site: Path) -> None:
    install(site, "thief", "1.0", dict.fromkeys(BACKENDS, "thief:KIND"), {"thief": "raise SystemError"})
    assert backend_names() == list(BACKENDS)
    for name in BACKENDS:
        assert type(backend_kind(name)) is BackendKind


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import not_there_at_all", "cannot be loaded: ModuleNotFoundError"),
        ("KINDS = 1", "cannot be loaded: AttributeError"),
        ("1 /", "cannot be loaded: SyntaxError"),
        ("KIND = dict", "is type, not a perdure.store.BackendKind"),
        ("from perdure.store import BackendKind\nKIND = BackendKind(None, 'e', 'f')", "no `open`"),
        ("from perdure.store import BackendKind\nKIND = BackendKind(open, '', 'f')", "no `engine`"),
        ("from perdure.store import BackendKind\nKIND = BackendKind(open, 'e', '../f')", "no file name"),
        ("from perdure.store import BackendKind\nKIND = BackendKind(open, 'e')", "no file name"),
    ],
)
def test_a_package_that_is_wrong_is_named(site: Path, source: str, says: str) -> None:
    install(
        site, "wrong-one", "2.5", {"wrong": "perdure_stdlib_wrong:KIND"}, {"perdure_stdlib_wrong": source}
    )
    with pytest.raises(UsageError) as caught:
        backend_kind("wrong")
    assert says in str(caught.value)
    assert "wrong-one 2.5" in str(caught.value)


def test_a_name_that_two_packages_register_is_refused_with_both(site: Path) -> None:
    for package in ("first-one", "other-one"):
        install(site, package, "1", {"double": "perdure_stdlib_x:KIND"}, {})
    with pytest.raises(UsageError, match="first-one 1 and other-one 1"):
        backend_kind("double")


@pytest.mark.parametrize("name", ["../up", "Big", "marker", "marker.tmp"])
def test_a_name_that_cannot_be_a_directory_beside_the_marker_is_refused(site: Path, name: str) -> None:
    install(site, "odd", "1", {name: "perdure_stdlib_x:KIND"}, {})
    with pytest.raises(UsageError, match="is no name for one"):
        backend_kind(name)


def test_what_opens_something_else_than_a_back_end_is_refused_with_what_is_missing(
    site: Path, tmp_path: Path
) -> None:
    source = "from perdure.store import BackendKind\nKIND = BackendKind(lambda path: path, 'e', 'f')"
    install(site, "half", "1", {"half": "perdure_stdlib_half:KIND"}, {"perdure_stdlib_half": source})
    with pytest.raises(UsageError, match="no Backend: it has no refresh, release"):
        open_backend("half", tmp_path / "state")
