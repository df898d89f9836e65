"""The errors of the seam, in one wording for both APIs. What RunPod says is cleaned before it is repeated."""

from __future__ import annotations

import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from typing import Final

from engine.errors import ProviderError
from engine.providers.runpod.api.protocol import RateLimitedError, is_ambiguous

DEFAULT_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 300.0
_LONGEST_DETAIL: Final = 200
_WINDOW: Final = 8


def rejected(source: str, status: int | None = None) -> ProviderError:
    """The key is not accepted; `source` says where it came from."""
    shown = f" ({status})" if status else ""
    return ProviderError(
        f"RunPod does not accept the API key from {source}{shown}.",
        "Check that the key is valid and may read and write pods, or make a new one.",
        code="api_key_rejected",
    )


def gone(name: str) -> ProviderError:
    """The API itself was switched off (410)."""
    other = "rest" if name == "sdk" else "sdk"
    return ProviderError(
        "RunPod has switched this API off (410).",
        f'Switch to the other API: set api = "{other}" below [runpod] in config.toml.',
        code="api_gone",
    )


def no_balance() -> ProviderError:
    """402."""
    return ProviderError(
        "The RunPod account has too little balance.", "Add credit in RunPod's console.", code="no_balance"
    )


def no_capacity(gpu: str, detail: str = "") -> ProviderError:
    """Nothing was made; RunPod's v2 also says so of a request that breaks a rule, so its words are kept."""
    return ProviderError(
        f"RunPod has no {gpu} to rent now{_said(detail)}.",
        "Try again later, or accept another GPU.",
        code="no_capacity",
    )


def refused(what: str, detail: str = "", hint: str = "") -> ProviderError:
    """RunPod refused the request itself, so nothing was made or ended."""
    return ProviderError(f"RunPod refused {what}{_said(detail)}.", hint, code="order_refused")


def unavailable(why: str) -> ProviderError:
    """Unreachable, or an error of RunPod's own."""
    return ProviderError(f"RunPod's API is not available: {why}.", "Try again in a while.", code="api_unavailable")


def timed_out(seconds: float) -> ProviderError:
    """No whole answer within the deadline."""
    return ProviderError(
        f"RunPod's API did not answer within {seconds:g} s.", "Try again in a while.", code="api_timeout"
    )


def invalid(why: str = "it is not what the API's documents say") -> ProviderError:
    """An answer that cannot be read, which never counts as an empty one."""
    return ProviderError(f"RunPod's answer cannot be used: {why}.", "Try again in a while.", code="api_answer_invalid")


def rate_limited(retry_after: str | None, date: str | None = None) -> RateLimitedError:
    """A pause as the header `Retry-After` asks for it: seconds, or a time that is compared with `Date`; bounded."""
    return RateLimitedError(pause(retry_after, date))


def pause(retry_after: str | None, date: str | None = None) -> float:
    """Seconds to wait, between 1 and `LONGEST_PAUSE`."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:9])
    else:
        until = _seconds(text)
        now = _seconds(date)
        seconds = DEFAULT_PAUSE if until is None else until - (time.time() if now is None else now)
    return min(max(seconds, 1.0), LONGEST_PAUSE)


def nothing_ordered(error: ProviderError) -> ProviderError:
    """What a failure before the order means: one that would leave it open otherwise says that nothing was made."""
    if is_ambiguous(error):
        return refused("to say what it has, so nothing was ordered", error.message)
    return error


def clean(detail: object, secrets: Iterable[str]) -> str:
    """What RunPod says in one printable line, or nothing where it repeats a piece of a secret."""
    if not isinstance(detail, str):
        return ""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in detail).split())
    if any(_repeats(line, secret) for secret in secrets):
        return ""
    return line if len(line) <= _LONGEST_DETAIL else f"{line[:_LONGEST_DETAIL]}..."


def _repeats(line: str, secret: str) -> bool:
    if len(secret) < _WINDOW:
        return bool(secret) and secret in line
    return any(line[at : at + _WINDOW] in secret for at in range(len(line) - _WINDOW + 1))


def _said(detail: str) -> str:
    return f" ({detail.rstrip('.')})" if detail else ""


def _seconds(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
