"""The top bar (current place and time) and the key bar (what the keys do here)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from textual import events
from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.style import Style
from textual.widget import Widget

from glasshouse_tui.bindings import Key, ranked
from glasshouse_tui.format import plain, zone
from glasshouse_tui.theme import tone

if TYPE_CHECKING:
    from textual.screen import Screen

_TABS: Final = (("fleet", "Fleet"), ("history", "History"))
_ALWAYS_SHOWN_RANK: Final = 90


class TopBar(Widget):
    """One line: the name, the two lists, the open run, read-only, local time with its zone."""

    DEFAULT_CSS = "TopBar { height: 1; dock: top; }"
    ALLOW_SELECT = False
    place: reactive[str] = reactive("")
    time: reactive[str] = reactive("")

    def __init__(self, tab: str, *, read_only: bool, now: Callable[[], datetime], shown: Callable[[], bool]) -> None:
        """`tab` is the current list, `now` the clock; `shown` returns whether the bar is visible."""
        super().__init__()
        self._tab = tab
        self._read_only = read_only
        self._now = now
        self._shown = shown

    def on_mount(self) -> None:
        """Start the clock."""
        self.tick()
        self.set_interval(1.0, self.tick)

    def tick(self) -> None:
        """Update the time, if the bar is visible."""
        if not self._shown():
            return
        now = self._now().astimezone()
        self.time = f"{now:%H:%M:%S} {zone(now)}"

    async def on_click(self, event: events.Click) -> None:
        """Open the list whose name was clicked."""
        if tab := event.style.meta.get("tab"):
            await self.app.run_action(f"app.go('{tab}')")

    def render(self) -> RenderResult:
        """The bar for the available width."""
        theme = self.app.theme
        parts = [Content.assemble(("◆ ", tone(theme, "accent")), ("glasshouse", tone(theme, "strong")), "   ")]
        for name, title in _TABS:
            style = tone(theme, "tab" if name == self._tab else "muted")
            parts.append(Content.assemble((title, style + Style.from_meta({"tab": name})), "  "))
        if self.place:
            parts.append(
                Content.assemble(("\u203a ", tone(theme, "muted")), (plain(self.place, 60), tone(theme, "strong")))
            )
        left = Content.assemble(*parts)
        right = Content.assemble(
            *((("read-only", tone(theme, "warn")), "   ") if self._read_only else ()), (self.time, tone(theme, "muted"))
        )
        room = self.content_size.width
        gap = room - left.cell_length - right.cell_length
        if gap < 1:
            left = left.truncate(max(0, room - right.cell_length - 1), ellipsis=True)
            gap = room - left.cell_length - right.cell_length
        return Content.assemble(left, " " * max(0, gap), right)


class KeyBar(Widget):
    """One line of the keys that work here now; those that do not fit are dropped, except help and quit."""

    DEFAULT_CSS = "KeyBar { height: 1; dock: bottom; }"
    ALLOW_SELECT = False

    def __init__(self) -> None:
        super().__init__()
        self._keys: tuple[tuple[Key, bool], ...] = ()

    @property
    def keys(self) -> tuple[tuple[Key, bool], ...]:
        """Each key of the bar and whether it works now."""
        return self._keys

    def on_mount(self) -> None:
        """Update when the focus changes what is possible."""
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_changed)
        self._bindings_changed(self.screen)

    def _bindings_changed(self, screen: Screen[Any]) -> None:
        if screen is not self.screen:
            return
        enabled: dict[str, bool] = {}
        for active in screen.active_bindings.values():
            if active.binding.id:
                enabled[active.binding.id] = active.enabled
        keys = tuple((key, enabled[key.id]) for key in ranked(iter(enabled)))
        if keys != self._keys:
            self._keys = keys
            self.refresh()

    def on_click(self, event: events.Click) -> None:
        """Simulate the key that was clicked."""
        if key := event.style.meta.get("press"):
            self.app.simulate_key(key)

    def render(self) -> RenderResult:
        """The keys for the available width."""
        room = self.content_size.width
        always = [self._drawn(key, on) for key, on in self._keys if key.rank > _ALWAYS_SHOWN_RANK]
        right = Content("  ").join(always)
        room -= right.cell_length
        left = Content("")
        for key, on in self._keys:
            if key.rank > _ALWAYS_SHOWN_RANK:
                continue
            drawn = self._drawn(key, on)
            if left.cell_length + drawn.cell_length + 3 > room:
                break
            left = Content.assemble(left, drawn, "  ")
        return Content.assemble(left, " " * max(0, room - left.cell_length), right)

    def _drawn(self, key: Key, on: bool) -> Content:
        theme = self.app.theme
        if not on:
            return Content.assemble((f"{key.shown} {key.label}", tone(theme, "off")))
        press = Style.from_meta({"press": key.keys.partition(",")[0]})
        return Content.assemble(
            (key.shown, tone(theme, "accent") + press), (f" {key.label}", tone(theme, "plain") + press)
        )
