"""The SDK's helper process: shared, gone when idle, replaced when stuck, never used with another key."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from engine.errors import MissingExtraError, ProviderError
from engine.providers.runpod.api.credentials import ApiKey
from engine.providers.runpod.api.sdk import wire
from engine.providers.runpod.api.sdk.client import START_SECONDS, SdkApi
from engine.providers.settings import RunPodLimits
from tests.unit.providers.runpod.conftest import KEY, PATIENCE, SHORT, end_helpers
from tests.unit.providers.runpod.dialect import GPU, Sdk, State
from tests.unit.providers.runpod.server import Answer, Server
from tests.unit.providers.runpod.test_apis import ORDER

pytestmark = pytest.mark.xdist_group("runpod_apis")
FOUND_GPU = Answer({"data": {"gpuTypes": [{"id": GPU}]}})


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home so deep that no socket path below it fits into an address."""
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    yield deep
    end_helpers(deep)


def log(home: Path) -> str:
    return (home / "allocations" / wire.LOG).read_text()


async def until_log_says(home: Path, what: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while what not in log(home):  # noqa: ASYNC110  # another process writes it
            await asyncio.sleep(0.02)


async def test_runners_share_one_helper_which_exits_when_idle(home: Path, server: Server) -> None:
    server.script("list", Sdk().pods(State(secret="canary-env")))
    apis = [SdkApi(home, server.url, KEY, RunPodLimits(helper_idle=SHORT)) for _ in range(4)]
    results = await asyncio.gather(*(api.list_pods() for api in apis))
    assert [len(pods) for pods in results] == [1, 1, 1, 1]
    await until_log_says(home, "ends: no work")
    assert log(home).count("starts") == 1
    assert not list((home / "allocations").glob("*.sock"))
    assert not [path for path in (home / "allocations").iterdir() if path.stat().st_mode & 0o077]


async def test_each_key_has_its_own_helper(helper_home: Path, server: Server) -> None:
    server.script("list", Sdk().pods())
    other = ApiKey(value="rpa_OTHER", source="the file ~/.runpod/config.toml")
    keys = (KEY, other, KEY)
    for key in keys:
        await SdkApi(helper_home, server.url, key, RunPodLimits(helper_idle=60.0)).list_pods()
    assert [one.headers["Authorization"] for one in server.received] == [f"Bearer {key.value}" for key in keys]
    server.script("list", Answer({}, status=401))
    with pytest.raises(ProviderError, match=r"config\.toml") as caught:
        await SdkApi(helper_home, server.url, other, RunPodLimits()).list_pods()
    assert caught.value.code == "api_key_rejected"


@asynccontextmanager
async def endless_headers() -> AsyncIterator[str]:
    """A server whose headers never end, which blocks the SDK for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_a_helper_whose_threads_are_all_stuck_exits(home: Path) -> None:
    async with endless_headers() as url:
        api = SdkApi(home, url, KEY, RunPodLimits(api=SHORT))
        calls = [api.list_pods() for _ in range(7)] + [api.create_pod(ORDER)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [getattr(one, "code", None) for one in results] == ["api_timeout"] * 7 + ["order_refused"]
        await until_log_says(home, "every thread is stuck")
        assert not list((home / "allocations").glob("*.sock"))


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(manner="hang"), "order_refused"),
        (Answer(b"<html>", status=500), "order_refused"),
        (Answer({"data": {"gpuTypes": []}}), "order_refused"),
        (Answer({}, status=429, headers={"Retry-After": "2"}), "api_rate_limited"),
    ],
    ids=["hang", "html", "unknown", "rate"],
)
async def test_a_failure_before_the_order_is_definite(
    helper_home: Path, server: Server, answer: Answer, code: str
) -> None:
    server.script("gpu", answer)
    server.script("create", Sdk().made())
    with pytest.raises(ProviderError) as caught:
        await SdkApi(helper_home, server.url, KEY, RunPodLimits(api=SHORT, helper_idle=60.0)).create_pod(ORDER)
    assert caught.value.code == code
    assert server.ops() == ["gpu"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 'x", gpuCount: 8, name: "y'),
        ("image", "image\n"),
        ("gpu", 'a"}'),
        ("start", 'bash -c "x"'),
        ("start", "bash\\"),
        ("start", "bash\n"),
        ("environment", {"A": 'canary"'}),
        ("environment", {"A }": "x"}),
    ],
)
async def test_a_value_that_would_break_out_of_the_query_is_never_sent(
    helper_home: Path, server: Server, field: str, value: object
) -> None:
    order = msgspec.structs.replace(ORDER, **{field: value})
    with pytest.raises(ProviderError) as caught:
        await SdkApi(helper_home, server.url, KEY, RunPodLimits(helper_idle=60.0)).create_pod(order)
    assert caught.value.code == "order_refused"
    assert "canary" not in caught.value.message
    assert server.received == []


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Sdk().error("Something went wrong. Please try again later."), "api_unavailable"),
        (Sdk().error("Your balance is too low to rent this."), "no_balance"),
        (Sdk().error("no", "UNAUTHENTICATED"), "api_key_rejected"),
        (Sdk().error("Field is unknown", "GRAPHQL_VALIDATION_FAILED"), "order_refused"),
        (Answer({"data": {"podFindAndDeployOnDemand": None}}), "api_answer_invalid"),
        (Sdk().made('x") { id } #'), "api_answer_invalid"),
    ],
)
async def test_an_error_of_graphql_has_its_code(helper_home: Path, server: Server, answer: Answer, code: str) -> None:
    server.script("gpu", FOUND_GPU)
    server.script("create", answer)
    with pytest.raises(ProviderError) as caught:
        await SdkApi(helper_home, server.url, KEY, RunPodLimits(helper_idle=60.0)).create_pod(ORDER)
    assert caught.value.code == code


def test_netrc_and_proxies_change_nothing_in_the_pinned_sdk(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login thief password stolen\n")
    (tmp_path / ".netrc").chmod(0o600)
    server.script("list", Sdk().pods(State(secret="canary-env")))
    server.script("terminate", Answer(b"no", status=429, headers={"Retry-After": "7"}))
    script = """
import json, runpod
from engine.providers.runpod.api.sdk.calls import Call, SdkCalls
from engine.errors import ProviderError
calls = SdkCalls("rpa_KEY")
pods = calls.list_pods(Call(20))
try:
    calls.terminate_pod(Call(20), "pod1")
except ProviderError as error:
    print(json.dumps([runpod.__version__, len(pods), error.code, error.retry_after, repr(error.__context__)]))
"""
    environment = {**os.environ, "RUNPOD_API_BASE_URL": server.url, "HOME": str(tmp_path)}
    environment |= {"NETRC": str(tmp_path / ".netrc"), "HTTP_PROXY": "http://127.0.0.1:1"}
    environment |= {"http_proxy": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
    completed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert json.loads(completed.stdout) == [wire.PINNED, 1, "api_rate_limited", 7.0, "None"]
    assert [one.headers["Authorization"] for one in server.received] == ["Bearer rpa_KEY"] * 2


async def test_a_helper_that_cannot_start_is_reported_and_no_order_is_sent(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = SdkApi(home, server.url, KEY, RunPodLimits())
    monkeypatch.setattr(sys, "executable", "/bin/false")
    async with asyncio.timeout(START_SECONDS / 2):
        with pytest.raises(ProviderError) as caught:
            await api.create_pod(ORDER)
    assert caught.value.code == "sdk_unusable"


def test_another_version_of_the_sdk_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PINNED", "0.0.1")
    with pytest.raises(ProviderError, match=r"0\.0\.1"):
        SdkApi(home, "http://127.0.0.1:1", KEY, RunPodLimits())


def test_without_the_sdk_the_extra_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="SDK") as caught:
        SdkApi(home, "http://127.0.0.1:1", KEY, RunPodLimits())
    assert "glasshouse[runpod]" in caught.value.hint
