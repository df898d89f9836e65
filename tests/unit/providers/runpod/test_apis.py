"""The common behaviour of both implementations of `PodApi`."""

from __future__ import annotations

import asyncio
import json
import traceback
from pathlib import Path

import pytest

from engine.errors import ProviderError
from engine.providers.runpod.api.protocol import Address, Order, RateLimitedError, is_ambiguous
from tests.unit.providers.runpod.conftest import KEY, PATIENCE, SHORT, MakeApi
from tests.unit.providers.runpod.dialect import GPU, Dialect, Sdk, State
from tests.unit.providers.runpod.server import Answer, Server

pytestmark = pytest.mark.xdist_group("runpod_apis")

START = "bash -c 'printenv GLASSHOUSE_START | base64 -d > $HOME/.glasshouse-start && exec bash $HOME/.glasshouse-start'"
SECRET = "Q0FOQVJZLWVudi1zZWNyZXQtdmFsdWU="
ORDER = Order(
    name="glasshouse-a-b-c",
    image="runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404",
    gpu=GPU,
    cloud="SECURE",
    disk_gb=40,
    environment={"PUBLIC_KEY": "ssh-ed25519 AAAAC3Nz/+= me@here now", "GLASSHOUSE_HOST_KEY": SECRET},
    start=START,
)


def ready_to_create(server: Server, dialect: Dialect, *answers: Answer) -> None:
    """Script a creation; the SDK queries the GPU first."""
    server.script("gpu", Answer({"data": {"gpuTypes": [{"id": GPU}]}}))
    server.script("create", *answers)


async def test_a_pods_status_follows_its_progress(make: MakeApi, server: Server, dialect: Dialect) -> None:
    states = ("provisioning", "starting", "private", "running", "exited")
    server.script("list", dialect.pods(*(State(id=state, state=state) for state in states)))
    pods = {pod.id: pod for pod in await make().list_pods()}
    assert [pods[state].status for state in states if state != "private"] == [
        "provisioning",
        "starting",
        "running",
        "exited",
    ]
    assert pods["running"].ssh == Address(host="195.26.233.3", port=34446)
    assert all(pods[state].ssh is None for state in states if state != "running")
    assert pods["running"].has_runtime
    assert pods["running"].has_ports
    assert not pods["provisioning"].has_runtime
    assert not pods["starting"].has_ports
    assert pods["running"].price_per_hour == 0.44
    assert pods["running"].name == "glasshouse-a-b-c"


async def test_an_account_without_pods_is_an_empty_listing(make: MakeApi, server: Server, dialect: Dialect) -> None:
    server.script("list", dialect.pods())
    assert await make().list_pods() == ()


async def test_a_cloud_that_does_not_offer_a_gpu_has_no_price(make: MakeApi, server: Server, dialect: Dialect) -> None:
    server.script("gpus", dialect.gpus())
    first, second = await make().list_gpus()
    assert (first.id, first.name, first.memory_gb) == (GPU, "RTX 4090", 24)
    assert (first.secure_price, first.community_price) == (0.44, 0.31)
    assert (second.secure_price, second.community_price) == (2.5, None)
    assert server.ops() == ["gpus"]


async def test_an_order_is_sent_once_and_completely(make: MakeApi, server: Server, dialect: Dialect) -> None:
    ready_to_create(server, dialect, dialect.made("pod7"))
    assert await make().create_pod(ORDER) == "pod7"
    [sent] = [one for one in server.received if one.op == "create"]
    text = sent.text if dialect.name == "rest" else json.loads(sent.text)["query"]
    for value in (ORDER.name, ORDER.image, GPU, SECRET, START, "22/tcp", "SECURE", *ORDER.environment.values()):
        assert value in text
    assert sent.headers["Authorization"] == f"Bearer {KEY.value}"


