"""Fleet's allocations: warnings, keys, foreign allocations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from textual.pilot import Pilot
from textual.widgets import Input

from engine.allocations.overview import Listed, Overview, Trouble, overview
from engine.store.reader import Reader
from engine.store.views import AllocationView
from glasshouse_tui.screens.dialogs import ConfirmScreen
from glasshouse_tui.screens.fleet import FleetScreen
from glasshouse_tui.screens.keeping import KeepScreen
from glasshouse_tui.screens.run import RunScreen
from glasshouse_tui.widgets.table import RowTable
from tests.functional.console.test_screens import StoryLauncher, console, drawn, footer, shows, until

if TYPE_CHECKING:
    from tests.functional.console.conftest import Story

RUN = "b81e44d0a6c1"
USED, KEPT, LEAKED = "a1b2c3d4e5f6", "c07d5e6f7a8b", "e9f8a7b6c5d4"


class ListingLauncher(StoryLauncher):
    """A machine whose provider lists a foreign pod; the first queries return the overviews in `answers`."""

    def __init__(self, story: Story) -> None:
        super().__init__(story)
        self.answers: list[Overview] = []

    def query_providers(self, home: Path) -> Overview:
        if self.answers:
            return self.answers.pop(0)
        listing = overview(home, query=False)
        foreign = Listed(
            ours=False,
            id=None,
            provider="runpod",
            name="foreign-pod",
            allocation_id="theirs1",
            gpu_model="NVIDIA L4",
            state="foreign",
            observation="alive",
            price_per_hour=0.43,
            since=self.story.clock.text(),
            age_sec=0.0,
            listed_since=self.story.clock.text(),
            spent=0.0,
            run_id=None,
            run_state=None,
            keep_until=None,
            deadline=None,
            reason="",
        )
        return msgspec.structs.replace(listing, at=self.story.clock.text(), allocations=(*listing.allocations, foreign))


def allocation(home: Path, allocation_id: str) -> AllocationView:
    with Reader(home) as reader:
        return next(one for one in reader.allocations() if one.id == allocation_id)


async def on_allocation(pilot: Pilot[Any], allocation_id: str) -> None:
    """Move the cursor to an allocation."""
    table = pilot.app.screen.query_one("#allocations", RowTable)
    await until(pilot, lambda: allocation_id in [row.key for row in table.rows])
    table.focus()
    table.move_to([row.key for row in table.rows].index(allocation_id))
    await until(pilot, lambda: table.cursor_key == allocation_id and table.has_focus)


async def test_a_leaked_allocation_is_first_and_red_with_a_hint(home: Path, story: Story) -> None:
    story.rented()
    async with console(home, story) as pilot:
        await until(pilot, shows(pilot, "✗ leaked", "◆ kept 24m", "● active", "4 open at $3.67/h", "1 kept"))
        table = pilot.app.screen.query_one("#allocations", RowTable)
        assert table.rows[0].key == LEAKED
        assert table.rows[0].cells["name"][0][1] == table.rows[0].cells["state"][0][1] == "bad"
        for part in ("is not proven gone", "$2.99 an hour", "https://console.runpod.io/pods (pode9f8)"):
            assert part in " ".join(drawn(pilot).split()), part


async def test_an_unused_allocation_gets_the_focus_and_can_be_resumed_or_released(home: Path, story: Story) -> None:
    story.queue(RUN, owned=False)
    story.rent(USED, RUN)
    launcher = StoryLauncher(story)
    async with console(home, story, launcher=launcher) as pilot:
        await until(pilot, shows(pilot, "1 allocation is open without an active run"))
        await until(pilot, lambda: pilot.app.screen.query_one("#allocations", RowTable).has_focus)
        await until(pilot, lambda: {"fleet.resume", "fleet.release"} <= footer(pilot).keys())
        assert "fleet.keep" not in footer(pilot)
        await pilot.press("r")
        await until(pilot, lambda: launcher.resumed == [RUN])
        await until(pilot, lambda: "without an active run, at" not in drawn(pilot))
        await until(pilot, lambda: "fleet.keep" in footer(pilot) and "fleet.release" not in footer(pilot))


async def test_keeping_asks_for_minutes_and_shows_their_cost(home: Path, story: Story) -> None:
    story.half(RUN)
    story.rent(USED, RUN)
    async with console(home, story) as pilot:
        await on_allocation(pilot, USED)
        await pilot.press("K")
        await until(pilot, lambda: isinstance(pilot.app.screen, KeepScreen))
        await until(pilot, shows(pilot, "30", "up to $0.21"))
        field = pilot.app.screen.query_one("#minutes", Input)
        field.value = ""
        await until(pilot, shows(pilot, "Enter a number of minutes from 1 to 10,080"))
        await pilot.press("enter")
        assert isinstance(pilot.app.screen, KeepScreen)
        await pilot.press("6", "0")
        await until(pilot, shows(pilot, "up to $0.43"))
        await pilot.press("enter")
        await until(pilot, shows(pilot, "◆ kept 1h", "kept until"))
        assert allocation(home, USED).state == "kept"


async def test_closing_the_dialog_keeps_nothing(home: Path, story: Story) -> None:
    story.half(RUN)
    story.rent(USED, RUN)
    async with console(home, story) as pilot:
        await on_allocation(pilot, USED)
        await pilot.press("K")
        await until(pilot, lambda: isinstance(pilot.app.screen, KeepScreen))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(pilot.app.screen, FleetScreen))
        assert allocation(home, USED).state == "active"


async def test_releasing_needs_a_confirmation_that_shows_the_price(home: Path, story: Story) -> None:
    story.rented()
    async with console(home, story) as pilot:
        await on_allocation(pilot, KEPT)
        await pilot.press("R")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen))
        await until(pilot, shows(pilot, "$0.25 an hour", "$0.61"))
        await pilot.press("n")
        await until(pilot, lambda: isinstance(pilot.app.screen, FleetScreen))
        assert allocation(home, KEPT).state == "kept"
        await pilot.press("R")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen))
        await pilot.press("y")
        await until(pilot, lambda: allocation(home, KEPT).state == "gone")
        await until(pilot, shows(pilot, "✓ gone", "3 open"))
        assert allocation(home, USED).state == "active"


async def test_an_allocation_in_use_cannot_be_released_but_opens_its_run(home: Path, story: Story) -> None:
    story.rented()
    async with console(home, story) as pilot:
        await on_allocation(pilot, USED)
        await until(pilot, lambda: "fleet.keep" in footer(pilot))
        assert "fleet.release" not in footer(pilot)
        await pilot.press("R")
        assert isinstance(pilot.app.screen, FleetScreen)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen))


async def test_listing_shows_foreign_allocations_muted_and_without_actions(home: Path, story: Story) -> None:
    story.rented()
    async with console(home, story, launcher=ListingLauncher(story)) as pilot:
        await until(pilot, shows(pilot, "◆ kept 24m"))
        assert "foreign-pod" not in drawn(pilot)
        await pilot.press("l")
        await until(pilot, shows(pilot, "foreign-pod", "\u2013 foreign", "1 foreign, shown but never touched"))
        await on_allocation(pilot, "foreign:runpod:theirs1")
        table = pilot.app.screen.query_one("#allocations", RowTable)
        assert {name for spans in table.rows[-1].cells.values() for _, name in spans} == {"muted"}
        await until(pilot, lambda: not {"fleet.keep", "fleet.release", "fleet.open"} & footer(pilot).keys())


async def test_an_unreachable_provider_is_reported_and_no_allocation_disappears(home: Path, story: Story) -> None:
    story.rented()
    launcher = ListingLauncher(story)
    listing = overview(home, query=False)
    unknown = [msgspec.structs.replace(one, observation="unknown") for one in listing.allocations]
    trouble = Trouble(provider="runpod", code="api_timeout", message="RunPod gave no answer in time.", hint="Wait.")
    launcher.answers = [msgspec.structs.replace(listing, allocations=tuple(unknown), troubles=(trouble,))]
    async with console(home, story, launcher=launcher) as pilot:
        await until(pilot, shows(pilot, "● active"))
        await pilot.press("l")
        await until(pilot, shows(pilot, "runpod could not be queried: RunPod gave no answer in time.", "? unknown"))
        assert "✗ leaked" in drawn(pilot)
        assert "◆ kept 24m" in drawn(pilot)


async def test_listing_works_before_the_first_run(home: Path, story: Story) -> None:
    async with console(home, story, launcher=ListingLauncher(story)) as pilot:
        await until(pilot, shows(pilot, "Nothing has run here yet."))
        await pilot.press("l")
        await until(pilot, shows(pilot, "foreign-pod"))


async def test_a_read_only_console_shows_allocations_and_changes_none(home: Path, story: Story) -> None:
    story.rented()
    async with console(home, story, read_only=True) as pilot:
        await on_allocation(pilot, KEPT)
        await until(pilot, lambda: footer(pilot).get("fleet.release") is False)
        await pilot.press("R", "K")
        assert isinstance(pilot.app.screen, FleetScreen)
        assert allocation(home, KEPT).state == "kept"


async def test_state_price_and_hint_fit_in_eighty_columns(home: Path, story: Story) -> None:
    story.rented()
    async with console(home, story, size=(80, 24)) as pilot:
        await until(pilot, shows(pilot, "✗ leaked", "$2.99/h", "$4.02", "9c07e5aa", "◆ kept 24m", "not proven gone"))
        await until(pilot, lambda: {"fleet.release", "app.help", "app.quit"} <= footer(pilot).keys())
