"""The errors of `PodApi`, worded the same for both APIs. Text from RunPod is cleaned before it is shown."""

from __future__ import annotations

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
    """The key is not accepted; `source` names where it came from."""
    shown = f" ({status})" if status else ""
    return ProviderError(
        f"RunPod does not accept the API key from {source}{shown}.",
        "Check that the key is valid and may read and write pods, or create a new one.",
        code="api_key_rejected",
    )


def gone(name: str) -> ProviderError:
    """The API itself was switched off (status 410)."""
    other = "rest" if name == "sdk" else "sdk"
    return ProviderError(
        "RunPod has switched this API off (410).",
        f'Switch to the other API: set api = "{other}" below [runpod] in config.toml.',
        code="api_gone",
    )


def no_balance() -> ProviderError:
    """The balance does not allow a creation (status 402)."""
    return ProviderError(
        "The RunPod account has too little balance.", "Add credit in RunPod's console.", code="no_balance"
    )


def no_capacity(gpu: str, detail: str = "") -> ProviderError:
    """Nothing was created. REST v2 uses the same status for a request that breaks a rule, so its text is included."""
    return ProviderError(
        f"RunPod has no {gpu} to rent now{_in_brackets(detail)}.",
        "Try again later, or accept another GPU.",
        code="no_capacity",
    )


def refused(what: str, detail: str = "", hint: str = "") -> ProviderError:
    """RunPod refused the request itself, so nothing was created or terminated."""
    return ProviderError(f"RunPod refused {what}{_in_brackets(detail)}.", hint, code="order_refused")


def unavailable(why: str) -> ProviderError:
    """RunPod cannot be reached, or reports an internal error."""
    return ProviderError(f"RunPod's API is not available: {why}.", "Try again in a while.", code="api_unavailable")


def timed_out(seconds: float) -> ProviderError:
    """No complete answer within the deadline."""
    return ProviderError(
        f"RunPod's API did not answer within {seconds:g} s.", "Try again in a while.", code="api_timeout"
    )


def invalid(why: str = "it does not match the API's documentation") -> ProviderError:
    """An answer that cannot be read, which never counts as an empty one."""
    return ProviderError(f"RunPod's answer cannot be used: {why}.", "Try again in a while.", code="api_answer_invalid")


def rate_limited(retry_after: str | None, date: str | None = None) -> RateLimitedError:
    """The pause that `Retry-After` requests, in seconds or as a time that is compared with `Date`; bounded."""
    return RateLimitedError(pause(retry_after, date))


def pause(retry_after: str | None, date: str | None = None) -> float:
    """Seconds to wait, between 1 and `LONGEST_PAUSE`."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:9])
    else:
        until = _seconds(text)
        now = _seconds(date)
        # Without the server's own time the moment cannot be compared with anything: our wall clock decides nothing.
        seconds = DEFAULT_PAUSE if until is None or now is None else until - now
    return min(max(seconds, 1.0), LONGEST_PAUSE)


def nothing_ordered(error: ProviderError) -> ProviderError:
    """The error for a failure before the order was sent: an ambiguous one becomes a definite `order_refused`."""
    if is_ambiguous(error):
        return ProviderError(
            f"The order was not sent, so no pod was created{_in_brackets(error.message)}.",
            error.hint,
            code="order_refused",
        )
    return error


def clean(detail: object, secrets: Iterable[str]) -> str:
    """RunPod's text as one printable line; empty if it repeats part of a secret."""
    if not isinstance(detail, str):
        return ""
    line = " ".join("".join(char if char.isprintable() else " " for char in detail).split())
    if any(_repeats(line, secret) for secret in secrets):
        return ""
    return line if len(line) <= _LONGEST_DETAIL else f"{line[:_LONGEST_DETAIL]}..."


def _repeats(line: str, secret: str) -> bool:
    if len(secret) < _WINDOW:
        return bool(secret) and secret in line
    return any(line[at : at + _WINDOW] in secret for at in range(len(line) - _WINDOW + 1))


def _in_brackets(detail: str) -> str:
    return f" ({detail.rstrip('.')})" if detail else ""


def _seconds(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
