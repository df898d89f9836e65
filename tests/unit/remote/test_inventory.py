"""An image's packages against a lock, and malformed metadata in the image."""

from __future__ import annotations

import pytest

from engine.errors import RemoteError
from engine.remote.inventory import Distribution, mismatches

MARKERS = {"python_version": "3.12", "platform_machine": "x86_64", "sys_platform": "linux"}
NEEDED = {
    name: Distribution("1.0", [])
    for name in (
        "cryptography",
        "joserfc",
        "msgspec",
        "numpy",
        "peft",
        "rfc8785",
        "safetensors",
        "securesystemslib",
        "torch",
        "transformers",
    )
}
LOCKED = dict.fromkeys(NEEDED, "1.0")
DIGITS = f"a; python_version >= '{'1' * 5000}'"
NESTED = f"a; {'(' * 20_000}os_name == 'posix'{')' * 20_000}"


def test_requirements_must_be_installed_at_the_locked_versions() -> None:
    installed = {**NEEDED, "torch": Distribution("1.0+cu130", ["Needed_Name>=2; sys_platform == 'linux'"])}
    assert mismatches(installed, LOCKED, MARKERS) == []
    locked = {**LOCKED, "needed-name": "2.1", "numpy": "1.1"}
    assert mismatches(installed, locked, MARKERS) == ["needed-name 2.1 is missing", "numpy is 1.0 instead of 1.1"]


def test_packages_that_nothing_requires_may_be_missing() -> None:
    installed = {
        **NEEDED,
        "torch": Distribution("1.0", ["nvidia-thing; sys_platform == 'win32'", "other; extra == 'x'"]),
    }
    assert mismatches(installed, {**LOCKED, "nvidia-thing": "1", "other": "1"}, MARKERS) == []


def test_an_extra_is_followed() -> None:
    installed = {**NEEDED, "peft": Distribution("1.0", ["torch[x]"]), "torch": Distribution("1.0", ["o; extra == 'x'"])}
    assert mismatches(installed, {**LOCKED, "o": "1"}, MARKERS) == ["o 1 is missing"]


@pytest.mark.parametrize(
    "line",
    ["", "???", "a; b == 'c'", "a; python_version ~= 'x'", "a" * 10_000 + "[", DIGITS, NESTED],
    ids=["empty", "punctuation", "unknown name", "no version", "long", "digits", "nested"],
)
def test_unreadable_requirements_are_skipped(line: str) -> None:
    assert mismatches({**NEEDED, "torch": Distribution("1.0", [line])}, LOCKED, MARKERS) == []


def test_an_invalid_version_is_shown_without_its_control_characters() -> None:
    installed = {**NEEDED, "torch": Distribution("\x1b[2J1\n", [])}
    assert mismatches(installed, LOCKED, MARKERS) == ["torch is [2J1 instead of 1.0"]


def test_a_version_of_thousands_of_digits_is_a_mismatch() -> None:
    installed = {**NEEDED, "torch": Distribution("1" * 5000, [])}
    assert mismatches(installed, LOCKED, MARKERS) == [f"torch is {'1' * 32} instead of 1.0"]


def test_an_image_cannot_keep_the_runner_busy_with_extras() -> None:
    needs = [f"torch[{','.join(f'e{number}' for number in range(500))}]", *["x"] * 500]
    with pytest.raises(RemoteError, match="too many to check"):
        mismatches({**NEEDED, "torch": Distribution("1.0", needs)}, LOCKED, MARKERS)
