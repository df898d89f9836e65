"""The real app with a real home: what the screens show and what the keys do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from textual import events
from textual.command import CommandPalette
from textual.message import Message
from textual.pilot import Pilot

from engine.allocations.overview import Overview, overview
from engine.errors import MissingExtraError
from engine.store.failure import Failure
from engine.store.reader import Reader
from glasshouse_tui.app import GlasshouseApp
from glasshouse_tui.messages import FleetRead, RunRead, RunStarted, SettingsRead, StoreAvailable
from glasshouse_tui.screens.dialogs import ConfirmScreen, HelpScreen, TroubleScreen
from glasshouse_tui.screens.fleet import FleetScreen
from glasshouse_tui.screens.history import HistoryScreen
from glasshouse_tui.screens.run import RunScreen
from glasshouse_tui.theme import LIGHT, MONO
from glasshouse_tui.widgets.bars import KeyBar
from glasshouse_tui.widgets.paint import Lines
from glasshouse_tui.widgets.stages import StageRow
from glasshouse_tui.widgets.table import RowTable

if TYPE_CHECKING:
    from tests.functional.console.conftest import Story

RUN = "b81e44d0a6c1"
OLD = "3f9a1c0d77b2"


class StoryLauncher:
    """Starts runs by writing them into the home, as a runner's process would."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.resumed: list[str] = []

    def start_demo(self, home: Path) -> str:
        assert home == self.story.home
        return self.story.half(RUN)

    def resume(self, home: Path, run_id: str) -> None:
        self.story.writer.claim_runner(run_id)
        self.resumed.append(run_id)

    def keep(self, home: Path, allocation_id: str, minutes: int) -> str:
        return self.story.keep(allocation_id, minutes)

    def release(self, home: Path, allocation_id: str) -> None:
        self.story.writer.allocation_state(allocation_id, "releasing")
        self.story.writer.allocation_state(allocation_id, "gone", "absent in 2 successful listings")

    def query_providers(self, home: Path) -> Overview:
        return overview(home, query=False)


class RefusingLauncher(StoryLauncher):
    """A machine without the local extra."""

    def start_demo(self, home: Path) -> str:
        raise MissingExtraError("The extra 'local' is not installed.", "Install glasshouse[local].")


@asynccontextmanager
async def console(
    home: Path,
    story: Story | None = None,
    *,
    size: tuple[int, int] = (120, 40),
    hook: Callable[[Message], None] | None = None,
    **options: Any,
) -> AsyncIterator[Pilot[Any]]:
    if story is not None:
        options.setdefault("now", story.clock)
        options.setdefault("launcher", StoryLauncher(story))
    app = GlasshouseApp(home, **options)
    async with app.run_test(size=size, message_hook=hook, notifications=True) as pilot:
        yield pilot


async def until(pilot: Pilot[Any], condition: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"the condition was not met within {seconds} s:\n{drawn(pilot)}")
        await pilot.pause(0.02)


def drawn(pilot: Pilot[Any]) -> str:
    """The screen as text."""
    strips = pilot.app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


def shows(pilot: Pilot[Any], *texts: str) -> Callable[[], bool]:
    return lambda: all(text in drawn(pilot) for text in texts)


def footer(pilot: Pilot[Any]) -> dict[str, bool]:
    return {key.id: on for key, on in pilot.app.screen.query_one(KeyBar).keys}


# Fleet


async def test_an_empty_home_shows_how_to_begin(home: Path, story: Story) -> None:
    async with console(home, story) as pilot:
        await until(pilot, shows(pilot, "Nothing has run here yet.", "to run the demo"))
        assert footer(pilot)["fleet.demo"]
        assert "fleet.open" not in footer(pilot)


async def test_the_demo_key_starts_a_run_and_shows_it(home: Path, story: Story) -> None:
    posted: list[str] = []
    async with console(home, story, hook=lambda m: posted.append(type(m).__name__)) as pilot:
        await until(pilot, shows(pilot, "Nothing has run here yet."))
        await pilot.press("d")
        await until(pilot, shows(pilot, "raw", "protected", "600 of 1,200 steps", "provisional"))
        assert isinstance(pilot.app.screen, RunScreen)
    assert {SettingsRead.__name__, StoreAvailable.__name__} <= set(posted)
    first = [posted.index(kind.__name__) for kind in (FleetRead, RunStarted, RunRead)]
    assert first == sorted(first)


async def test_a_refused_start_is_reported_with_its_hint_and_code(home: Path, story: Story) -> None:
    async with console(home, story, launcher=RefusingLauncher(story)) as pilot:
        await until(pilot, shows(pilot, "Nothing has run here yet."))
        await pilot.press("d")
        await until(pilot, shows(pilot, "extra_missing", "Install"))
        assert isinstance(pilot.app.screen, FleetScreen)


