"""Data files for the tests, and what reading them gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import DataError
from engine.payload.data.read import read_data
from engine.payload.data.samples import Sample

CHAT = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]}
PAIR = {"prompt": "Hi?", "completion": "Yes."}
SAMPLE = Sample(messages=tuple(CHAT["messages"]), learned=(False, True))


def written(folder: Path, *records: Any, name: str = "data.jsonl") -> Path:
    """A JSONL file; a record that is bytes is written as it is."""
    path = folder / name
    path.write_bytes(b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in records))
    return path


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    """A record with `messages`."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def one(folder: Path, record: Any) -> Sample:
    """The sample of a file that holds one record."""
    (sample,) = read_data(written(folder, record)).samples
    return sample


def refusal(path: Path) -> DataError:
    """The refusal of a file."""
    with pytest.raises(DataError) as caught:
        read_data(path)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value
