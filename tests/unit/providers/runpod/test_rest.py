"""REST v2 alone: its contract, its logs, and settings of this machine that must not influence it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from engine.errors import ProviderError
from engine.providers.runpod.api import rest, rest_wire
from engine.providers.runpod.api.protocol import Order
from engine.providers.runpod.api.rest import RestApi
from engine.providers.settings import RunPodLimits
from tests import needs
from tests.unit.providers.runpod.conftest import KEY, PATIENCE, SHORT
from tests.unit.providers.runpod.dialect import Rest, State
from tests.unit.providers.runpod.server import Answer, Server
from tests.unit.providers.runpod.test_apis import ORDER

ROOT = Path(__file__).parents[4]
OPENAPI = Path(os.environ.get("GLASSHOUSE_RUNPOD_OPENAPI") or ROOT.parent / "shared/facts/runpod_openapi_v2.json")
FIRST = "SHA256:" + "a" * 43
SECOND = "SHA256:" + "b/+" * 14 + "c"


@pytest.fixture
def api(server: Server) -> RestApi:
    return RestApi(server.url, KEY, RunPodLimits(api=PATIENCE))


def validator(schema: str) -> jsonschema.Draft202012Validator:
    if not OPENAPI.exists():
        pytest.skip(needs.OPENAPI)
    document: Any = msgspec.json.decode(OPENAPI.read_bytes())
    registry: Registry[Any] = Registry().with_resource(
        "urn:runpod", Resource.from_contents(document, default_specification=DRAFT202012)
    )
    return jsonschema.Draft202012Validator({"$ref": f"urn:runpod#/components/schemas/{schema}"}, registry=registry)


async def test_the_order_conforms_to_runpods_document(api: RestApi, server: Server) -> None:
    server.script("create", Rest().made())
    await api.create_pod(ORDER)
    [sent] = server.received
    body = json.loads(sent.text)
    validator("CreatePodRequest").validate(body)
    assert body["startSsh"] is True
    assert body["ports"] == ["22/tcp"]
    assert body["gpu"] == {"id": ORDER.gpu, "count": 1}
    with pytest.raises(jsonschema.ValidationError):
        validator("CreatePodRequest").validate({**body, "diskGb": 1})


def test_the_answers_in_these_tests_conform_to_runpods_document() -> None:
    pods = Rest().pods(*(State(state=state) for state in ("provisioning", "starting", "private", "running", "exited")))
    validator("ListPodsResponse").validate(pods.body)
    validator("ListGpuTypesResponse").validate(Rest().gpus().body)


async def test_the_catalogue_is_requested_with_the_stock_of_the_chosen_cloud(server: Server) -> None:
    server.script("gpus", Rest().gpus())
    offers = await RestApi(server.url, KEY, RunPodLimits(), "COMMUNITY").list_gpus()
    assert [offer.stock for offer in offers] == ["low", "none"]
    assert server.received[0].query == {"include": "AVAILABILITY", "product": "POD", "cloud": "COMMUNITY"}


async def test_a_refused_request_is_a_definite_refusal(api: RestApi, server: Server) -> None:
    server.script("create", Rest().problem(422, "disk must be larger"), Rest().problem(403, "no access to this pool"))
    for detail in ("disk must be larger", "no access to this pool"):
        with pytest.raises(ProviderError) as caught:
            await api.create_pod(ORDER)
        assert caught.value.code == "order_refused"
        assert detail in caught.value.message


async def test_an_order_that_could_not_be_sent_is_refused_definitely() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: it refuses
        api = RestApi(f"http://127.0.0.1:{taken.getsockname()[1]}", KEY, RunPodLimits(api=PATIENCE))
        with pytest.raises(ProviderError) as made:
            await api.create_pod(ORDER)
        with pytest.raises(ProviderError) as listed:
            await api.list_pods()
    assert made.value.code == "order_refused"
    assert listed.value.code == "api_unavailable"


async def test_an_unknown_status_still_means_that_the_pod_exists(api: RestApi, server: Server) -> None:
    answer = Rest().pods(State())
    answer.body["pods"][0]["status"] = "HIBERNATING"
    server.script("list", answer)
    [pod] = await api.list_pods()
    assert pod.status == "error"


def log(*lines: str) -> bytes:
    events = (json.dumps({"ts": "2026-06-01T12:02:03Z", "source": "container", "line": line}) for line in lines)
    return "".join(f"id: 1\ndata: {event}\n\n" for event in events).encode()


async def test_fingerprints_are_read_from_an_endless_log(
    api: RestApi, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "LOG_SECONDS", PATIENCE)
    text = log("starting", f"256 {FIRST} root@pod (ED25519)", f"3072 {SECOND} (RSA)", "SHA256:short")
    server.script("logs", Answer(text, manner="stream"))
    async with asyncio.timeout(PATIENCE / 2):  # it stops soon after the last fingerprint, not at its limit
        assert await api.fingerprints("pod1") == frozenset({FIRST, SECOND})
    assert server.received[0].path == "/v2/pods/pod1/logs"


async def test_a_log_without_fingerprints_differs_from_an_unreadable_one(server: Server) -> None:
    api = RestApi(server.url, KEY, RunPodLimits(api=SHORT))
    server.script("logs", Answer(log("nothing yet")))
    assert await api.fingerprints("pod1") == frozenset()
    for answer in (Rest().problem(404, "no logs"), Answer(manner="cut"), Answer(manner="hang")):
        server.script("logs", answer)
        assert await api.fingerprints("pod1") is None


async def test_netrc_and_proxies_change_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login thief password stolen\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server.script("list", Rest().pods())
    await RestApi(server.url, KEY, RunPodLimits(api=PATIENCE)).list_pods()
    assert server.received[0].headers["Authorization"] == f"Bearer {KEY.value}"


async def test_it_can_be_used_again_after_it_was_closed(api: RestApi, server: Server) -> None:
    server.script("list", Rest().pods())
    await api.list_pods()
    await api.close()
    assert await api.list_pods() == ()
    await api.close()


async def test_a_pod_id_cannot_change_the_path(api: RestApi, server: Server) -> None:
    server.script("terminate", Rest().absent())
    await api.terminate_pod("../pods?x=1")
    assert server.received[0].path in {"/v2/pods/..%2Fpods%3Fx%3D1", "/v2/pods/../pods?x=1"}


async def test_each_of_several_concurrent_calls_has_its_own_deadline(server: Server) -> None:
    api = RestApi(server.url, KEY, RunPodLimits(api=SHORT))
    server.script("list", Answer(manner="hang"))
    began = time.monotonic()
    results = await asyncio.gather(*(api.list_pods() for _ in range(6)), return_exceptions=True)
    assert {getattr(one, "code", None) for one in results} == {"api_timeout"}
    assert time.monotonic() - began < 5 * SHORT, "sequential calls would take six times as long"


def test_rest_loads_neither_the_sdk_nor_what_it_needs() -> None:
    script = "import sys\nfrom engine.providers.runpod.api import factory, rest\n"
    script += "from engine.providers.runpod.api.sdk import client\n"
    script += "print(sorted({'runpod', 'requests', 'urllib3', 'boto3', 'aiohttp'} & set(sys.modules)))"
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert completed.stdout.strip() == "[]"


def test_the_repr_of_an_order_has_nothing_of_its_environment() -> None:
    order = Order(**{**msgspec.structs.asdict(ORDER), "environment": {"A": "canary-in-env"}})
    assert "canary" not in repr(order) + str(order) + repr(list(order.__rich_repr__()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-06-01T14:00:00+02:00", "2026-06-01T12:00:00.000Z"),
        ("2026-06-01T12:00:00", None),
        ("2026-06-01 12:00:00.1 +0000 UTC", None),
        ("\x1b]0;gone\x07", None),
        ("0001-01-01T00:00:00+14:00", None),
    ],
)
def test_an_invalid_time_is_left_out(text: str, expected: str | None) -> None:
    listed = {"pods": [{"id": "p", "name": "theirs", "status": "RUNNING", "createdAt": text}]}
    [row] = msgspec.convert(listed, rest_wire.Pods).pods
    assert rest_wire.pod(row).created_at == expected
