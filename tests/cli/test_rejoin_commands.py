"""`perdure rejoin` and `perdure diverged` on a node that had a history of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.recovery import take_snapshot
from perdure.store import Config, SessionStore
from perdure.store.promise import Promise
from tests.cli.runner import run, run_json
from tests.cluster.nodes import HOST, SECRET, Cluster, cluster_of, until
from tests.cluster.test_rejoin import part
from tests.cluster.test_shipping_safety import become_primary


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_bytes(SECRET)
    return file


def options(cluster: Cluster, secret: Path) -> list[str]:
    return ["--peer", f"n2={HOST}:{cluster.ports['n2']}", "--secret-file", str(secret)]


def test_a_rejoin_is_planned_done_and_what_it_exported_brought_back(tmp_path: Path, secret: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        store, shared, lost = part(cluster, backend_folds=True)
        n1 = cluster.path("n1")
        cluster.serve_here("n1", rejoin="manual")
        cluster.serve_here("n2")
        cluster.fold_here("n1")
        told = run_json("rejoin", n1, *options(cluster, secret), "--dry-run")
        assert (told["way"], told["exported_events"], told["is_done"]) == ("take-keys", 2, False)
        cluster.ship_here("n2", make_snapshot=lambda: take_snapshot(cluster.path("n2")).path)
        done = run_json("rejoin", n1, *options(cluster, secret), "--timeout", 20)
        assert (done["node"], done["primary"], done["is_done"]) == ("n1", "n2", True)
        (tail,) = run_json("diverged", "list", n1)["diverged"]
        assert (tail["events"], tail["sessions"], tail["problem"]) == (2, 2, "")
        shown = run("diverged", "show", n1, tail["name"])
        assert lost in shown.stdout
        assert run("diverged", "show", n1, tail["name"], "--session", shared).stdout.count("\n") == 1
        assert run("log", "dump", tail["path"]).exit_code == 0
        cluster.stop_here()
        become_primary(cluster, "n1", Promise(3, "n1"), Config(cluster.names, 0))
        until(lambda: store.peek(lost) is None, "the open handle sees n2's history")
        dry = run_json("diverged", "apply", n1, tail["name"], "--dry-run")
        assert [one["outcome"] for one in dry["changes"]] == ["applied", "applied"]
        with SessionStore.open(n1) as reader:
            assert reader.peek(lost) is None
        only = run_json("diverged", "apply", n1, tail["name"], "--session", lost)
        assert [(one["id"], one["outcome"]) for one in only["changes"]] == [(lost, "applied")]
        again = run_json("diverged", "apply", n1, tail["name"], "--session", lost, code=1)
        assert again["changes"][0]["why"] == "it is so already"
        with SessionStore.open(n1) as reader:
            assert reader.peek(lost) is not None


def test_without_a_primary_or_an_export_it_is_said(tmp_path: Path, secret: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.serve_here("n1", "n2")
        n2 = cluster.path("n2")
        assert run("rejoin", n2, "--dry-run").exit_code == 2
        peer = ["--peer", f"n2={HOST}:{cluster.ports['n2']}", "--secret-file", str(secret)]
        refused = run("rejoin", n2, *peer, "--dry-run")
        assert refused.exit_code == 3
        assert "is primary" in refused.stderr
        of_primary = run("rejoin", cluster.path("n1"), *peer, "--dry-run")
        assert of_primary.exit_code == 2
        assert "n1 is the primary itself" in of_primary.stderr
        assert run_json("diverged", "list", n2) == {"diverged": []}
        assert run("diverged", "show", n2, "nothing").exit_code == 5
