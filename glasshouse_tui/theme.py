"""Three themes (dark, light, monochrome) and the tones of text, one table per theme."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from textual.style import Style
from textual.theme import Theme

DARK: Final = "glasshouse-dark"
LIGHT: Final = "glasshouse-light"
MONO: Final = "glasshouse-mono"
THEME_ORDER: Final = (DARK, LIGHT, MONO)

TONES: Final[dict[str, dict[str, str]]] = {
    DARK: {
        "plain": "#cdd6dd",
        "strong": "bold #eef3f6",
        "muted": "#7f8f9b",
        "faint": "#3b4853",
        "off": "strike #5d6c77",
        "key": "bold #10161b on #63c5da",
        "good": "#7fc98a",
        "bad": "bold #ef7b81",
        "warn": "#e3b566",
        "busy": "#63c5da",
        "accent": "bold #63c5da",
        "tab": "bold #63c5da",
        "raw": "#9db1f2",
        "protected": "#63c5da",
    },
    LIGHT: {
        "plain": "#26323b",
        "strong": "bold #0d151b",
        "muted": "#5c6b76",
        "faint": "#c3ccd2",
        "off": "strike #84929c",
        "key": "bold #fafbfb on #0a6f86",
        "good": "#22713a",
        "bad": "bold #b3261e",
        "warn": "#875a00",
        "busy": "#0a6f86",
        "accent": "bold #0a6f86",
        "tab": "bold #0a6f86",
        "raw": "#3f57c0",
        "protected": "#0a6f86",
    },
    MONO: {
        "plain": "",
        "strong": "bold",
        "muted": "",
        "faint": "dim",
        "off": "dim strike",
        "key": "bold reverse",
        "good": "",
        "bad": "bold reverse",
        "warn": "bold",
        "busy": "bold",
        "accent": "bold",
        "tab": "bold underline",
        "raw": "",
        "protected": "bold",
    },
}

_DARK = Theme(
    name=DARK,
    primary="#63c5da",
    secondary="#9db1f2",
    accent="#63c5da",
    foreground="#cdd6dd",
    background="#10161b",
    surface="#141c22",
    panel="#1a242c",
    success="#7fc98a",
    warning="#e3b566",
    error="#ef7b81",
    dark=True,
    variables={
        "line": "#2b3740",
        "line-focus": "#63c5da",
        "cursor-row": "#22323c",
        "cursor-row-blurred": "#182229",
        "bar": "#141c22",
        "muted": "#7f8f9b",
        "footer-key-foreground": "#63c5da",
        "input-selection-background": "#63c5da 30%",
        "block-cursor-background": "#22323c",
        "block-cursor-foreground": "#eef3f6",
        "border": "#63c5da",
        "border-blurred": "#2b3740",
    },
)

_LIGHT = Theme(
    name=LIGHT,
    primary="#0a6f86",
    secondary="#3f57c0",
    accent="#0a6f86",
    foreground="#26323b",
    background="#fafbfb",
    surface="#f1f4f5",
    panel="#e6ebed",
    success="#22713a",
    warning="#875a00",
    error="#b3261e",
    dark=False,
    variables={
        "line": "#d2dadf",
        "line-focus": "#0a6f86",
        "cursor-row": "#d9e8ec",
        "cursor-row-blurred": "#eef2f3",
        "bar": "#eef2f3",
        "muted": "#5c6b76",
        "footer-key-foreground": "#0a6f86",
        "input-selection-background": "#0a6f86 25%",
        "block-cursor-background": "#d9e8ec",
        "block-cursor-foreground": "#0d151b",
        "border": "#0a6f86",
        "border-blurred": "#d2dadf",
    },
)

_MONO = Theme(
    name=MONO,
    ansi=True,
    primary="ansi_default",
    secondary="ansi_default",
    accent="ansi_default",
    foreground="ansi_default",
    background="ansi_default",
    surface="ansi_default",
    panel="ansi_default",
    boost="ansi_default",
    success="ansi_default",
    warning="ansi_default",
    error="ansi_default",
    dark=True,
    variables={
        "line": "ansi_default",
        "line-focus": "ansi_default",
        "cursor-row": "ansi_default",
        "cursor-row-blurred": "ansi_default",
        "bar": "ansi_default",
        "muted": "ansi_default",
        "footer-key-foreground": "ansi_default",
        "ansi-background": "ansi_default",
        "ansi-foreground": "ansi_default",
        "border": "ansi_default",
        "border-blurred": "ansi_default",
        "block-cursor-background": "ansi_default",
        "block-cursor-foreground": "ansi_default",
        "block-cursor-text-style": "reverse",
        "input-cursor-background": "ansi_default",
        "input-cursor-foreground": "ansi_default",
        "input-cursor-text-style": "reverse",
        "input-selection-background": "ansi_default",
        "input-selection-foreground": "ansi_default",
        "screen-selection-background": "ansi_default",
        "screen-selection-foreground": "ansi_default",
    },
)

THEMES: Final = (_DARK, _LIGHT, _MONO)


def next_theme(name: str) -> str:
    """The theme after `name`; the first one follows the last."""
    index = THEME_ORDER.index(name) if name in THEME_ORDER else -1
    return THEME_ORDER[(index + 1) % len(THEME_ORDER)]


@lru_cache(maxsize=256)
def tone(theme: str, name: str) -> Style:
    """The style of a tone in a theme; an unknown theme falls back to the dark one."""
    definition = TONES.get(theme, TONES[DARK])[name]
    return Style.parse(definition, variables={}) if definition else Style()


def is_colourless(theme: str) -> bool:
    """True for the theme that uses only weight and shape."""
    return theme == MONO
