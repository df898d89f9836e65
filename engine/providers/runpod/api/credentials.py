"""The operator's RunPod API key, and the server that it is sent to.

The key comes from the environment, else from the file that RunPod's own tools write.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from engine.errors import ProviderError, UsageError
from engine.system.files import read_named

VARIABLE: Final = "RUNPOD_API_KEY"
URL_VARIABLE: Final = "RUNPOD_API_BASE_URL"
URL: Final = "https://api.runpod.io"
FILE: Final = ".runpod/config.toml"
FROM_VARIABLE: Final = f"the variable {VARIABLE}"
FROM_FILE: Final = f"the file ~/{FILE}"
_PROFILE: Final = "default"
_KEY: Final = re.compile(r"[!-~]{1,512}")
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_LONGEST_FILE: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`source` is a phrase for error messages; the value never appears in a repr."""

    value: str = field(repr=False)
    source: str

    def account(self, salt: bytes, *context: str) -> str:
        """A keyed digest (hex) of the key and its context, which distinguishes keys without revealing them."""
        return hmac.digest(salt, "\0".join((*context, self.value)).encode(), hashlib.sha256).hex()


def api_key(environ: Mapping[str, str] | None = None) -> ApiKey:
    """The key to use; raises `ProviderError`: `api_key_missing`, or `api_key_rejected` if it is malformed."""
    environ = os.environ if environ is None else environ
    value, source = environ.get(VARIABLE, ""), FROM_VARIABLE
    if not value:
        value, source = _from_file(environ), FROM_FILE
    if not _KEY.fullmatch(value):
        raise ProviderError(
            f"The RunPod API key in {source} has spaces or other characters that a key cannot have.",
            "Copy the key again, without quotes and line ends.",
            code="api_key_rejected",
        )
    return ApiKey(value=value, source=source)


def _from_file(environ: Mapping[str, str]) -> str:
    home = environ.get("HOME")
    path = (Path(home) if home else Path.home()) / FILE
    try:
        text = read_named(path, _LONGEST_FILE).decode()
    except FileNotFoundError:
        raise _missing(f"{VARIABLE} is not set and ~/{FILE} does not exist") from None
    except (OSError, UnicodeDecodeError):
        raise _missing(f"{VARIABLE} is not set and ~/{FILE} cannot be read") from None
    try:
        profile = tomllib.loads(text).get(_PROFILE)
    except tomllib.TOMLDecodeError:
        profile = None
    value = profile.get("api_key") if isinstance(profile, dict) else None
    if not isinstance(value, str) or not value:
        raise _missing(f"{VARIABLE} is not set and ~/{FILE} has no api_key in its profile [{_PROFILE}]")
    return value


def _missing(why: str) -> ProviderError:
    return ProviderError(
        f"There is no RunPod API key: {why}.",
        f"Create a key at https://console.runpod.io/user/settings and set {VARIABLE}, or run `runpod config`.",
        code="api_key_missing",
    )


def base_url(environ: Mapping[str, str]) -> str:
    """The API's address without a trailing slash; raises `UsageError` (`api_url_invalid`).

    The key is sent there, so any host but this machine needs TLS.
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
        f"{URL_VARIABLE} is not an address to which the API key may be sent.",
        "Set an https:// address without a user or a query; http:// is allowed only for this machine.",
        code="api_url_invalid",
    )
