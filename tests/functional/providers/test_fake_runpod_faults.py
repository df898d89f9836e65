"""Every fault of the fake RunPod, once over each API."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import httpx
import pytest

from tests.fake_runpod.client import FakeRunPod
from tests.fake_runpod.container import STRANGER
from tests.fake_runpod.views import CALL_FAULTS, POD_FAULTS, PodView
from tests.fake_runpod.wire import APIS, Api, Wire

NO_CAPACITY = "There are no longer any instances available with the requested specifications"
BOTH = pytest.mark.parametrize("api", APIS)


@pytest.fixture
def fake(swept_runpod: FakeRunPod) -> FakeRunPod:
    """A fake without pods and faults."""
    return swept_runpod


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The value of `true` once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := true():
            return value
        time.sleep(0.01)
    raise AssertionError("the condition did not become true")


def log_of(pod: PodView) -> str:
    """The pod's log, once its sshd listens and its start script has printed everything."""

    def whole() -> str | None:
        path = Path(pod.folder) / "container.log"
        text = path.read_text() if path.exists() else ""
        return text if "Server listening" in text and "ready to use" in text else None

    return str(until(whole))


def message(reply: httpx.Response) -> str:
    """An error's text, in the format of either API."""
    body = reply.json()
    if "errors" in body and "detail" not in body:
        return str(body["errors"][0]["message"])
    assert reply.headers["Content-Type"] == "application/problem+json" and body["status"] == reply.status_code
    return str(body["detail"])


@BOTH
@pytest.mark.parametrize(
    ("do", "how", "status"),
    [
        ("status", {"code": 503, "headers": {"Retry-After": "7"}, "body": "down"}, 503),
        ("html500", {}, 500),
        ("errors_empty", {}, 200),
        ("myself_null", {}, 200),
        ("gone410", {}, 410),
        ("rate_limited", {"seconds": 2.5}, 429),
        ("forbidden", {}, 403),
        ("unauthorized", {}, 401),
    ],
)
def test_a_scripted_fault_applies_to_one_listing(
    fake: FakeRunPod, api: Api, do: str, how: dict[str, Any], status: int
) -> None:
    wire = Wire(fake, api)
    fake.fault("list", do, after=1, **how)
    assert wire.rows() == []
    faulty = wire.listing()
    assert wire.rows() == []
    assert faulty.status_code == status
    assert [call.fault for call in fake.calls("list")][-3:] == [None, do, None]
    match do:
        case "status":
            assert (faulty.text, faulty.headers["Retry-After"]) == ("down", "7")
        case "html500":
            assert faulty.text.startswith("<html>") and faulty.headers["Content-Type"] == "text/html"
        case "errors_empty":
            assert faulty.json() == {"errors": [], "data": None}
        case "myself_null":
            assert faulty.json() == ({"data": {"myself": None}} if api == "graphql" else {"pods": None})
        case "rate_limited":
            assert faulty.headers["Retry-After"] == "3" and message(faulty)
        case _:
            assert message(faulty)


@BOTH
def test_answers_are_cut_dripped_hung_and_lost(fake: FakeRunPod, api: Api) -> None:
    wire = Wire(fake, api)
    fake.fault("list", "cut_json")
    with pytest.raises(json.JSONDecodeError):
        wire.listing().json()
    fake.fault("list", "drip", every=0.02)
    began = time.monotonic()
    assert wire.rows() == [] and time.monotonic() - began > 0.1
    fake.fault("any", "hang")
    with pytest.raises(httpx.ReadTimeout):
        Wire(fake, api, timeout=1.0).listing()
    assert until(lambda: [call for call in fake.calls("list") if call.fault == "hang" and call.status == 0])
    fake.fault("create", "lose_reply")
    with pytest.raises(httpx.RemoteProtocolError):
        wire.create(name="lost")
    assert [pod.name for pod in fake.pods()] == ["lost"]
    assert wire.rows()[0]["name"] == "lost"


def test_clients_that_disconnect_midway_leave_nothing_behind(fake: FakeRunPod) -> None:
    pod_id = Wire(fake, "v2").made()
    fake.fault("list", "drip", every=0.02)
    key = {"Authorization": f"Bearer {fake.key}"}
    for path in ("/v2/pods", f"/v2/pods/{pod_id}/logs"):
        with httpx.stream("GET", fake.url + path, headers=key) as reply:
            next(reply.iter_raw())
    assert until(lambda: [call.status for call in fake.calls() if call.op in {"list", "logs"}] == [0, 200])
    fake.fault("logs", "html500")
    assert httpx.get(f"{fake.url}/v2/pods/{pod_id}/logs", headers=key).status_code == 500
    assert httpx.get(f"{fake.url}/v2/pods/none/logs", headers=key).status_code == 404


@BOTH
def test_a_creation_is_refused_or_late_or_only_pretended(fake: FakeRunPod, api: Api) -> None:
    wire = Wire(fake, api)
    fake.fault("create", "no_capacity")
    refused = wire.create()
    assert (refused.status_code, message(refused)[: len(NO_CAPACITY)]) == (
        200 if api == "graphql" else 400,
        NO_CAPACITY,
    )
    fake.fault("create", "no_balance")
    refused = wire.create()
    assert refused.status_code == (200 if api == "graphql" else 402) and "balance" in message(refused)
    fake.fault("create", "ignored")
    assert wire.made(name="ghost")
    assert fake.pods() == [] and wire.rows() == []
    fake.fault("create", "late", seconds=0.2)
    assert wire.create(name="late").status_code == 500
    assert wire.rows() == []
    assert until(lambda: [row["name"] for row in wire.rows()]) == ["late"]


