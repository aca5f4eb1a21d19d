"""Configuration: precedence, checks that name file and key, old names, named stores."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.store import SessionStore, StoreMissingError, UsageError, inspect_config, load_config
from perdure.store.old_options import OLD_OPTIONS
from perdure.store.option import STORE
from perdure.store.options import NODE, OPTIONS, RECOVERY, StoreOptions, option

APPENDIX = (
    "enabled replica_nodes batch_size batch_timeout_ms replication_rpc_timeout_ms health_check_interval_ms "
    "failure_threshold cleanup_interval cleanup_interval_ms enable_compression max_session_size_bytes "
    "default_timeout_ms replication_factor sync_interval snapshot_interval max_pending_syncs "
    "enable_state_persistence enable_auto_reconciliation auto_save nodes disc_copies table_name file_path "
    "storage_mode backend"
)
NOT_CONFIGURED = {"cls", "path", "create", "gate", "forwarder"}
"""Parameters of SessionStore.open that no file and no variable gives."""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for option_ in OPTIONS:
        monkeypatch.delenv(option_.variable, raising=False)
    monkeypatch.delenv("PERDURE_CONFIG", raising=False)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def problems(path: Path, text: str, **environ: str) -> list[str]:
    found = inspect_config(write(path, text), environ=environ)
    return [str(problem) for problem in found.problems]


def test_every_option_of_the_store_is_in_the_table_with_its_default_and_the_other_way_round() -> None:
    parameters = inspect.signature(SessionStore.open).parameters
    taken = {name: found.default for name, found in parameters.items() if name not in NOT_CONFIGURED}
    assert {known.name: known.default for known in OPTIONS if known.section == STORE} == taken
    assert set(StoreOptions.__annotations__) - {"create"} == set(taken)


def test_each_default_is_allowed() -> None:
    for known in OPTIONS:
        if known.default is not None:
            assert known.kind.name == "path" or known.check(known.default) == known.default, known.key


def test_a_keyword_comes_before_a_variable_before_the_file_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"

    def size_max(**options: Any) -> Any:
        with perdure.open(store, **options) as opened:
            return opened._size_bytes_max

    assert size_max() == 65_536
    write(store / "perdure.toml", "[store]\nmax_session_size_bytes = 1000\n")
    assert size_max() == 1000
    monkeypatch.setenv("PERDURE_MAX_SESSION_SIZE_BYTES", "2000")
    assert size_max() == 2000
    assert size_max(max_session_size_bytes=3000) == 3000


def test_only_the_first_file_that_is_named_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = write(tmp_path / "store" / "perdure.toml", "[store]\ninterval_ms = 1\n")
    by_variable = write(tmp_path / "b.toml", "[store]\ninterval_ms = 2\n")
    by_keyword = write(tmp_path / "c.toml", "[store]\ninterval_ms = 3\n")
    assert load_config(directory=inside.parent).setting(STORE, "interval_ms").value == 1
    monkeypatch.setenv("PERDURE_CONFIG", str(by_variable))
    assert load_config(directory=inside.parent).setting(STORE, "interval_ms").value == 2
    assert load_config(by_keyword, directory=inside.parent).file == by_keyword


def test_a_new_store_is_made_beside_its_configuration(tmp_path: Path) -> None:
    write(tmp_path / "store" / "perdure.toml", '[store]\nbackend = "sqlite"\n')
    with perdure.open(tmp_path / "store") as store:
        assert store.stats()["backend"] == "sqlite"


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no configuration file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="PERDURE_CONFIG"):
        load_config(environ={"PERDURE_CONFIG": str(tmp_path / "none.toml")})


@pytest.mark.parametrize("text", ["[store", "a = \xff", "[store]\na = 1\na = 2"])
def test_what_is_no_toml_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match="not TOML") as caught:
        load_config(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[store]\ndurabilty = 'os'", "no option 'durabilty' in [store]; did you mean 'durability'?"),
        ("[stor]\ndurability = 'os'", "no section 'stor'; did you mean 'store'?"),
        ("durability = 'os'", "It belongs into [store]"),
        ("[store]\nlisten = 'a:1'", "It belongs into [node]"),
        (
            "[store]\ndurability = 'dsik'",
            "one of os, interval, disk, cache, not 'dsik'; did you mean 'disk'?",
        ),
        ("[store]\ninterval_ms = 0", "interval_ms in [store]: it is a whole number from 1 to 86,400,000 ms"),
        ("[store]\ninterval_ms = 1.5", "interval_ms in [store]: it is a whole number"),
        ("[store]\ninterval_ms = true", "interval_ms in [store]: it is a whole number"),
        ("[store]\nhide_ids = 1", 'hide_ids in [store]: it is true or false, or "none", not 1'),
        ("[store]\nhome_node = 7", "home_node in [store]: it is a text of at most 255 bytes"),
        ("[node]\nlisten = 'here'", "'here' is no address"),
        ("[node.peers]\nn2 = 7001", "the address of n2 is a text HOST:PORT"),
        ("[node]\nvoters = ['N 1']", "'N 1' is no node name"),
        ("store = 7", "[store] is a table, not 7"),
        ("[stores.web]\ndurability = 'os'", "[stores.web] has no path"),
        ("[stores.Web]\npath = 'x'", "'Web' is no name of a store"),
        ("[stores.a]\npath = 'x'\n[stores.b]\npath = './x'", "[stores.b] and [stores.a] have one path"),
        (
            "[stores.a]\npath = 'x'\n[stores.a.node]\nlistn = 'h:1'",
            "'listn' in [stores.a.node]; did you mean",
        ),
        (
            "[store]\nsweep_interval_ms = 1\ncleanup_interval = 2",
            "gives store.sweep_interval_ms, which is given",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_file_key_and_what_is_right(
    tmp_path: Path, text: str, said: str
) -> None:
    (problem,) = problems(tmp_path / "c.toml", text)
    assert said in problem
    assert str(tmp_path / "c.toml") in problem


def test_every_problem_is_listed_and_the_first_raised(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", "[store]\ninterval_ms = 0\n[node]\nnme = 'n1'\n")
    assert len(inspect_config(path, environ={"PERDURE_DURABILITY": "x"}).problems) == 3
    with pytest.raises(UsageError, match="interval_ms"):
        load_config(path)
    with pytest.raises(UsageError, match="interval_ms"):
        perdure.open(tmp_path / "store", config=path)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("PERDURE_INTERVAL_MS", "7", 7),
        ("PERDURE_HIDE_IDS", "yes", True),
        ("PERDURE_MAX_SESSIONS", "none", None),
        ("PERDURE_NODE_VOTERS", "n1, n2", ["n1", "n2"]),
        ("PERDURE_NODE_PEERS", "n2=h:1,n3=[::1]:2", {"n2": "h:1", "n3": "[::1]:2"}),
        ("PERDURE_RECOVERY_SNAPSHOTS_KEPT", "9", 9),
    ],
)
def test_a_variable_gives_an_option_of_its_type(variable: str, text: str, value: object) -> None:
    found = load_config(environ={variable: text})
    (known,) = (each for each in OPTIONS if each.variable == variable)
    setting = found.setting(known.section, known.name)
    assert (setting.value, setting.source, setting.where) == (value, "environment", variable)


def test_a_wrong_variable_is_an_error_that_names_it_and_an_unknown_one_a_note() -> None:
    with pytest.raises(UsageError, match=r"PERDURE_INTERVAL_MS.*whole number.*'soon'"):
        load_config(environ={"PERDURE_INTERVAL_MS": "soon"})
    found = inspect_config(environ={"PERDURE_DURABILTY": "os", "PERDURE_SERVICE_HOST": "10.0.0.1"})
    assert found.problems == []
    assert ["PERDURE_DURABILITY" in note.text for note in found.notes] == [True, False]


def test_keys_are_the_path_of_a_key_file_or_its_text(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", "[store]\nkeys = 'my.keys'\n")
    assert load_config(path, environ={}).given(STORE) == {"keys": str(tmp_path / "my.keys")}
    text = '{"the text": "of a key file"}'
    assert load_config(path, environ={"PERDURE_KEYS": text}).given(STORE) == {"keys": text}
    assert load_config(path, environ={"PERDURE_KEYS": "none"}).given(STORE) == {"keys": None}


def test_an_empty_variable_is_none() -> None:
    assert load_config(environ={"PERDURE_INTERVAL_MS": ""}).setting(STORE, "interval_ms").source == "default"


def test_an_unknown_keyword_is_an_error_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'durabilty'; did you mean 'durability'"):
        perdure.open(tmp_path / "s", durabilty="os")  # type: ignore[call-arg]
    assert not (tmp_path / "s").exists()


# -- named stores ---------------------------------------------------------------------------------


def test_a_named_store_takes_its_own_options_first(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.toml",
        """
