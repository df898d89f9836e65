"""The one table of providers, and what must agree with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import PlanError
from engine.plan import FREE, PROVIDERS, RENTED, ProviderRequest
from engine.providers import provider_for
from engine.providers.protocol import Exclusive
from engine.providers.settings import Settings


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_of_the_table_loads_under_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_" + "x" * 40)
    provider = provider_for(name, tmp_path, Settings())
    assert provider.name == name
    if isinstance(provider, Exclusive):
        assert PROVIDERS[name].exclusive


def test_what_is_rented_is_never_free_and_has_a_page_to_terminate_it_by_hand() -> None:
    assert not RENTED & FREE
    assert all(PROVIDERS[name].console_url for name in RENTED)


def test_a_plan_that_names_another_provider_is_refused() -> None:
    with pytest.raises(PlanError) as caught:
        ProviderRequest(name="clouds").kind.rents  # noqa: B018
    assert caught.value.code == "provider_unknown"
