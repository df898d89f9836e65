"""The console's tables: states, keys, themes, provisional checks; and what it imports at start."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from engine.records.checks import ARTIFACT, LIFECYCLE
from engine.records.rules import NAMES
from engine.store import views
from glasshouse_tui import bindings, state_styles, theme

STORED = {
    "run": views.RunState,
    "segment": views.SegmentState,
    "attestation": views.AttestationState,
    "key": views.KeyState,
    "runtime": views.RuntimeState,
    "cleanup": views.CleanupState,
    "check": views.CheckStatus,
}


@pytest.mark.parametrize("subject", STORED)
def test_every_stored_state_has_a_shape_and_a_unique_word(subject: str) -> None:
    styles = state_styles.STATE_STYLES[subject]
    assert set(styles) == set(get_args(STORED[subject]))
    assert all(len(style.shape) == 1 and style.word for style in styles.values())
    assert len({style.word for style in styles.values()}) == len(styles)


def test_an_unknown_state_looks_unknown_and_never_good() -> None:
    assert (
        state_styles.state_style("attestation", None)
        == state_styles.state_style("attestation", "brand_new")
        == state_styles.UNKNOWN
    )
    assert state_styles.UNKNOWN.tone != "good"
    assert state_styles.verdict_style(None).tone != "good"


def test_good_and_bad_differ_by_shape_as_well_as_colour() -> None:
    for styles in state_styles.STATE_STYLES.values():
        good = {style.shape for style in styles.values() if style.tone == "good"}
        bad = {style.shape for style in styles.values() if style.tone == "bad"}
        assert not good & bad


def test_no_key_is_used_by_terminals_or_tmux() -> None:
    reserved = {f"ctrl+{letter}" for letter in "basjmhi"}
    assert not reserved & {name for key in bindings.KEYS for name in key.keys.split(",")}


def test_a_key_has_one_meaning_on_a_screen() -> None:
    for section in bindings.SECTIONS:
        names = [n for key in bindings.KEYS if key.section in (section, bindings.TABLES) for n in key.keys.split(",")]
        assert len(names) == len(set(names)), section
    assert len(bindings.BY_ID) == len(bindings.KEYS)


def test_every_key_has_a_section_and_a_help_text_that_fits_its_column() -> None:
    assert all(key.shown and key.section in bindings.SECTIONS for key in bindings.KEYS)
    assert all(0 < len(key.help) < 40 for key in bindings.KEYS)


def test_arrows_and_letters_both_move() -> None:
    assert {"up", "k"} <= set(bindings.BY_ID["table.up"].keys.split(","))
    assert {"down", "j"} <= set(bindings.BY_ID["table.down"].keys.split(","))


def test_read_only_refuses_exactly_the_actions_that_change_something() -> None:
    assert bindings.writing_actions() == {"demo", "resume", "cancel", "keep", "release"}


def test_every_theme_has_every_tone() -> None:
    names = {name: set(tones) for name, tones in theme.TONES.items()}
    assert set(names) == set(theme.THEME_ORDER) == {shipped.name for shipped in theme.THEMES}
    assert names[theme.DARK] == names[theme.LIGHT] == names[theme.MONO]


def test_the_monochrome_theme_has_no_colour() -> None:
    for name in theme.TONES[theme.MONO]:
        style = theme.tone(theme.MONO, name)
        assert style.foreground is None
        assert style.background is None


def test_the_first_theme_follows_the_last() -> None:
    seen = [theme.DARK]
    for _ in theme.THEME_ORDER:
        seen.append(theme.next_theme(seen[-1]))
    assert seen == [*theme.THEME_ORDER, theme.DARK]


def test_provisional_checks_have_the_names_of_the_final_verdict() -> None:
    assert list(NAMES["lifecycle"]) == list(LIFECYCLE)
    assert list(NAMES["model_artifact"]) == list(ARTIFACT)


def test_the_first_frame_needs_no_heavy_import() -> None:
    heavy = (
        "plotext",
        "torch",
        "numpy",
        "asyncssh",
        "sqlite_utils",
        "cryptography",
        "engine.store.reader",
        "engine.runner",
    )
    code = f"import sys, glasshouse_tui.app; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
