"""The progress of sealing a package is shown in the run's reason, over a real store and a real package."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import msgspec
import pytest

from engine.plan import preset
from engine.providers.settings import Settings
from engine.runner import lifecycle
from engine.runner.environment_local import EnvironmentReference
from engine.runner.folder import RunFolder
from engine.runner.journal import Journal
from engine.runner.lifecycle import BUILDING, Runner
from engine.runner.staging import Staging
from engine.sealing.run_key import RunKey
from engine.store.reader import Reader
from engine.store.writer import Writer

RUN = "0123456789ab"


async def test_the_progress_of_a_long_sealing_is_shown_in_the_runs_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "SEALING_SECONDS", 0.05)
    plan = msgspec.structs.replace(preset("demo"), segments="protected")
    with Writer(tmp_path) as writer:
        writer.create_run(RUN, plan)
    folder = RunFolder(tmp_path, RUN)
    folder.create()
    RunKey.create(folder.path, RUN)
    runner = Runner(tmp_path, RUN)
    journal = Journal(runner.writer, runner.reader, RUN)
    staging = Staging(plan, folder, runner.writer, journal, RUN)
    staging._reference = EnvironmentReference(tmp_path, ())  # an empty environment; measuring is tested elsewhere
    assert staging.sealing == ""

    async def prepare_and_linger() -> None:
        await asyncio.to_thread(staging.prepare, Settings())
        async with asyncio.timeout(60):
            while not runner.reader.run(RUN).summary.reason.startswith("sealing the package: 100 %"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    await runner._until_prepared(staging, asyncio.create_task(prepare_and_linger()))
    progress = re.compile(r"sealing the package: \d+ % of [\d.]+ MiB")
    assert progress.fullmatch(staging.sealing)
    with Reader(tmp_path) as reader:
        view = reader.run(RUN)
    assert view.summary.state == "queued"
    assert view.summary.reason == staging.sealing
    assert BUILDING in [one.reason for one in view.transitions]
    assert staging.sealing.startswith("sealing the package: 100 %")
    assert all(one.state == "queued" for one in view.transitions if progress.fullmatch(one.reason))
