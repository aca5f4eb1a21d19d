"""The examples of docs/sessions.md run as they stand, and the links of all pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text(encoding="utf-8")


def test_the_examples_of_the_page_run_as_they_stand(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 6
    exec(compile("\n".join(blocks), "docs/sessions.md", "exec"), {"directory": tmp_path})  # noqa: S102


def test_every_link_between_the_pages_leads_somewhere() -> None:
    root = Path(__file__).parents[2]
    for page in [root / "README.md", root / "CHANGELOG.md", *(root / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
