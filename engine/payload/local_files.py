"""The operator's own files that a plan uses. The plan is published and names none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec


class LocalFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Paths on the operator's machine; None where the plan needs no such file.

    `data` and `held_out` may be folders. `template` is a chat template that replaces the model's. `temporary` are those
    of them that are copies of what can be read only once: a run takes them over.
    """

    data: Path | None = None
    held_out: Path | None = None
    model: Path | None = None
    template: Path | None = None
    temporary: tuple[Path, ...] = ()


NO_FILES: Final = LocalFiles()


def stored_files(files: LocalFiles) -> dict[str, Any]:
    """The files as JSON-ready builtins, with absolute paths."""
    paths = {name: getattr(files, name) for name in ("data", "held_out", "model", "template")}
    return {name: None if path is None else str(path.resolve()) for name, path in paths.items()}


def files_from(stored: dict[str, Any]) -> LocalFiles:
    """The inverse of `stored_files`."""
    paths = {name: None if path is None else Path(path) for name, path in stored.items()}
    return LocalFiles(
        data=paths.get("data"),
        held_out=paths.get("held_out"),
        model=paths.get("model"),
        template=paths.get("template"),
    )
