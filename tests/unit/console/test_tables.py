"""The console's tables: states, keys, themes, live checks, what is imported when."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from engine.records.checks import ARTIFACT, LIFECYCLE
from engine.store import views
from glasshouse_tui import bindings, state_styles, theme
from glasshouse_tui.provisional_checks import GROUPS

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
def test_every_stored_state_has_a_shape_and_its_own_word(subject: str) -> None:
    looks = state_styles.LOOKS[subject]
    assert set(looks) == set(get_args(STORED[subject]))
    assert all(len(look.shape) == 1 and look.word for look in looks.values())
    assert len({look.word for look in looks.values()}) == len(looks)


def test_what_nobody_knows_looks_unknown_and_never_fine() -> None:
    assert (
        state_styles.look("attestation", None) == state_styles.look("attestation", "brand_new") == state_styles.UNKNOWN
    )
    assert state_styles.UNKNOWN.tone != "good"
    assert state_styles.clean_look(None).tone != "good"


def test_good_and_bad_differ_by_shape_as_well_as_colour() -> None:
    for looks in state_styles.LOOKS.values():
        good = {look.shape for look in looks.values() if look.tone == "good"}
        bad = {look.shape for look in looks.values() if look.tone == "bad"}
        assert not good & bad


def test_no_key_is_one_that_terminals_and_tmux_take() -> None:
    taken = {f"ctrl+{letter}" for letter in "basjmhi"}
    assert not taken & {name for key in bindings.KEYS for name in key.keys.split(",")}


def test_a_key_means_one_thing_on_a_screen() -> None:
    for section in bindings.SECTIONS:
        names = [n for key in bindings.KEYS if key.section in (section, bindings.TABLES) for n in key.keys.split(",")]
        assert len(names) == len(set(names)), section
    assert len(bindings.BY_ID) == len(bindings.KEYS)


def test_every_key_says_what_it_does_and_belongs_to_a_section_of_the_help() -> None:
    assert all(key.help and key.shown and key.section in bindings.SECTIONS for key in bindings.KEYS)


def test_arrows_and_letters_both_move() -> None:
    assert {"up", "k"} <= set(bindings.BY_ID["table.up"].keys.split(","))
    assert {"down", "j"} <= set(bindings.BY_ID["table.down"].keys.split(","))


def test_read_only_refuses_exactly_what_starts_or_changes_something() -> None:
    assert bindings.writing_actions() == {"demo", "resume", "cancel", "keep", "release"}


def test_every_theme_has_every_tone() -> None:
    names = {name: set(tones) for name, tones in theme.TONES.items()}
    assert set(names) == set(theme.THEME_ORDER) == {made.name for made in theme.THEMES}
    assert names[theme.DARK] == names[theme.LIGHT] == names[theme.MONO]


def test_the_monochrome_theme_has_no_colour() -> None:
    for name in theme.TONES[theme.MONO]:
        style = theme.tone(theme.MONO, name)
        assert style.foreground is None
        assert style.background is None


def test_themes_go_around_in_a_circle() -> None:
    seen = [theme.DARK]
    for _ in theme.THEME_ORDER:
        seen.append(theme.next_theme(seen[-1]))
    assert seen == [*theme.THEME_ORDER, theme.DARK]


def test_live_checks_have_the_names_of_the_final_verdict() -> None:
    assert list(GROUPS["lifecycle"]) == list(LIFECYCLE)
    assert list(GROUPS["model_artifact"]) == list(ARTIFACT)


def test_the_first_frame_waits_for_no_heavy_import() -> None:
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
