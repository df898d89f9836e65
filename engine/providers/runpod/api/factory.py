"""The implementation of `PodApi` chosen in the settings, with the rate limit of the home."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.providers.runpod.api.credentials import api_key, base_url
from engine.providers.runpod.api.rate_limit import OnWait, Pace, PacedApi
from engine.providers.settings import Settings
from engine.store.salt import salt_of

if TYPE_CHECKING:
    from engine.providers.runpod.api.protocol import PodApi

SDK_CREATE_CALLS: Final = 2
"""The SDK queries the GPU before it requests the pod."""


def make_api(
    settings: Settings, home: Path, on_wait: OnWait | None = None, environ: Mapping[str, str] | None = None
) -> PacedApi:
    """The API to use, within the home's rate limit; `on_wait` receives how long it waits and why.

    Raises `ProviderError` (`api_key_missing`, `api_key_rejected`) and `UsageError` (`api_url_invalid`); with the SDK
    also `MissingExtraError`.
    """
    environ = os.environ if environ is None else environ
    runpod = settings.runpod
    key, url = api_key(environ), base_url(environ)
    pace = Pace(home, runpod.calls_per_minute, on_wait)
    api: PodApi
    if runpod.api == "sdk":
        from engine.providers.runpod.api.sdk.client import SdkApi  # noqa: PLC0415  # only the chosen one is loaded

        api = SdkApi(home, url, key, runpod.limits)
        return PacedApi(api, pace, SDK_CREATE_CALLS)
    from engine.providers.runpod.api.rest import RestApi  # noqa: PLC0415  # only the chosen one is loaded

    api = RestApi(url, key, runpod.limits, runpod.cloud)
    return PacedApi(api, pace)


def account_of(home: Path, environ: Mapping[str, str] | None = None) -> str:
    """A keyed digest of server and key, the same for both APIs: it identifies whose pods a listing shows.

    Raises as `make_api`.
    """
    environ = os.environ if environ is None else environ
    return api_key(environ).account(salt_of(home), base_url(environ))
