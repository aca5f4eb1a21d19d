"""The project's own files: requirements, symlinks, faces of the rooms, import contract, licence."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import perdure

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("cli", "recovery", "shipping", "store")
REQUIREMENT_FILES = (
    "requirements.txt",
    "requirements-build.txt",
    "requirements-dev.txt",
    "requirements-encryption.txt",
    "requirements-etcd.txt",
    "requirements-bench.txt",
)
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins(file: str) -> dict[str, tuple[str, list[str]]]:
    """The requirements of one file: name -> (version, hashes)."""
    text = (ROOT / file).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    entries = re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()
    found: dict[str, tuple[str, list[str]]] = {}
    for entry in entries:
        match = re.match(r"([a-z0-9-]+)==([0-9][^\s;]*)\s", entry)
        assert match, f"{file}: not a pinned requirement: {entry[:80]}"
        assert match[1] not in found, f"{file}: {match[1]} stands there twice"
        found[match[1]] = (match[2], HASH.findall(entry))
    return found


def names_of(requirements: list[str]) -> set[str]:
    """The normalised names in a list of requirements such as `backports.zstd>=1.0; ...`."""
    matches = [re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements]
    return {re.sub(r"[._-]+", "-", match[0]).lower() for match in matches if match}


@pytest.mark.parametrize("file", REQUIREMENT_FILES)
def test_a_requirement_file_names_no_index_and_no_host(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert "://" not in text
    options = {word for word in text.split() if word.startswith("-") and not word.startswith("--hash=")}
    assert options <= {"-c"}  # in a comment: where a package comes from


@pytest.mark.parametrize("file", REQUIREMENT_FILES)
def test_every_requirement_is_pinned_with_a_hash(file: str) -> None:
    requirements = pins(file)
    assert requirements
    assert [name for name, (_, hashes) in requirements.items() if not hashes] == []


def test_the_requirement_files_agree_with_each_other() -> None:
    everything = pins("requirements-dev.txt")
    for file in ("requirements.txt", "requirements-build.txt", *REQUIREMENT_FILES[-3:]):
        for name, (version, hashes) in pins(file).items():
            assert everything[name] == (version, hashes), (
                f"{name} differs between {file} and requirements-dev.txt"
            )


def test_the_requirement_files_pin_what_the_project_declares() -> None:
    declared = project()["project"]
    assert names_of(declared["dependencies"]) <= pins("requirements.txt").keys()
    assert names_of(declared["optional-dependencies"]["dev"]) <= pins("requirements-dev.txt").keys()
    assert (
        names_of(declared["optional-dependencies"]["encryption"])
        <= pins("requirements-encryption.txt").keys()
    )
    assert names_of(declared["optional-dependencies"]["etcd"]) <= pins("requirements-etcd.txt").keys()
    assert names_of(declared["optional-dependencies"]["bench"]) <= pins("requirements-bench.txt").keys()
    assert names_of(project()["build-system"]["requires"]) == pins("requirements-build.txt").keys()


@pytest.mark.parametrize("room", ROOMS)
def test_the_package_links_to_the_room(room: str) -> None:
    link = ROOT / "src" / "perdure" / room
    assert link.is_symlink()
    assert str(link.readlink()) == f"../../{room}"
    assert link.resolve() == ROOT / room
    assert (link / "__init__.py").is_file()


@pytest.mark.parametrize("room", ROOMS)
def test_a_face_lists_only_what_can_be_imported_and_in_order(room: str) -> None:
    face = importlib.import_module(f"perdure.{room}")
    names: list[str] = face.__all__
    assert names == sorted(set(names))
    assert [name for name in names if not hasattr(face, name)] == []


def test_the_public_face_lists_only_what_can_be_imported_and_in_order() -> None:
    assert perdure.__all__ == sorted(set(perdure.__all__))
    assert [name for name in perdure.__all__ if not hasattr(perdure, name)] == []


def test_the_version_is_the_same_everywhere() -> None:
    assert perdure.__version__ == project()["project"]["version"]


def test_the_import_contract_names_every_room_from_top_to_bottom() -> None:
    contracts = {contract["id"]: contract for contract in project()["tool"]["importlinter"]["contracts"]}
    assert contracts["rooms"]["type"] == "layers"
    assert contracts["rooms"]["containers"] == ["perdure"]
    assert contracts["rooms"]["layers"] == ["cli", "recovery", "shipping", "store"]


def test_the_import_contract_breaks_on_an_upward_import(tmp_path: Path) -> None:
    """The contract is kept by the checkout's own configuration, run over a package with one arrow upwards."""
    package = tmp_path / "src" / "perdure"
    for room in ROOMS:
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").touch()
    (package / "__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def lint() -> subprocess.CompletedProcess[str]:
        program = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
        command = [sys.executable, "-c", program, "--no-cache"]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    kept = lint()
    assert kept.returncode == 0, kept.stdout + kept.stderr
    (package / "store" / "log.py").write_text("from ..shipping import anything\n")
    broken = lint()
    assert broken.returncode == 1
    assert "perdure.store is not allowed to import perdure.shipping" in broken.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_pyright_is_told_of_each_link_by_name(room: str) -> None:
    assert f"src/perdure/{room}" in project()["tool"]["pyright"]["include"]


@pytest.mark.timeout(120)
def test_a_wheel_holds_every_module_of_every_room(tmp_path: Path) -> None:
    """Built from a copy, so that a build leaves nothing in the checkout and tests may run side by side."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md"):
        shutil.copy(ROOT / name, copy)
    for name in ("src", *ROOMS):
        skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=skipped)
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        str(tmp_path / "dist"),
        str(copy),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr

    (wheel,) = (tmp_path / "dist").glob("perdure-*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"perdure/{path.relative_to(copy)}" for room in ROOMS for path in (copy / room).rglob("*.py")}
    assert inside == expected | {"perdure/__init__.py", "perdure/__main__.py", "perdure/py.typed"}


def test_the_licence_is_stated_and_its_text_is_there() -> None:
    assert project()["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench", "lab", "clean"])
def test_the_makefile_knows_the_target(target: str) -> None:
    dry = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert dry.returncode == 0, dry.stderr


def test_make_has_python_keep_what_it_compiles_whatever_the_environment_says() -> None:
    words = ["make", "--no-print-directory", "--eval", "say:; @echo [$$PYTHONDONTWRITEBYTECODE]", "say"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
