"""Packages with a back end, installed for a test: a module and its metadata in a directory of sys.path.

Owns the layout of an installed package. The page of the back ends is the source of the worked example.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"
EXAMPLE = "stdlib-sqlite"


def install(site: Path, name: str, version: str, entries: dict[str, str], modules: dict[str, str]) -> Path:
    """What a package manager leaves of a package; answers the directory for sys.path."""
    metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{entry} = {value}" for entry, value in entries.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[perdure.backends]", *lines, ""]))
    for module, source in modules.items():
        (site / f"{module}.py").write_text(source)
    return site


def install_example(site: Path) -> Path:
    """The worked example of the page, as it stands there."""
    page = PAGE.read_text()
    project = tomllib.loads(_block(page, "toml"))["project"]
    entries = project["entry-points"]["perdure.backends"]
    module = entries[EXAMPLE].partition(":")[0]
    return install(site, project["name"], project["version"], entries, {module: _block(page, "python")})


def _block(page: str, language: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    return str(blocks[0])