async def test_fleet_shows_runs_and_allocations(home: Path, story: Story) -> None:
    story.whole(OLD)
    story.half(RUN)
    async with console(home, story) as pilot:
        await until(
            pilot, shows(pilot, "1 unfinished, 1 ended", "▸ training", "75 %", "✓ clean", "✓ verified", "8 s left")
        )
        assert "1 open" in drawn(pilot)
        assert "local-b81e" in drawn(pilot)
        table = pilot.app.screen.query_one("#runs", RowTable)
        assert table.cursor_key == RUN


async def test_fleet_follows_a_run_while_another_process_writes(home: Path, story: Story) -> None:
    story.half(RUN)
    async with console(home, story) as pilot:
        await until(pilot, shows(pilot, "75 %"))
        await asyncio.to_thread(story.train, RUN, "protected", 300)
        await until(pilot, shows(pilot, "87 %"))
        await asyncio.to_thread(story.finish, RUN)
        await until(pilot, shows(pilot, "✓ finished", "✓ clean"))


async def test_arrows_and_letters_move_the_cursor(home: Path, story: Story) -> None:
    story.whole(OLD)
    story.half(RUN)
    async with console(home, story) as pilot:
        await until(pilot, shows(pilot, "75 %"))
        table = pilot.app.screen.query_one("#runs", RowTable)
        for key, place in (("j", 1), ("k", 0), ("down", 1), ("up", 0), ("G", 1), ("g", 0)):
            await pilot.press(key)
            assert table.cursor == place, key
        await pilot.click("#runs", offset=(10, 2))
        assert table.cursor == 1


# Run


async def test_a_run_shows_both_segments_and_their_proof(home: Path, story: Story) -> None:
    story.half(RUN)
    async with console(home, story, open_run="b81e") as pilot:
        await until(pilot, shows(pilot, "1,200 of 1,200 steps", "600 of 1,200 steps", "about 7.7 s left"))
        await until(pilot, shows(pilot, "⠒⠒ raw   x protected", "1,200"))
        for text in ("✓ verified", "EAR ! warning", "● released", "▸ running", "provisional", "… pending"):
            assert text in drawn(pilot), text
        assert "release.granted" in drawn(pilot)


async def test_a_finished_run_shows_its_row(home: Path, story: Story) -> None:
    story.whole(RUN)
    async with console(home, story, open_run="last") as pilot:
        await until(pilot, shows(pilot, "✓ finished", "✓ clean", "16 of 16 checks hold", "✓ zeroized", "✓ destroyed"))
        assert "single pair: not resolved" in drawn(pilot)
        assert "faster" not in drawn(pilot)
        await until(pilot, lambda: "run.copy_row" in footer(pilot))
        assert "run.cancel" not in footer(pilot)


async def test_a_failed_check_shows_its_full_reason(home: Path, story: Story) -> None:
    story.half(RUN)
    story.finish(RUN, failing=("same_losses",))
    async with console(home, story, open_run=RUN, size=(80, 24)) as pilot:
        await until(pilot, shows(pilot, "✗ not clean", "15 of 16"))
        await pilot.press("3", "G")
        await until(
            pilot, shows(pilot, "✗ same losses", "failed", "the losses differ from measured step 17 of 1,200 on")
        )


FAILURE = Failure(
    code="gpu_out_of_memory", message="The GPU ran out of memory.", hint="Use a smaller --batch.", cause=("OSError: x",)
)


def failed(story: Story) -> None:
    story.queue(OLD)
    story.writer.transition(OLD, "run", "failed", FAILURE)
    story.writer.warn(OLD, "The supervisor could not be asked to stop.")
    story.writer.release_runner(OLD)


async def test_a_failed_run_says_what_to_do_where_it_is_opened_and_where_it_is_listed(home: Path, story: Story) -> None:
    failed(story)
    async with console(home, story, open_run=OLD) as pilot:
        await until(pilot, shows(pilot, "The GPU ran out of memory.", "Use a smaller --batch.", "OSError: x"))
        await pilot.press("4", "z")
        await until(pilot, shows(pilot, "The supervisor could not be asked to stop."))
    async with console(home, story) as pilot:
        await pilot.press("h")
        await until(pilot, lambda: isinstance(pilot.app.screen, HistoryScreen))
        await until(pilot, shows(pilot, "✗ failed"))
        await pilot.press("down", "down")
        await until(pilot, shows(pilot, "gpu_out_of_memory", "Use a smaller --batch."))


