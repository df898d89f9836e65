"""Render the Run screen of a real home as SVG: `python -m glasshouse_tui.screenshot HOME RUN_ID OUT.svg`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

from engine.errors import GlasshouseError, UsageError
from engine.system.clock import utc
from glasshouse_tui.app import GlasshouseApp
from glasshouse_tui.format import parse_time
from glasshouse_tui.poller import Poller
from glasshouse_tui.screens.run import RunScreen
from glasshouse_tui.theme import DARK
from glasshouse_tui.widgets.lossplot import LossPlot

SIZE: Final = (120, 40)
_TIMEOUT_SECONDS: Final = 20.0


async def draw(home: Path, run_id: str, size: tuple[int, int] = SIZE) -> str:
    """The Run screen of one run as SVG, with the clock at the run's end. The home is opened read-only.

    `run_id` may be a unique prefix or `last`. Raises `UsageError` (`run_unknown`, `not_drawn`) or `StoreError`.
    """
    from engine.store.reader import Reader

    with Reader(home) as reader:
        view = reader.run(reader.resolve(run_id))
    summary = view.summary
    ended = parse_time(summary.finished_at) or utc()
    app = GlasshouseApp(home, open_run=summary.id, now=lambda: ended)
    app.poller = Poller(home, app, read_only=True)
    has_curves = summary.source == "mine" and any(segment.steps for segment in view.segments)
    async with app.run_test(size=size) as pilot:
        deadline = asyncio.get_running_loop().time() + _TIMEOUT_SECONDS
        while not _complete(app, has_curves):
            if asyncio.get_running_loop().time() > deadline:
                raise UsageError(
                    f"Run {summary.id} could not be drawn.", "Open it with `glasshouse`.", code="not_drawn"
                )
            await pilot.pause(0.05)
        app.theme = DARK
        await pilot.pause(0.5)
        return app.export_screenshot(title="glasshouse")


def _complete(app: GlasshouseApp, has_curves: bool) -> bool:
    screen = app.screen
    if not isinstance(screen, RunScreen) or screen.subject() is None:
        return False
    return screen.query_one(LossPlot).is_drawn or not has_curves


def main(arguments: list[str]) -> int:
    """Write the SVG file and return the exit code."""
    if len(arguments) != 3:
        print("usage: python -m glasshouse_tui.screenshot HOME RUN_ID OUT.svg", file=sys.stderr)
        return 2
    home, run_id, out = arguments
    try:
        Path(out).write_text(asyncio.run(draw(Path(home), run_id)), encoding="utf-8")
    except GlasshouseError as error:
        print(f"error: {error.message}\n  {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
