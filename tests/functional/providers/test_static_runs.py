"""A run on a host that another operator's run holds: it is queued with a reason, and frees only its own lock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from engine.plan import preset
from engine.providers.protocol import Spec
from engine.providers.settings import Settings
from engine.providers.static.provider import StaticProvider
from engine.runner.lifecycle import BUILDING
from engine.runner.start import start_run
from engine.store.reader import Reader
from engine.store.views import FINAL_RUN_STATES, RunSummary
from engine.store.writer import Writer
from tests.functional.providers.openssh import USER, Sshd, openssh

SPEC = Spec(name="glasshouse-other-run-1", host="box")
OTHER = "another-run"
PATIENCE = 300.0


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    (tmp_path / "host").mkdir()
    with openssh(tmp_path / "host") as server:
        yield server


def _start(home: Path, sshd: Sshd) -> str:
    """A run of the demo on the host without an environment: it never starts training."""
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        f'[[host]]\nname = "box"\naddress = "127.0.0.1"\nport = {sshd.port}\nuser = "{USER}"\n'
        f'key = "{sshd.client_key}"\nhost_key = "{sshd.line}"\nroot = "{sshd.folder}/root"\ngpu = "A Test GPU"\n'
        f'environment = "image"\nsite = ["{sshd.folder}"]\n'
    )
    plan = preset("demo")
    request = msgspec.structs.replace(plan.provider, name="static", allocation="box")
    return start_run(home, msgspec.structs.replace(plan, provider=request, segments="raw"))


def _wait(home: Path, run_id: str, done: Callable[[RunSummary], bool]) -> RunSummary:
    until = time.monotonic() + PATIENCE
    while True:
        with Reader(home) as reader:
            summary = reader.run(run_id).summary
        if done(summary) or summary.state in FINAL_RUN_STATES:
            return summary
        assert time.monotonic() < until, summary
        time.sleep(0.05)


def test_a_run_waits_for_a_host_that_another_operator_uses(sshd: Sshd, tmp_path: Path) -> None:
    other = StaticProvider(Settings(host=(sshd.settings(),)))
    assert asyncio.run(other.claim(SPEC, OTHER)) is None
    home = tmp_path / "home"
    waiting = _start(home, sshd)
    summary = _wait(home, waiting, lambda one: one.reason not in ("", BUILDING))
    assert summary.state == "queued"
    assert summary.reason.startswith(f"run {OTHER} has this host since ")
    with Writer(home) as writer:
        writer.request(waiting, "cancel")
    assert _wait(home, waiting, lambda _: False).state == "cancelled"
    reason = asyncio.run(other.claim(SPEC, "a-third-run"))
    assert reason is not None
    assert reason.startswith(f"run {OTHER} ")
    asyncio.run(other.let_go(SPEC, OTHER))

    next_run = _start(home, sshd)
    summary = _wait(home, next_run, lambda _: False)
    assert (summary.state, summary.reason.partition(":")[0]) == ("failed", "environment_mismatch")
    assert summary.cleanup == "not_ours"
    assert asyncio.run(other.claim(SPEC, OTHER)) is None, "the host was not freed"
    asyncio.run(other.let_go(SPEC, OTHER))
