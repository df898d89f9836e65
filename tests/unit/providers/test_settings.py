"""The operator's `config.toml`: which settings are accepted, and that all others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import UsageError
from engine.providers.settings import FILE, Settings, environment_of, host_settings, load_settings, only_host

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
        ('[runpod]\napi = "rpa_secret"\n', "runpod.api"),
        ("[runpod]\nmax_cost = nan\n", "max_cost"),
        ("[runpod]\nmax_price = inf\n", "max_price"),
        ('[runpod]\nroot = "~/runs"\n', "runpod.root"),
        ("faults = []\n", "unknown field"),
        ("host = 3\n", "host"),
    ],
)
def test_invalid_settings_are_refused_without_repeating_a_secret(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        _load(tmp_path, text)
    assert caught.value.code == "config_invalid"
    assert expected in caught.value.message
    assert "secret" not in caught.value.message
    assert "token" not in caught.value.message


JUMP = '[[host.proxy_jump]]\naddress = "login.lan"\nuser = "me"\nhost_key = "SHA256:def"\nagent = true\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HOST + 'index = "https://token@mirror.lan/simple"\n', "contains credentials"),
        (HOST + 'index = "--extra-index-url=http://x"\n', "not the address"),
        (HOST + HOST, "two hosts"),
        (HOST + 'key = "id"\n', "either a key or agent"),
        (HOST.replace("agent = true", "agent = false"), "either a key or agent"),
        (HOST.replace("SHA256:abc", "tower.lan"), "no valid host key"),
        (HOST.replace('"tower"', '"To wer"'), "host name"),
        (HOST + "port = 0\n", "no valid port"),
        (HOST + 'port = "rpa_secret"\n', "host tower: Expected `int`"),
        (HOST + 'root = "/srv/../etc"\n', "root of host"),
        (HOST + 'root = "/"\n', "root of host"),
        (HOST + 'root = "/srv/runs/"\n', "root of host"),
        (HOST + 'root = ""\n', "root of host"),
        (HOST + 'colour = "red"\n', "unknown field `colour`"),
        (HOST.replace("tower.lan", "me@tower.lan"), "no valid address"),
        (HOST.replace("tower.lan", "[::1]"), "no valid address"),
        (HOST.replace("tower.lan", "-oProxyCommand"), "no valid address"),
        (HOST + JUMP.replace('host_key = "SHA256:def"\n', ""), "missing required field `host_key`"),
        (HOST + JUMP.replace("SHA256:def", "any"), "jump 1 of host tower has no valid host key"),
        (HOST + JUMP + JUMP.replace("agent", "x"), "unknown field `x`"),
        (HOST + JUMP * 9, "more than 8 jumps"),
    ],
)
def test_a_bad_host_blocks_only_itself(tmp_path: Path, text: str, expected: str) -> None:
    other = HOST.replace('"tower"', '"other"')
    settings = _load(tmp_path, text + other)
    assert [host.name for host in settings.host] == ["other"]
    assert host_settings(settings, "other").name == "other"
    assert settings.faults
    assert all(expected in fault.message and str(tmp_path) in fault.message for fault in settings.faults), settings
    assert "secret" not in str(settings)
    assert "token" not in str(settings)
    if settings.faults[0].name:
        with pytest.raises(UsageError) as caught:
            host_settings(settings, "tower")
        assert (caught.value.code, caught.value.message) == ("config_invalid", settings.faults[0].message)


def test_the_only_host_is_not_guessed_when_another_one_is_bad(tmp_path: Path) -> None:
    bad = _load(tmp_path, HOST + "port = 0\n")
    with pytest.raises(UsageError) as caught:
        host_settings(bad, None)
    assert caught.value.code == "config_invalid"
    both = _load(tmp_path, HOST + "port = 0\n" + HOST.replace('"tower"', '"other"'))
    with pytest.raises(UsageError) as caught:
        host_settings(both, None)
    assert caught.value.code == "host_unknown"
    assert only_host(both, "other").host == both.host


def test_the_jumps_to_a_host_are_read_in_their_order(tmp_path: Path) -> None:
    host = host_settings(_load(tmp_path, HOST + JUMP + JUMP.replace("login.lan", "::1")), "tower")
    assert [one.address for one in host.proxy_jump] == ["login.lan", "::1"]
    assert [name for name, _ in host.servers] == ["jump 1 of host tower", "jump 2 of host tower", "host tower"]
