"""Messages from the runner: small JSON files that are moved into `inbox/` once they are complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from engine.errors import RunError
from engine.wire import parse

MAX_MESSAGE: Final = 4 * 1024 * 1024
POLL_SECONDS: Final = 0.05


class Inbox:
    """Reads messages by name. Symbolic links are ignored, oversized files refused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, name: str) -> dict[str, Any] | None:
        """The message, or None while it is not there; raises `RunError` (`inbox_invalid`)."""
        path = self._folder / name
        if path.is_symlink() or not path.is_file():
            return None
        if path.stat().st_size > MAX_MESSAGE:
            raise RunError(f"The message {name} is too large.", code="inbox_invalid")
        message = parse(path.read_bytes())
        if not isinstance(message, dict):
            raise RunError(f"The message {name} is not a JSON object.", code="inbox_invalid")
        return message

    def cancelled(self) -> bool:
        """True once the runner requested a stop."""
        return (self._folder / "cancel.json").exists()

    def wait(self, name: str, seconds: float, *, give_up: Callable[[], None]) -> dict[str, Any]:
        """Wait for a message; raises like `wait_for_one`."""
        return self.take(self.wait_for_one((name,), seconds, give_up=give_up)) or {}

    def wait_for_one(self, names: Sequence[str], seconds: float, *, give_up: Callable[[], None]) -> str:
        """Wait for the first of several messages and return its name.

        `give_up` may raise to end the wait; raises `RunError` (`runner_silent`) when `seconds` have passed.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for name in names:
                if self.take(name) is not None:
                    return name
            give_up()
            time.sleep(POLL_SECONDS)
        raise RunError(
            f"The runner did not send {names[0]} within {seconds:.0f} s.",
            "Resume the run with `glasshouse resume`.",
            code="runner_silent",
        )
