"""Real roles, started from a sealed bundle as on an allocation."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import engine
from engine.remote.bundle import build_bundle
from engine.worker.channel import Channel, pair
from engine.worker.isolation import landlock, memfd
from engine.worker.isolation.binding import BIND_NOW

Start = Callable[..., "Role"]
Script = Callable[..., subprocess.Popen[str]]


@dataclass
class Role:
    """A running role and our end of its channel."""

    process: subprocess.Popen[bytes]
    channel: Channel


@pytest.fixture(scope="session")
def bundle() -> Iterator[int]:
    """The worker's bundle in sealed memory."""
    fd = memfd.from_bytes("bundle", build_bundle({}))
    memfd.seal_code(fd)
    yield fd
    os.close(fd)


@pytest.fixture
def start(bundle: int) -> Iterator[Start]:
    """`start("keyproc", "open", env={...})`: the role with a channel; ended with the test."""
    roles: list[Role] = []

    def begin(*words: str, env: dict[str, str] | None = None) -> Role:
        ours, theirs = pair()
        command = [sys.executable, "-I", "-S", "-B", f"/proc/self/fd/{bundle}", *words]
        command += ["--channel", str(theirs.fileno())]
        for folder in site.getsitepackages():
            command += ["--site", folder]
        process = subprocess.Popen(
            command, pass_fds=[bundle, theirs.fileno()], env={**BIND_NOW, **(env or {})}, cwd="/"
        )
        theirs.close()
        roles.append(Role(process, Channel(ours.detach())))
        return roles[-1]

    yield begin
    for role in roles:
        role.channel.close()
        if role.process.poll() is None:
            role.process.kill()
        role.process.wait(60)


@pytest.fixture
def landlock_abi() -> int:
    """The kernel's Landlock ABI; skips where it has none."""
    try:
        return landlock.abi()
    except OSError as error:
        pytest.skip(f"this kernel has no Landlock ({error.strerror}): run on Linux 5.13 or newer with lsm=landlock")


@pytest.fixture
def script() -> Iterator[Script]:
    """`script(source, *arguments)`: a Python process that can import the engine, with pipes for text."""
    running: list[subprocess.Popen[str]] = []
    root = str(Path(engine.__file__).parent.parent)

    def begin(
        source: str,
        *arguments: str,
        cwd: Path | None = None,
        keep: Sequence[int] = (),
        env: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        head = f"import sys; sys.path[:0] = {[root, *site.getsitepackages()]!r}\n"
        process = subprocess.Popen(
            [sys.executable, "-B", "-c", head + source, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=cwd,
            pass_fds=keep,
            env={**os.environ, **BIND_NOW, **(env or {})},
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)
