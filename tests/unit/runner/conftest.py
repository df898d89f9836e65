"""Fixtures: a store with one queued run of the preset `demo`, without its held-out samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engine.plan import preset
from engine.store.reader import Reader
from engine.store.writer import Writer

RUN = "0123456789ab"


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    with Writer(tmp_path) as made:
        made.create_run(RUN, msgspec.structs.replace(preset("demo"), evaluation=None))
        yield made


@pytest.fixture
def reader(tmp_path: Path, writer: Writer) -> Iterator[Reader]:
    with Reader(tmp_path) as made:
        yield made