async def test_fleet_says_what_to_do_about_an_allocation_that_could_not_be_ended(home: Path, story: Story) -> None:
    story.rented()
    failure = Failure(code="api_key_rejected", message="RunPod does not accept the key.", hint="Create a new one.")
    story.writer.allocation_state("e9f8a7b6c5d4", "leaked", failure)
    async with console(home, story) as pilot:
        await until(pilot, shows(pilot, "RunPod does not accept the key.", "Create a new one."))


async def test_a_selected_stage_shows_its_reason(home: Path, story: Story) -> None:
    story.half(RUN)
    async with console(home, story, open_run=RUN) as pilot:
        await until(pilot, shows(pilot, "600 of 1,200 steps"))
        row = pilot.app.screen.query_one("#protected-stages", StageRow)
        row.focus()
        await pilot.press("left", "left", "left")
        await until(pilot, shows(pilot, "releasing  1.2 s  receipt signed first"))
        await pilot.press("right")
        assert row.selected is not None
        assert row.selected.name == "loading"


async def test_a_small_terminal_shows_one_panel_at_a_time(home: Path, story: Story) -> None:
    story.half(RUN)
    async with console(home, story, open_run=RUN, size=(80, 24)) as pilot:
        await until(pilot, shows(pilot, "1 Proof", "✓ verified"))
        assert "Lifecycle" not in drawn(pilot)
        await pilot.press("3")
        await until(pilot, shows(pilot, "Lifecycle", "attestation verified"))
        await pilot.press("2")
        await until(pilot, shows(pilot, "x protected", "┤"))
        await pilot.press("4")
        await until(pilot, shows(pilot, "segment.state"))
        await pilot.resize_terminal(120, 40)
        await until(pilot, shows(pilot, "Lifecycle", "x protected", "segment.state", "Attestation"))


async def test_a_panel_is_maximized_and_restored(home: Path, story: Story) -> None:
    story.half(RUN)
    async with console(home, story, open_run=RUN) as pilot:
        await until(pilot, shows(pilot, "600 of 1,200 steps", "Lifecycle"))
        await pilot.press("3", "z")
        await until(pilot, lambda: "600 of 1,200" not in drawn(pilot) and "Model artifact" in drawn(pilot))
        await pilot.press("z")
        await until(pilot, shows(pilot, "600 of 1,200 steps"))


async def test_a_run_without_a_runner_is_reported_and_resumed(home: Path, story: Story) -> None:
    story.queue(RUN, owned=False)
    launcher = StoryLauncher(story)
    async with console(home, story, open_run=RUN, launcher=launcher) as pilot:
        await until(pilot, shows(pilot, "This run has no runner", "to resume it"))
        await pilot.press("r")
        await until(pilot, lambda: launcher.resumed == [RUN])
        await until(pilot, lambda: "has no runner" not in drawn(pilot))
        await until(pilot, lambda: "run.resume" not in footer(pilot))


async def test_cancelling_needs_a_confirmation(home: Path, story: Story) -> None:
    story.half(RUN)
    async with console(home, story, open_run=RUN) as pilot:
        await until(pilot, shows(pilot, "600 of 1,200 steps"))
        await pilot.press("x")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen))
        await pilot.press("n")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen))
        assert story.writer.pending_requests(RUN) == []
        await pilot.press("x")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen))
        await pilot.press("y")
        await until(pilot, lambda: [request.kind for request in story.writer.pending_requests(RUN)] == ["cancel"])


async def test_a_published_row_shows_its_facts_and_unknown_for_the_rest(home: Path, story: Story) -> None:
    async with console(home, story, open_run="pub-lora-05b-15m") as pilot:
        await until(pilot, shows(pilot, "9,143 steps", "9,065 steps", "+0.86 %", "clean model artifact"))
        for text in ("Key          ? unknown", "Cleanup      ? unknown", "The stages were not published.", "RTX 4090"):
            assert text in drawn(pilot), text
        assert "No checks were published." in drawn(pilot)


async def test_a_late_resume_of_a_list_does_not_redirect_the_poller(home: Path, story: Story) -> None:
    story.half(RUN)
    async with console(home, story, open_run=RUN) as pilot:
        await until(pilot, shows(pilot, "600 of 1,200 steps"))
        pilot.app.get_screen("fleet").post_message(events.ScreenResume())
        await pilot.pause(0.5)
        await asyncio.to_thread(story.train, RUN, "protected", 150)
        await until(pilot, shows(pilot, "750 of 1,200 steps"))


