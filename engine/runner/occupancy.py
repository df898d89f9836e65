"""Who is at work on a machine that one run at a time may use."""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.plan import Plan, load_plan
from engine.remote.launch import Launched
from engine.runner.folder import RunFolder
from engine.runner.staging import LAUNCHED
from engine.store.reader import Reader
from engine.store.views import RunSummary
from engine.system.processes import start_ticks


def lock_name(plan: Plan) -> str:
    """The name of the machine's lock."""
    return f"{plan.provider.name}:{plan.provider.allocation or 'default'}"


def at_work(reader: Reader, home: Path, run_id: str, lock: str) -> RunSummary | None:
    """Another run whose supervisor lives on this machine, whoever runs it; seen for the local provider only.

    A dead runner's lock is free, but its supervisor trains on: two at once would spoil each other's times.
    """
    for summary in reader.unfinished():
        if summary.id == run_id or summary.provider != "local":
            continue
        raw = RunFolder(home, summary.id).read(LAUNCHED)
        if raw is None or lock_name(load_plan(reader.run(summary.id).plan)) != lock:
            continue
        launched = msgspec.json.decode(raw, type=Launched)
        if start_ticks(launched.pid) == launched.start:
            return summary
    return None