async def test_terminating_a_pod_is_idempotent(make: MakeApi, server: Server, dialect: Dialect) -> None:
    server.script("terminate", dialect.ended(), dialect.absent())
    api = make()
    await api.terminate_pod("pod1")
    await api.terminate_pod("pod1")
    assert server.ops() == ["terminate", "terminate"]
    assert all("pod1" in one.path + one.text for one in server.received)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer({"detail": "x"}, status=401), "api_key_rejected"),
        (Answer({"detail": "x"}, status=403), "api_key_rejected"),
        (Answer({"detail": "x"}, status=402), "no_balance"),
        (Answer({"detail": "x"}, status=410), "api_gone"),
        (Answer(b"<html>sorry</html>", status=500), "api_unavailable"),
        (Answer(b"<html>sorry</html>"), "api_answer_invalid"),
        (Answer(b'{"pods": [{"id": "a"'), "api_answer_invalid"),
        (Answer(b""), "api_answer_invalid"),
        (Answer([]), "api_answer_invalid"),
        (Answer({}), "api_answer_invalid"),
        (Answer({"errors": [], "data": None}), "api_answer_invalid"),
        (Answer({"data": None}), "api_answer_invalid"),
        (Answer({"data": {"myself": {"pods": [{"id": 7}]}}, "pods": [{"id": 7}]}), "api_answer_invalid"),
        (Answer(b"[" * 100_000), "api_answer_invalid"),
        (Answer(b"x" * (9 * 1024 * 1024)), "api_answer_invalid"),
        (Answer({"pods": []}, headers={"Content-Encoding": "br"}), "api_answer_invalid"),
        (Answer(b"", status=302, headers={"Location": "http://127.0.0.1:1/elsewhere"}), "api_answer_invalid"),
        (Answer(manner="cut"), "api_unavailable"),
        (Answer(b" ", manner="drip"), "api_timeout"),
        (Answer(manner="hang"), "api_timeout"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.status}-{value.manner}",
)
async def test_a_failed_listing_is_an_error_with_its_code(
    make: MakeApi, server: Server, answer: Answer, code: str
) -> None:
    server.script("list", answer)
    limits = {"api": SHORT} if code == "api_timeout" else {}
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ProviderError) as caught:
            await make(**limits).list_pods()
    assert caught.value.code == code
    assert server.ops() == ["list"]
    if code == "api_key_rejected":
        assert KEY.source in caught.value.message


async def test_a_listing_without_an_account_is_not_an_empty_listing(
    make: MakeApi, server: Server, dialect: Dialect
) -> None:
    server.script("list", dialect.nothing())
    with pytest.raises(ProviderError) as caught:
        await make().list_pods()
    assert caught.value.code == "api_answer_invalid"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "12"}, 12.0),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:57 GMT", "Date": "Sun, 06 Nov 1994 08:49:37 GMT"}, 20.0),
        ({"Retry-After": "99999999"}, 300.0),
        ({"Retry-After": "soon"}, 5.0),
        ({}, 5.0),
    ],
)
async def test_a_rate_limit_says_how_long_to_wait(
    make: MakeApi, server: Server, headers: dict[str, str], seconds: float
) -> None:
    server.script("list", Answer({"detail": "slow down"}, status=429, headers=headers))
    with pytest.raises(RateLimitedError) as caught:
        await make().list_pods()
    assert caught.value.retry_after == seconds


async def test_no_capacity_is_reported_with_runpods_text(make: MakeApi, server: Server, dialect: Dialect) -> None:
    ready_to_create(server, dialect, dialect.no_capacity("Please refresh\nand try again."))
    with pytest.raises(ProviderError) as caught:
        await make().create_pod(ORDER)
    assert caught.value.code == "no_capacity"
    assert "Please refresh and try again" in caught.value.message
    assert not is_ambiguous(caught.value)


@pytest.mark.parametrize(
    "answer",
    [Answer(manner="cut"), Answer(b"<html>", status=502), Answer(b'{"id"', status=200), Answer(manner="hang")],
    ids=["cut", "html", "half", "hang"],
)
async def test_a_lost_answer_to_an_order_is_ambiguous_and_the_order_not_repeated(
    make: MakeApi, server: Server, dialect: Dialect, answer: Answer
) -> None:
    ready_to_create(server, dialect, answer)
    with pytest.raises(ProviderError) as caught:
        await make(api=SHORT).create_pod(ORDER)
    assert is_ambiguous(caught.value)
    assert server.ops().count("create") == 1


async def test_no_error_contains_the_key_or_the_order(
    make: MakeApi, server: Server, dialect: Dialect, helper_home: Path
) -> None:
    host_key, public = SECRET, ORDER.environment["PUBLIC_KEY"]
    echo = f"cannot place {host_key} for {KEY.value} with {public[:20]}"
    answers = [dialect.no_capacity(echo), dialect.problem(422, echo), dialect.problem(500, echo)]
    answers += [dialect.problem(status, echo) for status in (401, 403, 409, 404)]
    answers += [Answer(echo.encode()), Answer(manner="cut")]
    if isinstance(dialect, Sdk):
        answers += [dialect.error(echo), dialect.error(echo, "BAD_USER_INPUT"), dialect.error(echo, "UNAUTHENTICATED")]
    api = make()
    for answer in answers:
        ready_to_create(server, dialect, answer)
        with pytest.raises(ProviderError) as caught:
            await api.create_pod(ORDER)
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.as_dict())
        for secret in (host_key, KEY.value, public[:20], SECRET[4:16], KEY.value[4:16]):
            assert secret not in shown
        assert caught.value.__context__ is None
    assert KEY.value not in repr(api) + repr(KEY) + repr(vars(api))
    assert SECRET not in repr(ORDER)
    for file in (helper_home / "allocations").glob("*") if (helper_home / "allocations").exists() else []:
        if file.is_file():
            content = file.read_bytes()
            assert KEY.value.encode() not in content
            assert SECRET.encode() not in content
