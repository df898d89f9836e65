"""The files that CONTRIBUTING, SECURITY and the README name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOP = ("engine/", "glasshouse_tui/", "tests/", "data/", ".github/", ".ci/")


@pytest.mark.parametrize("page", [".github/CONTRIBUTING.md", ".github/SECURITY.md", "README.md"])
def test_every_path_and_link_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https:")}
    paths = {path.partition("::")[0] for path in re.findall(r"`([\w./-]+(?:::\w+)?)`", text) if path.startswith(TOP)}
    missing = [link for link in links if link and not (ROOT / page).parent.joinpath(link).exists()]
    missing += [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
    assert missing == []
