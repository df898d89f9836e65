"""Fixtures: a home folder, a plan, and logs as a pod writes them."""

from __future__ import annotations

import base64
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import engine
from engine.plan import Model, Plan, ProviderRequest, Target
from engine.store.reader import Reader
from engine.store.writer import Writer

PROJECT = Path(engine.__file__).resolve().parent.parent

Child = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def writer(home: Path) -> Iterator[Writer]:
    with Writer(home) as store:
        yield store


@pytest.fixture
def reader(home: Path) -> Iterator[Reader]:
    with Reader(home) as store:
        yield store


@pytest.fixture
def plan() -> Plan:
    return Plan(
        label="first light",
        preset="demo",
        model=Model(source="tiny", name="tiny-qwen2"),
        target=Target(steps=200),
        provider=ProviderRequest(name="local"),
        challenge="order 17",
    )


@pytest.fixture
def child() -> Iterator[Child]:
    """Starts Python code in processes that can import this repository; kills those still running at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def progress_body(kind: str, first: int, losses: Sequence[float], nanos: Sequence[int]) -> dict[str, Any]:
    """The body of a progress event."""
    return {
        "segment": kind,
        "from": first,
        "to": first + len(losses),
        "losses": base64.b64encode(struct.pack(f"<{len(losses)}f", *losses)).decode(),
        "nanos": base64.b64encode(struct.pack(f"<{len(nanos)}Q", *nanos)).decode(),
    }


@pytest.fixture
def noisy() -> Callable[[str, int, int], dict[str, Any]]:
    """Makes progress bodies with full-precision noise: losses around 0.4, steps of 50 +- 2 ms."""
    noise = random.Random(17)  # noqa: S311  the same noise each time

    def make(kind: str, first: int, count: int) -> dict[str, Any]:
        losses = [noise.lognormvariate(-1, 0.3) for _ in range(count)]
        return progress_body(kind, first, losses, [int(noise.gauss(5e7, 2e6)) for _ in range(count)])

    return make


@pytest.fixture
def body() -> Callable[[str, int, Sequence[float], Sequence[int]], dict[str, Any]]:
    """Makes progress bodies from given values."""
    return progress_body
