"""The operator's `config.toml`: which settings are accepted, and that all others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import UsageError
from engine.providers.settings import FILE, Settings, environment_of, host_settings, load_settings

HOST = '[[host]]\nname = "tower"\naddress = "tower.lan"\nuser = "me"\nhost_key = "SHA256:abc"\nagent = true\n'


def _load(home: Path, text: str) -> Settings:
    (home / FILE).write_text(text)
    return load_settings(home)


def test_without_a_file_everything_has_its_default(tmp_path: Path) -> None:
    assert load_settings(tmp_path) == Settings()
    assert environment_of(Settings(), "local", None) == "own"
    assert environment_of(Settings(), "runpod", None) == "lock"


def test_hosts_are_looked_up_by_name(tmp_path: Path) -> None:
    settings = _load(tmp_path, HOST + 'environment = "image"\nindex = "https://mirror.lan/simple"\n')
    assert host_settings(settings, None) == host_settings(settings, "tower") == settings.host[0]
    assert environment_of(settings, "static", "tower") == "image"
    with pytest.raises(UsageError, match="No host called 'x'"):
        environment_of(settings, "static", "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[runpod]\nprice = 1\n", "unknown field"),
        ("[runpod\n", "not valid"),
        ("[runpod]\ncalls_per_minute = 0\n", "calls_per_minute"),
        ("[runpod.limits]\napi = -1.0\n", "limits.api"),
        ('[runpod]\nindex = "https://me:secret@mirror.lan/simple"\n', "contains credentials"),
        (HOST + 'index = "https://token@mirror.lan/simple"\n', "contains credentials"),
        (HOST + 'index = "--extra-index-url=http://x"\n', "not the address"),
        (HOST + HOST, "two hosts"),
        (HOST + 'key = "id"\n', "either a key or agent"),
        (HOST.replace("agent = true", "agent = false"), "either a key or agent"),
        (HOST.replace("SHA256:abc", "tower.lan"), "no valid host key"),
        (HOST.replace('"tower"', '"To wer"'), "host name"),
        (HOST + "port = 0\n", "no valid port"),
        ('[runpod]\napi = "rpa_secret"\n', "runpod.api"),
        ("[runpod]\nmax_cost = nan\n", "max_cost"),
        ("[runpod]\nmax_price = inf\n", "max_price"),
        ('[runpod]\nroot = "~/runs"\n', "runpod.root"),
        (HOST + 'root = "/srv/../etc"\n', "root of host"),
        (HOST + 'root = "/"\n', "root of host"),
        (HOST + 'root = "/srv/runs/"\n', "root of host"),
        (HOST + 'root = ""\n', "root of host"),
    ],
)
def test_invalid_settings_are_refused_without_repeating_a_secret(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        _load(tmp_path, text)
    assert caught.value.code == "config_invalid"
    assert expected in caught.value.message
    assert "secret" not in caught.value.message
    assert "token" not in caught.value.message