@BOTH
def test_a_pod_costs_more_is_doubled_or_stays_listed(fake: FakeRunPod, api: Api) -> None:
    wire = Wire(fake, api)
    fake.fault("create", "price", price=9.5)
    fake.fault("create", "twin")
    pod_id = wire.made(name="dear")
    rows = wire.rows()
    assert [row["name"] for row in rows] == ["dear", "dear"] and len({row["id"] for row in rows}) == 2
    assert {row["cost" if api == "v2" else "costPerHr"] for row in rows} == {9.5}
    other = next(row["id"] for row in rows if row["id"] != pod_id)
    fake.fault("terminate", "ignored", pod=other)
    fake.fault("terminate", "linger", seconds=0.3, pod=pod_id)
    for each in (pod_id, other):
        assert wire.terminate(each).status_code in {200, 204}
    assert [pod.id for pod in fake.pods()] == [other]
    assert {row["id"] for row in wire.rows()} == {pod_id, other}
    assert until(lambda: [row["id"] for row in wire.rows()] == [other])


@BOTH
def test_a_pod_never_gets_as_far_as_a_public_port(fake: FakeRunPod, api: Api) -> None:
    wire = Wire(fake, api)
    fake.configure(pull_seconds=0.0)
    for do in ("pull_forever", "no_port", "private_port"):
        fake.fault("create", do)
        wire.made(name=do)
    until(lambda: [pod.status for pod in fake.pods()] == ["pulling", "starting", "running"])
    pulled, portless, private = wire.rows()
    assert pulled["runtime"] is None
    if api == "v2":
        assert (pulled["status"], portless["status"], private["status"]) == ("PROVISIONING", "STARTING", "RUNNING")
        assert [row["ssh"]["direct"] for row in (pulled, portless, private)] == [None] * 3
        assert private["runtime"]["ports"][0]["public"] is None
    else:
        assert portless["runtime"] == {"ports": None}
        assert [port["isIpPublic"] for port in private["runtime"]["ports"]] == [False]


async def _presented(pod: PodView) -> str:
    """The fingerprint of the host key that the server presents."""
    key = await asyncssh.get_server_host_key(pod.host, pod.port, config=None)
    assert key is not None
    return key.get_fingerprint()


async def test_a_pods_server_starts_late_or_has_other_keys(fake: FakeRunPod) -> None:
    wire = Wire(fake, "v2")
    key = asyncssh.generate_private_key("ssh-ed25519")
    env = {"PUBLIC_KEY": key.export_public_key().decode().strip()}
    fake.fault("create", "ssh_after", seconds=0.4)
    fake.fault("create", "other_host_key")
    fake.fault("create", "other_client_key")
    pod_id = wire.made(env=env)
    pod = until(lambda: next((pod for pod in fake.pods() if pod.id == pod_id and pod.status == "running"), None))
    with pytest.raises(ConnectionRefusedError):
        await _presented(pod)
    log = log_of(pod)
    assert await _presented(pod) not in log
    assert STRANGER in (Path(pod.folder) / "root" / ".ssh" / "authorized_keys").read_text()
    with pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect(
            pod.host, pod.port, username="root", client_keys=[key], known_hosts=None, config=None, agent_path=None
        )
    fake.fault("create", "other_host_key", printed=True)
    shown = fake.pod(wire.made(env=env))
    log = log_of(shown)
    assert await _presented(shown) in log


async def test_a_small_disk_is_full_soon(fake: FakeRunPod) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    fake.fault("create", "small_disk", mib=2)
    pod = fake.pod(Wire(fake, "v2").made(env={"PUBLIC_KEY": key.export_public_key().decode().strip()}))
    log_of(pod)
    async with (
        asyncssh.connect(
            pod.host, pod.port, username="root", client_keys=[key], known_hosts=None, config=None, agent_path=None
        ) as connection,
        connection.start_sftp_client() as sftp,
    ):
        assert (await sftp.statvfs(".")).blocks * 4096 == 2 * 1024 * 1024
        with pytest.raises(asyncssh.SFTPFailure):
            async with sftp.open("large", "wb") as file:
                await file.write(bytes(3 * 1024 * 1024))


def test_every_fault_is_tested_here_and_invalid_ones_are_refused(fake: FakeRunPod) -> None:
    here = Path(__file__)
    text = "".join(file.read_text(encoding="utf-8") for file in (here, here.with_name("test_runpod_faults.py")))
    assert [do for do in sorted(CALL_FAULTS | POD_FAULTS) if f'"{do}"' not in text] == []
    for on, do in (("list", "nonsense"), ("nonsense", "hang"), ("list", "twin"), ("create", "linger")):
        with pytest.raises(ValueError, match=r"nonsense|happen"):
            fake.fault(on, do)
    with pytest.raises(ValueError, match="takes seconds"):
        fake.fault("create", "late", second=1)
    with pytest.raises(ValueError, match="unknown field"):
        fake.configure(pull_second=1)