async def test_an_unknown_run_is_reported_and_closed(home: Path, story: Story) -> None:
    async with console(home, story, open_run="feedface") as pilot:
        await until(pilot, shows(pilot, "run_unknown", "glasshouse runs"))
        assert isinstance(pilot.app.screen, FleetScreen)


# History


async def test_history_filters_while_typing(home: Path, story: Story) -> None:
    story.whole(OLD)
    async with console(home, story) as pilot:
        await pilot.press("h")
        await until(pilot, shows(pilot, "1 of 18", "tiny-qwen2", "Qwen2.5-7B-Instruct"))
        await until(pilot, lambda: "history.open" in footer(pilot))
        await pilot.press("slash", *"a4000 7b")
        await until(pilot, shows(pilot, "1 of 3", "7B smoke"))
        assert "tiny-qwen2" not in drawn(pilot)
        await pilot.press("enter")
        assert isinstance(pilot.app.focused, RowTable)
        await pilot.press("slash", *"zzz")
        await until(pilot, shows(pilot, "no matching rows"))
        await until(pilot, lambda: "history.open" not in footer(pilot))


async def test_history_sorts_by_column_and_reverses(home: Path, story: Story) -> None:
    async with console(home, story) as pilot:
        await pilot.press("h")
        await until(pilot, shows(pilot, "newest first", "1 of 17"))
        await pilot.press("s", "s", "s")
        await until(pilot, shows(pilot, "highest overhead first", "OVERHEAD↓"))
        table = pilot.app.screen.query_one("#rows", RowTable)
        await until(pilot, lambda: "+18.05 %" in table.rows[0].cells["overhead_pct"][0][0])
        await pilot.press("S")
        await until(pilot, lambda: "29.67 %" in table.rows[0].cells["overhead_pct"][0][0])


async def test_history_switches_the_source_of_its_rows(home: Path, story: Story) -> None:
    story.whole(OLD)
    async with console(home, story) as pilot:
        await pilot.press("h")
        await until(pilot, shows(pilot, "1 of 18", "all rows"))
        await pilot.press("o")
        await until(pilot, shows(pilot, "1 of 1", "mine, newest"))
        await pilot.press("o")
        await until(pilot, shows(pilot, "1 of 17", "published, newest"))


async def test_a_long_history_is_paged_to_both_ends(home: Path, story: Story) -> None:
    for number in range(350):
        story.clock.tick(60)
        story.queue(f"{number:012x}", label=f"run {number:03d}", owned=False)
    async with console(home, story) as pilot:
        await pilot.press("h")
        await until(pilot, shows(pilot, "1 of 367"))
        table = pilot.app.screen.query_one("#rows", RowTable)
        await pilot.press("end")
        await until(pilot, shows(pilot, "367 of 367", "MLP 15m"))
        for _ in range(12):
            await pilot.press("pageup")
        await until(pilot, lambda: len(table.rows) > 100)
        assert len(table.rows) <= 300
        await pilot.press("home")
        await until(pilot, shows(pilot, "1 of 367", "run 349"))


