"""One table of keys: it makes the bindings, the footer, the help screen and the palette."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from textual.binding import Binding

ANYWHERE: Final = "Anywhere"
TABLES: Final = "Tables and lists"
FLEET: Final = "Fleet"
RUN: Final = "Run"
HISTORY: Final = "History"
STAGES: Final = "Stages"

SECTIONS: Final = (ANYWHERE, FLEET, RUN, STAGES, HISTORY, TABLES)


@dataclass(frozen=True)
class Key:
    """One thing that keys do.

    `keys` are Textual key names with the first shown; `label` stands in the footer, `help` in help and palette.
    `rank` orders the footer and says what gives way first when it is narrow (0 is never in the footer).
    `writes` marks what a read-only console refuses.
    """

    id: str
    section: str
    keys: str
    shown: str
    action: str
    label: str
    help: str
    rank: int = 0
    writes: bool = False
    palette: bool = True

    def binding(self) -> Binding:
        """The same as a Textual binding."""
        return Binding(
            self.keys,
            self.action,
            self.label,
            show=self.rank > 0,
            key_display=self.shown,
            tooltip=self.help,
            id=self.id,
        )


KEYS: Final = (
    Key("app.help", ANYWHERE, "question_mark,f1", "?", "help", "Help", "Show every key", rank=91),
    Key("app.quit", ANYWHERE, "q,ctrl+q", "q", "quit", "Quit", "Leave; runs go on without the console", rank=92),
    Key("app.fleet", ANYWHERE, "f,f2", "f", "go('fleet')", "Fleet", "Open Fleet: allocations and runs", rank=41),
    Key("app.history", ANYWHERE, "h,f3", "h", "go('history')", "History", "Open History: every row", rank=42),
    Key("app.back", ANYWHERE, "escape", "esc", "back", "Back", "Go back to the screen before"),
    Key("app.theme", ANYWHERE, "t", "t", "next_theme", "Theme", "Switch between dark, light and monochrome"),
    Key("app.palette", ANYWHERE, "colon,ctrl+p", ":", "command_palette", "Commands", "Find a command by its name",
        palette=False),
    Key("app.next", ANYWHERE, "tab", "tab", "app.focus_next", "Next", "Move to the next part of the screen",
        palette=False),
    Key("app.previous", ANYWHERE, "shift+tab", "shift+tab", "app.focus_previous", "Previous",
        "Move to the part before", palette=False),

    Key("fleet.open", FLEET, "enter", "⏎", "open", "Open", "Open the run under the cursor", rank=11),
    Key("fleet.demo", FLEET, "d", "d", "demo", "Demo", "Start the demo run on this machine", rank=12, writes=True),
    Key("fleet.resume", FLEET, "r", "r", "resume", "Resume", "Resume a run that nobody is running", rank=14,
        writes=True),
    Key("fleet.cancel", FLEET, "x", "x", "cancel", "Cancel", "Cancel the run under the cursor", rank=13, writes=True),
    Key("fleet.keep", FLEET, "K", "K", "keep", "Keep", "Keep the allocation for the next run, for a time", rank=15,
        writes=True),
    Key("fleet.release", FLEET, "R", "R", "release", "Release", "End the allocation and prove that it is gone", rank=16,
        writes=True),
    Key("fleet.look", FLEET, "l", "l", "look", "Look", "Ask the providers what is there, ours and foreign", rank=17),
    Key("fleet.copy", FLEET, "c", "c", "copy('id')", "Copy id", "Copy the run's id to the clipboard"),
    Key("fleet.copy_row", FLEET, "C", "C", "copy('row')", "Copy row", "Copy the run's row as JSON"),

    Key("run.cancel", RUN, "x", "x", "cancel", "Cancel", "Cancel this run", rank=13, writes=True),
    Key("run.resume", RUN, "r", "r", "resume", "Resume", "Resume this run when nobody is running it", rank=14,
        writes=True),
    Key("run.copy", RUN, "c", "c", "copy('id')", "Copy id", "Copy the run's id to the clipboard", rank=31),
    Key("run.copy_row", RUN, "C", "C", "copy('row')", "Copy row", "Copy the row as JSON", rank=32),
    Key("run.proof", RUN, "1", "1", "panel('proof')", "Proof", "Show attestation, key, runtime, cleanup, overhead"),
    Key("run.loss", RUN, "2", "2", "panel('loss')", "Loss", "Show the loss curves"),
    Key("run.checks", RUN, "3", "3", "panel('checks')", "Checks", "Show the checks of the verdict"),
    Key("run.log", RUN, "4", "4", "panel('log')", "Log", "Show the newest log lines"),
    Key("run.zoom", RUN, "z", "z", "zoom", "Zoom", "Give the panel in front the whole screen, or not", rank=16),
    Key("run.back", RUN, "escape", "esc", "app.back", "Back", "Go back to the list", rank=21, palette=False),

    Key("stages.earlier", STAGES, "left", "←", "stage(-1)", "Stage", "Look at the stage before", rank=15,
        palette=False),
    Key("stages.later", STAGES, "right", "→", "stage(1)", "Stage", "Look at the next stage", palette=False),

    Key("history.open", HISTORY, "enter", "⏎", "open", "Open", "Open the row under the cursor", rank=11),
    Key("history.filter", HISTORY, "slash", "/", "filter", "Filter",
        "Filter by label, model, GPU, provider or id", rank=12),
    Key("history.source", HISTORY, "o", "o", "next_source", "Source", "Show all rows, mine, or the published ones",
        rank=13),
    Key("history.sort", HISTORY, "s", "s", "next_sort", "Sort", "Sort by the next column", rank=14),
    Key("history.reverse", HISTORY, "S", "S", "reverse_sort", "Reverse", "Turn the order around", rank=15),
    Key("history.copy", HISTORY, "c", "c", "copy('id')", "Copy id", "Copy the row's id to the clipboard"),
    Key("history.copy_row", HISTORY, "C", "C", "copy('row')", "Copy row", "Copy the row as JSON"),

    Key("table.up", TABLES, "up,k", "↑ k", "move(-1)", "Up", "One line up", palette=False),
    Key("table.down", TABLES, "down,j", "↓ j", "move(1)", "Down", "One line down", palette=False),
    Key("table.page_up", TABLES, "pageup", "PgUp", "page(-1)", "Page up", "One page up", palette=False),
    Key("table.page_down", TABLES, "pagedown,space", "PgDn", "page(1)", "Page down", "One page down", palette=False),
    Key("table.first", TABLES, "home,g", "Home g", "edge(-1)", "First", "To the first line", palette=False),
    Key("table.last", TABLES, "end,G", "End G", "edge(1)", "Last", "To the last line", palette=False),
)  # fmt: skip

BY_ID: Final = {key.id: key for key in KEYS}


def bindings_for(section: str) -> list[Binding]:
    """The bindings of one section, in the order of the table."""
    return [key.binding() for key in KEYS if key.section == section]


def writing_actions() -> frozenset[str]:
    """The names of the actions that a read-only console refuses."""
    return frozenset(key.action.partition("(")[0] for key in KEYS if key.writes)


def ranked(ids: Iterator[str]) -> list[Key]:
    """The keys with these ids that belong into the footer, in its order."""
    return sorted((BY_ID[name] for name in ids if name in BY_ID and BY_ID[name].rank), key=lambda key: key.rank)
