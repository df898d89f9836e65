"""A run's private folder: what a restarted runner needs, and what is destroyed at a final state."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from engine.errors import StoreError
from engine.system.files import sync_folder, write_private

RUNS: Final = "runs"
INPUTS: Final = "inputs.json"
FILES: Final = "files"
"""In `INPUTS`: where the operator's own files are (`engine.payload.local_files.stored_files`)."""
SPOOLED: Final = "input"
"""Data that could be read only once."""
WEIGHTS_BYTES: Final = "weightsBytes"
"""In `INPUTS`: what the model's weights take on the allocation's disk, null if that is unknown."""
ADAPTERS: Final = "adapters"
LOGS: Final = "logs"
ADAPTER_FILES: Final = {"raw": "raw.safetensors", "protected": "protected.sealed"}
ADAPTER_CONFIG: Final = "adapter_config.json"


class RunFolder:
    """`home/runs/<id>`, 0700; its files are 0600 and written atomically."""

    def __init__(self, home: Path, run_id: str) -> None:
        self.home = home
        self.run_id = run_id
        self.path = home / RUNS / run_id

    def create(self) -> None:
        """Create the folder; raises `StoreError` (`store_unwritable`)."""
        try:
            for folder in (self.path.parent, self.path):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(self.path.parent)
        except OSError as error:
            raise StoreError(
                f"The run folder {self.path} cannot be created: {error.strerror}.",
                "Free some space or choose another --home.",
                code="store_unwritable",
            ) from error

    def write(self, name: str, data: bytes) -> Path:
        """Write a private file atomically; it is on the disk when this returns."""
        target = self.path / name
        write_private(target, data)
        return target

    def write_json(self, name: str, value: object) -> Path:
        """Like `write`, for a JSON value."""
        return self.write(name, json.dumps(value).encode())

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or None when it is not there."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def read_json(self, name: str) -> Any:
        """A JSON file's value, or None when it is not there."""
        text = self.read(name)
        return None if text is None else json.loads(text)

    @property
    def adapters(self) -> Path:
        """Where the run's adapters stay after the folder is gone."""
        return self.home / ADAPTERS / self.run_id

    def keep_only(self, names: Collection[str]) -> None:
        """Remove everything but these files."""
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if path.name not in names:
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def destroy(self) -> None:
        """Overwrite the keys and remove the folder."""
        from engine.sealing.run_key import destroy_run_key

        with contextlib.suppress(OSError):
            destroy_run_key(self.path)
        shutil.rmtree(self.path, ignore_errors=True)


def left_behind(home: Path) -> list[str]:
    """The ids of the runs whose folder still exists."""
    folder = home / RUNS
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