[store]
interval_ms = 1
write_timeout_ms = 2
[stores.web]
path = "web"
interval_ms = 3
[stores.web.recovery]
snapshots_kept = 4
""",
    )
    environ = {"PERDURE_WRITE_TIMEOUT_MS": "5", "PERDURE_STORES_WEB_SWEEP_INTERVAL_MS": "6"}
    found = load_config(path, environ=environ)
    assert found.given(STORE, "web") == {"interval_ms": 3, "write_timeout_ms": 5, "sweep_interval_ms": 6}
    assert found.given(STORE) == {"interval_ms": 1, "write_timeout_ms": 5}
    assert found.setting(RECOVERY, "snapshots_kept", "web").value == 4
    assert found.setting(RECOVERY, "snapshots_kept").value == 3
    assert found.path_of("web") == tmp_path / "web"
    assert found.name_of(tmp_path / "x" / ".." / "web") == "web"
    with pytest.raises(UsageError, match="no store @wbe; did you mean 'web'"):
        found.path_of("wbe")


def test_stores_whose_names_begin_alike_have_variables_of_their_own(tmp_path: Path) -> None:
    text = "[stores.a]\npath = 'a'\n[stores.a-recovery]\npath = 'b'\n"
    assert problems(tmp_path / "c.toml", text) == []  # no option of one is one of the other
    assert problems(tmp_path / "d.toml", "[stores.a]\npath = 'a'\n[stores.b]\npath = 'b'\n") == []


def test_a_store_is_opened_by_its_name_and_by_its_path_with_its_options(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", "[stores.web]\npath = 'web'\nmax_session_size_bytes = 100\n")
    for place in ("@web", tmp_path / "web"):
        with perdure.open(place, config=path) as store:
            assert store._size_bytes_max == 100
    with pytest.raises(UsageError, match="@jobs"):
        perdure.open("@jobs", config=path)


# -- old names ------------------------------------------------------------------------------------


def test_every_old_name_is_known() -> None:
    assert set(OLD_OPTIONS) == set(APPENDIX.split())


_OLD_VALUES: dict[str, Any] = {
    "enabled": "true",
    "replica_nodes": "['n2=10.0.0.2:7001']",
    "nodes": "['n2=10.0.0.2:7001']",
    "enable_compression": "true",
    "enable_state_persistence": "true",
    "enable_auto_reconciliation": "true",
    "disc_copies": "['n1']",
    "table_name": "'sessions'",
    "file_path": "'/srv/sessions'",
    "storage_mode": "'dets'",
    "backend": "'dets'",
}


@pytest.mark.parametrize("name", APPENDIX.split())
def test_an_old_name_is_understood_or_said_to_have_no_effect(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "c.toml", f"{name} = {_OLD_VALUES.get(name, '12345')}\n")
    found = inspect_config(path, environ={})
    assert found.problems == []
    (note,) = found.notes
    assert note.key == name
    if found.in_file:
        assert "understood as" in note.text
    else:
        assert "it has no effect" in note.text


@pytest.mark.parametrize(
    ("text", "section", "name", "value"),
    [
        ("cleanup_interval = 30000", STORE, "sweep_interval_ms", 30_000),
        ("[store]\ncleanup_interval_ms = 60000", STORE, "sweep_interval_ms", 60_000),
        ("auto_save = 60000", STORE, "durability", "interval"),
        ("auto_save = 60000", STORE, "interval_ms", 60_000),
        ("enable_compression = true", STORE, "compression", "zstd"),
        ("enable_compression = false", STORE, "compression", "none"),
        ("default_timeout_ms = 'infinity'", STORE, "default_timeout_ms", None),
        ("[store]\ndefault_timeout_ms = 'infinite'", STORE, "default_timeout_ms", None),
        ("replication_rpc_timeout_ms = 4000", STORE, "write_timeout_ms", 4000),
        ("snapshot_interval = 60000", RECOVERY, "snapshot_interval_ms", 60_000),
        ("replica_nodes = ['n2=h:7001']", NODE, "peers", {"n2": "h:7001"}),
        ("storage_mode = 'ets'", STORE, "backend", "memory"),
        ("storage_mode = 'dets'", STORE, "backend", "sqlite"),
        ("storage_mode = 'mnesia'", STORE, "backend", "lmdb"),
        ("[store]\nbackend = 'ets'", STORE, "backend", "memory"),
    ],
)
def test_an_old_value_gives_ours(tmp_path: Path, text: str, section: str, name: str, value: object) -> None:
    found = inspect_config(write(tmp_path / "c.toml", text), environ={})
    assert found.problems == []
    assert found.setting(section, name).value == value
    assert found.notes


def test_an_old_table_name_and_path_make_a_named_store(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", "table_name = 'web_sessions'\nfile_path = 'web'\n")
    assert inspect_config(path, environ={}).stores == {"web-sessions": tmp_path / "web"}


def test_old_names_in_the_environment_and_as_keywords_are_understood(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = load_config(environ={"PERDURE_AUTO_SAVE": "5000", "PERDURE_MAX_PENDING_SYNCS": "100"})
    assert found.given(STORE) == {"durability": "interval", "interval_ms": 5000}
    with caplog.at_level(logging.WARNING):
        store = perdure.open(tmp_path / "s", replication_rpc_timeout_ms=77, batch_size=9)  # type: ignore[call-arg]
    with store:
        assert store._options.write_timeout_ms == 77
    assert "batch_size: it has no effect" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"cleanup_interval": "x"},
        {"enabled": "x"},
        {"nodes": "n1"},
        {"cleanup_interval": 5, "sweep_interval_ms": 7},
        {"compression": "none", "enable_compression": True},
        {"backend": "redis"},
    ],
)
def test_a_wrong_old_keyword_is_a_usage_error_and_makes_nothing(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        perdure.open(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["storage_mode", "backend"])
def test_an_old_word_is_understood_as_a_keyword(tmp_path: Path, name: str) -> None:
    options: dict[str, Any] = {name: "dets", "default_timeout_ms": "infinity"}
    with perdure.open(tmp_path / "s", **options) as store:
        assert store._opened.identity.backend == "sqlite"
        assert store.put("a", {}).expires_at is None


@pytest.mark.parametrize("name", ["snapshot_interval", "nodes", "table_name", "file_path"])
def test_an_old_keyword_that_reaches_no_option_of_a_store_is_not_said_to_be_understood(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    values: dict[str, Any] = {"snapshot_interval": 5, "nodes": ["n2=h:1"]}
    with perdure.open(tmp_path / "s", **{name: values.get(name, "x")}):
        assert f"{name}: it has no effect here" in caplog.text


@pytest.mark.parametrize("name", ["PERDURE_TABLE_NAME", "PERDURE_FILE_PATH"])
def test_an_old_variable_that_names_a_store_is_said_to_have_no_effect(name: str) -> None:
    (note,) = load_config(environ={name: "x"}).notes
    assert "it has no effect here" in note.text


def test_an_old_word_in_the_environment_is_noted() -> None:
    found = load_config(environ={"PERDURE_BACKEND": "dets"})
    assert found.given(STORE) == {"backend": "sqlite"}
    assert "understood as 'sqlite'" in found.notes[0].text


@pytest.mark.parametrize(
    "text",
    ["table_name = 'a'\nfile_path = 'p'\n[stores.a]\npath = 'q'\n", "[store]\nkeys = ''\n"],
)
def test_a_store_given_twice_and_an_empty_path_of_keys_are_problems(tmp_path: Path, text: str) -> None:
    assert len(inspect_config(write(tmp_path / "c.toml", text), environ={}).problems) == 1


def test_a_note_is_logged_when_a_store_is_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "s" / "perdure.toml", "replication_factor = 3\n")
    with caplog.at_level(logging.WARNING):
        perdure.open(tmp_path / "s").close()
    assert "replication_factor" in caplog.text


def test_an_old_value_of_another_type_is_an_error(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path / "c.toml", "cleanup_interval = 'often'\n")
    assert "cleanup_interval" in problem


def test_without_a_configuration_nothing_is_passed_on(tmp_path: Path) -> None:
    found = load_config(directory=tmp_path, environ={})
    assert (found.file, found.given(STORE), found.notes) == (None, {}, [])
    with pytest.raises(StoreMissingError):
        perdure.open(tmp_path / "none", create=False)


def test_an_unknown_option_asked_for_in_code_is_an_error() -> None:
    with pytest.raises(UsageError, match="did you mean 'listen'"):
        option(NODE, "lissen")
