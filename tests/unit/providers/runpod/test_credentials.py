"""Where the API key comes from, and that it is never shown; the API's address."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from engine.errors import ProviderError, UsageError
from engine.providers.runpod.api.credentials import ApiKey, api_key, base_url
from engine.providers.runpod.api.factory import make_api
from engine.providers.settings import RunPodSettings, Settings


def write(home: Path, text: str) -> dict[str, str]:
    (home / ".runpod").mkdir()
    (home / ".runpod" / "config.toml").write_text(text)
    return {"HOME": str(home)}


def test_the_variable_comes_before_the_file(tmp_path: Path) -> None:
    environ = write(tmp_path, '[default]\napi_key = "from_file"\n')
    assert api_key({**environ, "RUNPOD_API_KEY": "from_env"}).value == "from_env"
    assert api_key({**environ, "RUNPOD_API_KEY": ""}).value == "from_file"
    assert api_key(environ).source == "the file ~/.runpod/config.toml"


@pytest.mark.parametrize(
    "text", ["", "[other]\napi_key='x'", "[default]\n", "default = 3", "[default]\napi_key = 3", "="]
)
def test_a_file_without_a_key_says_what_to_do(tmp_path: Path, text: str) -> None:
    with pytest.raises(ProviderError) as caught:
        api_key(write(tmp_path, text))
    assert caught.value.code == "api_key_missing"
    assert "RUNPOD_API_KEY" in caught.value.hint


def test_no_file_and_no_variable_is_a_missing_key(tmp_path: Path) -> None:
    with pytest.raises(ProviderError) as caught:
        api_key({"HOME": str(tmp_path)})
    assert caught.value.code == "api_key_missing"


@pytest.mark.parametrize("value", ["canary\n", "canary key", "canary\x00", "canary\u00e9", " canary", "canary" * 200])
def test_a_malformed_key_is_refused_without_being_shown(value: str) -> None:
    with pytest.raises(ProviderError) as caught:
        api_key({"RUNPOD_API_KEY": value})
    assert caught.value.code == "api_key_rejected"
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_a_key_never_appears_in_its_own_text() -> None:
    key = ApiKey(value="canary", source="here")
    assert "canary" not in f"{key} {key!r}"
    assert key.account(b"salt") != key.account(b"other salt")
    assert key.account(b"salt", "a") != key.account(b"salt", "b")


@pytest.mark.parametrize(
    "url",
    ["http://example.org", "ftp://127.0.0.1", "https://", "https://user:pw@example.org", "https://a/?b", "https://a:b"],
)
def test_the_key_is_never_sent_unencrypted(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        base_url({"RUNPOD_API_BASE_URL": url})
    assert caught.value.code == "api_url_invalid"


def test_the_api_is_runpods_unless_another_is_named() -> None:
    assert base_url({}) == "https://api.runpod.io"
    assert base_url({"RUNPOD_API_BASE_URL": "http://127.0.0.1:8080/"}) == "http://127.0.0.1:8080"


@pytest.mark.parametrize("name", ["rest", "sdk"])
def test_the_settings_choose_the_api(tmp_path: Path, name: str) -> None:
    settings = Settings(runpod=RunPodSettings(api="sdk" if name == "sdk" else "rest"))
    assert make_api(settings, tmp_path, environ={"RUNPOD_API_KEY": "x"}).name == name
