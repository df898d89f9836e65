"""Static hosts in plans: under names that reveal neither the host's name nor its address."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.errors import UsageError
from engine.providers.settings import HostSettings, Settings
from engine.runner.spec import chosen_host, host_in, published_name

HOST = HostSettings(name="gpu1.lab.example.org", address="192.0.2.7", user="me", host_key="SHA256:x", agent=True)
SETTINGS = Settings(host=(HOST,))


def test_a_published_name_resolves_to_the_host_in_its_own_home_only(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home, other):
        folder.mkdir()
    name = chosen_host(home, SETTINGS, None)
    assert name == chosen_host(home, SETTINGS, HOST.name) == published_name(home, HOST.name)
    assert "gpu1" not in name
    assert name != published_name(other, HOST.name)
    assert host_in(home, SETTINGS, name) == HOST.name
    assert host_in(home, SETTINGS, HOST.name) == HOST.name
    assert host_in(other, SETTINGS, name) == name
    assert host_in(home, SETTINGS, None) is None


def test_omitting_the_name_requires_exactly_one_host(tmp_path: Path) -> None:
    two = Settings(host=(HOST, msgspec.structs.replace(HOST, name="another")))
    with pytest.raises(UsageError):
        chosen_host(tmp_path, two, None)
