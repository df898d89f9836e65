"""Snapshots of the screens at 80x24 and 120x40."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from textual.pilot import Pilot

from glasshouse_tui.app import GlasshouseApp
from glasshouse_tui.theme import LIGHT, MONO
from glasshouse_tui.widgets.lossplot import LossPlot

if TYPE_CHECKING:
    from tests.functional.console.conftest import Story

RUN = "b81e44d0a6c1"
OLD = "3f9a1c0d77b2"
SIZES = pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
_STILL = 20
Compare = Callable[..., bool]


def settled(
    *texts: str, plot: bool = False, theme: str = "", then: tuple[str, str] | None = None
) -> Callable[[Pilot[Any]], Awaitable[None]]:
    """Wait until all texts are drawn and nothing changes any more; `then` is a key to press and a text to wait for."""

    async def appear(pilot: Pilot[Any], *expected: str) -> None:
        same, before = 0, ""
        for _ in range(600):
            await pilot.pause(0.05)
            strips = pilot.app.screen._compositor.render_strips()
            drawn = "\n".join("".join(segment.text for segment in strip) for strip in strips)
            plots = pilot.app.screen.query(LossPlot)
            complete = all(text in drawn for text in expected) and (
                not plot or any(drawn_plot.is_drawn for drawn_plot in plots)
            )
            same, before = same + 1 if complete and drawn == before else 0, drawn
            if same >= _STILL:
                return
        pytest.fail(f"{expected} did not appear:\n{before}")

    async def wait(pilot: Pilot[Any]) -> None:
        if theme:
            pilot.app.theme = theme
        await appear(pilot, *texts)
        if then is not None:
            await pilot.press(then[0])
            await appear(pilot, then[1])

    return wait


@SIZES
def test_fleet_empty(snap_compare: Compare, home: Path, story: Story, size: tuple[int, int]) -> None:
    app = GlasshouseApp(home, now=story.clock)
    assert snap_compare(app, terminal_size=size, run_before=settled("Nothing has run here yet."))


@SIZES
def test_fleet_with_a_run(snap_compare: Compare, home: Path, story: Story, size: tuple[int, int]) -> None:
    story.whole(OLD)
    story.clock.tick(600)
    story.half(RUN)
    app = GlasshouseApp(home, now=story.clock)
    assert snap_compare(app, terminal_size=size, run_before=settled("75 %"))


@SIZES
def test_fleet_with_rented_allocations(snap_compare: Compare, home: Path, story: Story, size: tuple[int, int]) -> None:
    story.rented()
    app = GlasshouseApp(home, now=story.clock)
    assert snap_compare(app, terminal_size=size, run_before=settled("kept 24m", "not proven gone"))


@SIZES
def test_run_live(snap_compare: Compare, home: Path, story: Story, size: tuple[int, int]) -> None:
    story.half(RUN)
    app = GlasshouseApp(home, now=story.clock, open_run=RUN)
    plot = size[0] > 100
    assert snap_compare(app, terminal_size=size, run_before=settled("600 of 1,200 steps", plot=plot))


@SIZES
def test_run_finished(snap_compare: Compare, home: Path, story: Story, size: tuple[int, int]) -> None:
    story.whole(RUN)
    app = GlasshouseApp(home, now=story.clock, open_run=RUN)
    plot = size[0] > 100
    assert snap_compare(app, terminal_size=size, run_before=settled("16 of 16 checks hold", plot=plot))


@SIZES
def test_history(snap_compare: Compare, home: Path, story: Story, size: tuple[int, int]) -> None:
    story.whole(OLD)
    story.clock.tick(600)
    story.half(RUN)
    app = GlasshouseApp(home, now=story.clock)
    assert snap_compare(app, terminal_size=size, run_before=settled("75 %", then=("h", "1 of 19")))


def test_run_with_a_failed_check_in_the_light_theme(snap_compare: Compare, home: Path, story: Story) -> None:
    story.half(RUN)
    story.finish(RUN, failing=("same_losses", "same_tensors"))
    app = GlasshouseApp(home, now=story.clock, open_run=RUN)
    wait = settled("14 of 16 checks hold", plot=True, theme=LIGHT)
    assert snap_compare(app, terminal_size=(120, 40), run_before=wait)


def test_run_without_a_runner_in_monochrome(snap_compare: Compare, home: Path, story: Story) -> None:
    story.queue(RUN, owned=False)
    app = GlasshouseApp(home, now=story.clock, open_run=RUN)
    wait = settled("This run has no runner", theme=MONO)
    assert snap_compare(app, terminal_size=(80, 24), run_before=wait)


def test_a_published_row(snap_compare: Compare, home: Path, story: Story) -> None:
    app = GlasshouseApp(home, now=story.clock, open_run="pub-lora-05b-15m")
    assert snap_compare(app, terminal_size=(120, 40), run_before=settled("Published facts", "RTX 4090"))