async def test_a_row_opens_and_escape_returns_to_it(home: Path, story: Story) -> None:
    async with console(home, story) as pilot:
        await pilot.press("h")
        await until(pilot, shows(pilot, "1 of 17"))
        await pilot.press("j", "enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen))
        await until(pilot, shows(pilot, "Published facts"))
        await pilot.press("escape")
        await until(pilot, shows(pilot, "2 of 17"))


async def test_a_run_started_by_another_process_appears_in_history(home: Path, story: Story) -> None:
    async with console(home, story) as pilot:
        await pilot.press("h")
        await until(pilot, shows(pilot, "1 of 17"))
        await asyncio.to_thread(story.half, RUN, label="elsewhere")
        await until(pilot, shows(pilot, "of 18", "elsewhere"))


# Everywhere


async def test_read_only_is_shown_and_refuses_changes(home: Path, story: Story) -> None:
    story.half(RUN)
    async with console(home, story, read_only=True) as pilot:
        await until(pilot, shows(pilot, "read-only", "75 %"))
        assert footer(pilot)["fleet.demo"] is False
        assert footer(pilot)["fleet.cancel"] is False
        await pilot.press("d", "x")
        assert isinstance(pilot.app.screen, FleetScreen)
        assert story.writer.pending_requests(RUN) == []


async def test_read_only_does_not_create_a_missing_home(tmp_path: Path) -> None:
    home = tmp_path / "absent"
    async with console(home, read_only=True) as pilot:
        await until(pilot, shows(pilot, "Nothing has run here yet, and this console is read-only."))
        await pilot.press("h")
        await until(pilot, shows(pilot, "1 of 17"))
    assert not home.exists()


@pytest.fixture
def corrupt(home: Path) -> Path:
    home.mkdir()
    database = home / "glasshouse.db"
    database.write_bytes(b"this is no database" * 500)
    return database


async def test_a_corrupt_database_shows_an_error_screen_until_it_is_repaired(home: Path, corrupt: Path) -> None:
    async with console(home) as pilot:
        await until(pilot, lambda: isinstance(pilot.app.screen, TroubleScreen))
        await until(pilot, shows(pilot, "store_corrupt", "Move it aside"))
        assert "Traceback" not in drawn(pilot)
        await asyncio.to_thread(corrupt.unlink)
        await pilot.press("r")
        await until(pilot, shows(pilot, "Nothing has run here yet."))


async def test_a_home_that_cannot_be_created_shows_an_error_screen(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    async with console(tmp_path / "file" / "home") as pilot:
        await until(pilot, shows(pilot, "store_unwritable", "--home"))
        await pilot.press("q")


async def test_id_and_row_are_copied_to_the_clipboard(home: Path, story: Story) -> None:
    story.whole(RUN)
    async with console(home, story, open_run=RUN) as pilot:
        await until(pilot, shows(pilot, "✓ clean"))
        await pilot.press("c")
        await until(pilot, lambda: pilot.app.clipboard == RUN)
        await pilot.press("C")
        await until(pilot, lambda: pilot.app.clipboard.startswith("{"))
        row = json.loads(pilot.app.clipboard)
        assert (row["id"], row["clean"], row["protectedSteps"]) == (RUN, True, 1200)


async def test_help_lists_every_key_and_closes(home: Path, story: Story) -> None:
    from glasshouse_tui.bindings import KEYS

    async with console(home, story) as pilot:
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(pilot.app.screen, HelpScreen))
        text = "\n".join(lines.plain_text for lines in pilot.app.screen.query(Lines))
        assert all(key.help in text and key.shown in text for key in KEYS)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(pilot.app.screen, FleetScreen))


async def test_the_palette_offers_and_runs_the_commands_of_the_screen(home: Path, story: Story) -> None:
    async with console(home, story) as pilot:
        await until(pilot, shows(pilot, "Nothing has run here yet."))
        commands = {command.title for command in pilot.app.get_system_commands(pilot.app.screen)}
        assert {"Demo", "History", "Theme", "Help", "Quit"} <= commands
        assert not {"Cancel", "Zoom", "Open"} & commands
        await pilot.press("colon")
        await until(pilot, lambda: isinstance(pilot.app.screen, CommandPalette) and pilot.app.focused is not None)
        await pilot.press(*"history", "enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, HistoryScreen))


async def test_screen_filter_sort_and_theme_are_restored_at_the_next_start(home: Path, story: Story) -> None:
    async with console(home, story) as pilot:
        await until(pilot, shows(pilot, "Nothing has run here yet."))
        await pilot.press("t", "h")
        await until(pilot, shows(pilot, "1 of 17"))
        await pilot.press("slash", *"mlp", "enter", "s")
        await until(pilot, shows(pilot, "1 of 9", "label A to Z"))
        await pilot.press("j", "enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen))
        run_id = pilot.app.screen.run_id  # type: ignore[attr-defined]
        await pilot.press("4", "q")
    with Reader(home) as reader:
        assert reader.setting("console")
    async with console(home, story) as pilot:
        await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen))
        await until(pilot, shows(pilot, "MLP", "Published facts"))
        assert pilot.app.screen.run_id == run_id  # type: ignore[attr-defined]
        assert pilot.app.theme == LIGHT
        await pilot.press("escape")
        await until(pilot, shows(pilot, "2 of 9", "label A to Z", "mlp"))


async def test_no_color_selects_the_monochrome_theme(home: Path, monkeypatch: pytest.MonkeyPatch, story: Story) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with console(home, story) as pilot:
        assert pilot.app.theme == MONO
        await until(pilot, shows(pilot, "Nothing has run here yet."))


async def test_quitting_reports_which_runs_continue(home: Path, story: Story) -> None:
    story.half(RUN)
    async with console(home, story) as pilot:
        await until(pilot, shows(pilot, "75 %"))
        await pilot.press("q")
        await until(pilot, lambda: pilot.app.return_code is not None)
    assert pilot.app.farewell == [  # type: ignore[attr-defined]
        "1 run continues without the console: `glasshouse` opens it again, "
        f"`glasshouse watch {RUN}` follows the run in this terminal."
    ]


async def test_the_local_time_shows_its_zone(home: Path, story: Story) -> None:
    async with console(home, story) as pilot:
        await until(pilot, shows(pilot, "14:03:20 UTC"))
