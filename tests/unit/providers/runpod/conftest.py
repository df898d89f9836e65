"""Both implementations against one scripted server; the SDK's helper is started once per test worker."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from engine.providers.runpod.api.credentials import ApiKey
from engine.providers.runpod.api.protocol import PodApi
from engine.providers.runpod.api.rest import RestApi
from engine.providers.runpod.api.sdk import wire
from engine.providers.runpod.api.sdk.client import SdkApi
from engine.providers.settings import RunPodLimits
from tests.unit.providers.runpod.dialect import Dialect, Rest, Sdk
from tests.unit.providers.runpod.server import Server

KEY = ApiKey(value="rpa_CANARY0KEY0CANARY", source="the variable RUNPOD_API_KEY")
MakeApi = Callable[..., PodApi]
# For a call that must end at its deadline: short, but a busy machine still gets the request to the server before it.
SHORT = 3.0
PATIENCE = 60.0


def end_helpers(home: Path) -> None:
    """Terminate every helper of a home, by the pid in its log."""
    log = home / "allocations" / wire.LOG
    for line in log.read_text().splitlines() if log.exists() else []:
        if line.endswith("starts"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line.split()[1]), signal.SIGTERM)


@pytest.fixture(scope="session")
def one_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def server(one_server: Server) -> Server:
    one_server.clear()
    return one_server


@pytest.fixture(scope="session")
def helper_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("home")
    yield home
    end_helpers(home)


@pytest.fixture(params=["rest", "sdk"])
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return Rest() if request.param == "rest" else Sdk()


@pytest.fixture
def make(dialect: Dialect, server: Server, helper_home: Path) -> MakeApi:
    """Creates the implementation, by default with generous limits."""

    def made(**limits: float) -> PodApi:
        chosen = msgspec.structs.replace(RunPodLimits(api=PATIENCE, helper_idle=60.0), **limits)
        if dialect.name == "rest":
            return RestApi(server.url, KEY, chosen)
        return SdkApi(helper_home, server.url, KEY, chosen)

    return made
