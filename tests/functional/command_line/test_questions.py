"""Questions at a terminal: yes, no, the end of the input and Ctrl-C; and where nobody can be asked."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from engine.sealing.operator_keys import OperatorKeys
from tests.functional.command_line.terminal import at_a_terminal

if TYPE_CHECKING:
    from tests.functional.command_line.conftest import CommandLine

QUESTION = "Replace the signing and the recipient key"


@pytest.fixture
def first(cli: CommandLine) -> str:
    """The fingerprint of the home's signing key before anything is asked."""
    return OperatorKeys.ensure(cli.home / "keys").signing_fingerprint


def current(cli: CommandLine) -> str:
    return OperatorKeys.load(cli.home / "keys").signing_fingerprint


@pytest.mark.parametrize(
    ("answer", "code", "last"),
    [
        ("n\n", 1, "The keys were not replaced."),
        ("\n", 1, "The keys were not replaced."),
        ("maybe\nN\n", 1, "The keys were not replaced."),
        ("\x04", 1, "The keys were not replaced."),
        (signal.SIGINT, 130, "Interrupted."),
    ],
    ids=["no", "nothing", "unclear", "ctrl_d", "ctrl_c"],
)
def test_whatever_is_no_yes_changes_nothing_and_says_so(
    cli: CommandLine, first: str, answer: str | signal.Signals, code: int, last: str
) -> None:
    seen, shown = at_a_terminal([*cli.command, "--home", str(cli.home), "key", "rotate"], QUESTION, answer)
    assert seen == code, shown
    assert shown.rstrip().endswith(last)
    assert ("Please answer y or n." in shown) == (answer == "maybe\nN\n")
    assert current(cli) == first


def test_yes_is_yes(cli: CommandLine, first: str) -> None:
    code, shown = at_a_terminal([*cli.command, "--home", str(cli.home), "key", "rotate"], QUESTION, "y\n")
    assert code == 0, shown
    assert current(cli) != first


def test_off_a_terminal_the_keys_are_replaced_only_with_yes(cli: CommandLine, first: str) -> None:
    error = cli("key", "rotate", "--json").refused(2, "confirmation_needed")
    assert "--yes" in error["hint"]
    assert cli("key", "rotate").code == 2
    assert current(cli) == first
    assert cli("key", "rotate", "--yes").code == 0
    assert current(cli) != first
