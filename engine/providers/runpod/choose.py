"""The implementation of `PodApi` that the settings name, in step with every other process of the home."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from engine.errors import UsageError
from engine.providers.runpod import shared
from engine.providers.runpod.key import api_key
from engine.providers.runpod.pace import OnWait, Pace, PacedApi
from engine.providers.settings import Settings

if TYPE_CHECKING:
    from engine.providers.runpod.api import PodApi

URL_VARIABLE: Final = "RUNPOD_API_BASE_URL"
URL: Final = "https://api.runpod.io"
SDK_CREATE_CALLS: Final = 2
"""The SDK asks for the GPU before it asks for the pod."""
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


def make_api(
    settings: Settings, home: Path, on_wait: OnWait | None = None, environ: Mapping[str, str] | None = None
) -> PacedApi:
    """The API to use, which keeps the home's pace; `on_wait` hears what it waits for.

    Raises `ProviderError` (`api_key_missing`, `api_key_rejected`) and `UsageError` (`api_url_invalid`); with the SDK
    also `MissingExtraError`.
    """
    environ = os.environ if environ is None else environ
    runpod = settings.runpod
    key, url = api_key(environ), base_url(environ)
    pace = Pace(home, runpod.calls_per_minute, on_wait)
    api: PodApi
    if runpod.api == "sdk":
        from engine.providers.runpod.sdk import SdkApi  # noqa: PLC0415  # only the chosen one is loaded

        api = SdkApi(home, url, key, runpod.limits)
        return PacedApi(api, pace, SDK_CREATE_CALLS)
    from engine.providers.runpod.rest import RestApi  # noqa: PLC0415  # only the chosen one is loaded

    api = RestApi(url, key, runpod.limits, runpod.cloud)
    return PacedApi(api, pace)


def account_of(home: Path, environ: Mapping[str, str] | None = None) -> str:
    """A keyed digest of server and key, the same over both APIs: whose pods a listing shows. Raises as `make_api`."""
    environ = os.environ if environ is None else environ
    return api_key(environ).account(shared.salt_of(home), base_url(environ))


def base_url(environ: Mapping[str, str]) -> str:
    """Where the API is, without a slash at the end; raises `UsageError` (`api_url_invalid`).

    The key is sent there: anything but this machine must be reached by TLS.
    """
    text = (environ.get(URL_VARIABLE) or URL).rstrip("/")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise _not_a_url() from None
    plain = parts.scheme == "http" and host in _LOOPBACK
    bare = not (parts.username or parts.password or parts.query or parts.fragment) and text.isprintable()
    if not host or not bare or not (plain or parts.scheme == "https"):
        raise _not_a_url()
    return text


def _not_a_url() -> UsageError:
    return UsageError(
        f"{URL_VARIABLE} is no address that the API key may be sent to.",
        "Give an https:// address without a user or a query; http:// only for this machine.",
        code="api_url_invalid",
    )
