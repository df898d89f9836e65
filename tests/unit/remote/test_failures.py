"""A server's error texts in our messages."""

from __future__ import annotations

import asyncssh
import pytest

from engine.errors import RemoteError
from engine.remote.failures import LONGEST_REASON, translated


def test_a_servers_error_text_is_made_printable_and_short() -> None:
    with pytest.raises(RemoteError) as caught, translated("writing", "/file"):
        raise asyncssh.SFTPFailure("\x1b]0;no\x07\x9b2J\n" + "x" * 100_000)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < LONGEST_REASON + 100
