"""The table of keys, from which bindings, key bar, help screen and command palette are built."""

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
    """One action and its keys.

    `keys` are Textual key names and `shown` is how they are displayed. `label` appears in the key bar, `help` in the
    help screen and the palette. `rank` orders the key bar; higher ranks are dropped first when it is narrow, 0 is never
    shown there. `writes` marks the actions that a read-only console refuses.
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
        """This key as a Textual binding."""
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
    Key("app.help", ANYWHERE, "question_mark,f1", "?", "help", "Help", "Show all keys", rank=91),
    Key("app.quit", ANYWHERE, "q,ctrl+q", "q", "quit", "Quit", "Quit the console; runs continue", rank=92),
    Key("app.fleet", ANYWHERE, "f,f2", "f", "go('fleet')", "Fleet", "Open Fleet: runs and allocations", rank=41),
    Key("app.history", ANYWHERE, "h,f3", "h", "go('history')", "History", "Open History: all rows", rank=42),
    Key("app.back", ANYWHERE, "escape", "esc", "back", "Back", "Go back to the previous screen"),
    Key("app.theme", ANYWHERE, "t", "t", "next_theme", "Theme", "Switch theme: dark, light, monochrome"),
    Key("app.palette", ANYWHERE, "colon,ctrl+p", ":", "command_palette", "Commands", "Find a command by name",
        palette=False),
    Key("app.next", ANYWHERE, "tab", "tab", "app.focus_next", "Next", "Focus the next pane",
        palette=False),
    Key("app.previous", ANYWHERE, "shift+tab", "shift+tab", "app.focus_previous", "Previous",
        "Focus the previous pane", palette=False),

    Key("fleet.open", FLEET, "enter", "⏎", "open", "Open", "Open the run under the cursor", rank=11),
    Key("fleet.demo", FLEET, "d", "d", "demo", "Demo", "Start the demo run on this machine", rank=12, writes=True),
    Key("fleet.resume", FLEET, "r", "r", "resume", "Resume", "Resume a run that has lost its runner", rank=14,
        writes=True),
    Key("fleet.cancel", FLEET, "x", "x", "cancel", "Cancel", "Cancel the run under the cursor", rank=13, writes=True),
    Key("fleet.keep", FLEET, "K", "K", "keep", "Keep", "Keep the allocation for a later run", rank=15,
        writes=True),
    Key("fleet.release", FLEET, "R", "R", "release", "Release", "Terminate the allocation, with proof", rank=16,
        writes=True),
    Key("fleet.list", FLEET, "l", "l", "query_providers", "List", "List the allocations at the providers", rank=17),
    Key("fleet.copy", FLEET, "c", "c", "copy('id')", "Copy id", "Copy the run's id to the clipboard"),
    Key("fleet.copy_row", FLEET, "C", "C", "copy('row')", "Copy row", "Copy the run's row to the clipboard"),

    Key("run.cancel", RUN, "x", "x", "cancel", "Cancel", "Cancel this run", rank=13, writes=True),
    Key("run.resume", RUN, "r", "r", "resume", "Resume", "Resume this run if it has no runner", rank=14,
        writes=True),
    Key("run.copy", RUN, "c", "c", "copy('id')", "Copy id", "Copy the run's id to the clipboard", rank=31),
    Key("run.copy_row", RUN, "C", "C", "copy('row')", "Copy row", "Copy the row to the clipboard", rank=32),
    Key("run.proof", RUN, "1", "1", "panel('proof')", "Proof", "Show attestation, key and overhead"),
    Key("run.loss", RUN, "2", "2", "panel('loss')", "Loss", "Show the loss curves"),
    Key("run.checks", RUN, "3", "3", "panel('checks')", "Checks", "Show the checks behind the verdict"),
    Key("run.log", RUN, "4", "4", "panel('log')", "Log", "Show the newest log lines"),
    Key("run.zoom", RUN, "z", "z", "zoom", "Zoom", "Maximize or restore the current panel", rank=16),
    Key("run.back", RUN, "escape", "esc", "app.back", "Back", "Go back to the list", rank=21, palette=False),

    Key("stages.earlier", STAGES, "left", "←", "stage(-1)", "Stage", "Select the previous stage", rank=15,
        palette=False),
    Key("stages.later", STAGES, "right", "→", "stage(1)", "Stage", "Select the next stage", palette=False),

    Key("history.open", HISTORY, "enter", "⏎", "open", "Open", "Open the row under the cursor", rank=11),
    Key("history.filter", HISTORY, "slash", "/", "filter", "Filter",
        "Filter by label, model, GPU or id", rank=12),
    Key("history.source", HISTORY, "o", "o", "next_source", "Source", "Switch between all, mine and published",
        rank=13),
    Key("history.sort", HISTORY, "s", "s", "next_sort", "Sort", "Sort by the next column", rank=14),
    Key("history.reverse", HISTORY, "S", "S", "reverse_sort", "Reverse", "Reverse the sort order", rank=15),
    Key("history.copy", HISTORY, "c", "c", "copy('id')", "Copy id", "Copy the row's id to the clipboard"),
    Key("history.copy_row", HISTORY, "C", "C", "copy('row')", "Copy row", "Copy the row to the clipboard"),

    Key("table.up", TABLES, "up,k", "↑ k", "move(-1)", "Up", "Move up one line", palette=False),
    Key("table.down", TABLES, "down,j", "↓ j", "move(1)", "Down", "Move down one line", palette=False),
    Key("table.page_up", TABLES, "pageup", "PgUp", "page(-1)", "Page up", "Move up one page", palette=False),
    Key("table.page_down", TABLES, "pagedown,space", "PgDn", "page(1)", "Page down", "Move down one page",
        palette=False),
    Key("table.first", TABLES, "home,g", "Home g", "edge(-1)", "First", "Go to the first line", palette=False),
    Key("table.last", TABLES, "end,G", "End G", "edge(1)", "Last", "Go to the last line", palette=False),
)  # fmt: skip

BY_ID: Final = {key.id: key for key in KEYS}


def bindings_for(section: str) -> list[Binding]:
    """The bindings of one section, in table order."""
    return [key.binding() for key in KEYS if key.section == section]


def writing_actions() -> frozenset[str]:
    """The names of the actions that a read-only console refuses."""
    return frozenset(key.action.partition("(")[0] for key in KEYS if key.writes)


def ranked(ids: Iterator[str]) -> list[Key]:
    """The keys with these ids that belong in the key bar, in display order."""
    return sorted((BY_ID[name] for name in ids if name in BY_ID and BY_ID[name].rank), key=lambda key: key.rank)
