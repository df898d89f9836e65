"""The fake RunPod: the life of pods over both APIs, real logins, events, and that no pod outlives it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
import httpx
import psutil
import pytest

from tests.fake_runpod.client import ROOT, FakeRunPod
from tests.fake_runpod.views import Gpu, PodView
from tests.fake_runpod.wire import APIS, Api, Wire
from tests.needs import OPENAPI

T = TypeVar("T")
START = "bash -c 'printenv GLASSHOUSE_START | base64 -d > $HOME/.glasshouse-start && exec bash $HOME/.glasshouse-start'"
SCRIPT = """
base64 -d <<< "$GLASSHOUSE_HOST_KEY" > /etc/ssh/ssh_host_ed25519_key
chmod 600 /etc/ssh/ssh_host_ed25519_key
ssh-keygen -y -f /etc/ssh/ssh_host_ed25519_key > /etc/ssh/ssh_host_ed25519_key.pub
exec env -u GLASSHOUSE_HOST_KEY -u GLASSHOUSE_START bash "$GLASSHOUSE_IMAGE_START"
"""
SDK = """
import json, os, runpod
runpod.api_key = os.environ["RUNPOD_API_KEY"]
made = runpod.create_pod("sdk-pod", "image:1", "NVIDIA L4", cloud_type="SECURE", ports="22/tcp", docker_args=None,
                         volume_in_gb=0, container_disk_in_gb=20, env={"SEEN": "a b=c"})
pods, one = runpod.get_pods(), runpod.get_pod(made["id"])
stopped, resumed = runpod.stop_pod(made["id"]), runpod.resume_pod(made["id"], 1)
ended = runpod.terminate_pod(made["id"])
errors = []
for wrong in (lambda: runpod.create_pod('qu"ote', "image:1", "NVIDIA L4"), lambda: runpod.get_endpoints(),
              lambda: runpod.create_pod("p", "image:1", "NVIDIA H200"), lambda: runpod.get_gpu("none")):
    try:
        wrong()
    except Exception as error:
        errors.append(f"{type(error).__name__}: {error}")
runpod.api_key = "wrong"
try:
    runpod.get_pods()
except runpod.error.AuthenticationError as error:
    errors.append(f"{type(error).__name__}: {error}")
print(json.dumps({"gpus": runpod.get_gpus.__name__, "made": made, "pods": pods, "one": one, "stopped": stopped,
                  "resumed": resumed, "ended": ended, "errors": errors}))
"""


def until(true: Callable[[], T | None], seconds: float = 60.0) -> T:
    """The value of `true` once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := true():
            return value
        time.sleep(0.01)
    raise AssertionError("the condition did not become true")


def made(fake: FakeRunPod, api: Api = "v2", **order: Any) -> PodView:
    """A pod whose sshd listens."""
    pod_id = Wire(fake, api).made(**order)
    return until(lambda: listening(fake.pod(pod_id)))


def dead(process: psutil.Process) -> bool:
    """Whether it has ended; its parent may not have waited for it yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def up(fake: FakeRunPod, pod_id: str) -> PodView:
    """A pod whose sshd listens."""
    return until(lambda: listening(fake.pod(pod_id)))


def listening(pod: PodView) -> PodView | None:
    """The pod, once its log says that sshd listens."""
    log = Path(pod.folder) / "container.log"
    return pod if log.exists() and f"Server listening on 127.0.0.1 port {pod.port}" in log.read_text() else None


def public_line(key: asyncssh.SSHKey) -> str:
    """A public key line as in authorized_keys."""
    return key.export_public_key().decode().strip()


@asynccontextmanager
async def login(
    pod: PodView, key: asyncssh.SSHKey, host_key: asyncssh.SSHKey | None = None
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A connection, with a pinned host key if one is given."""
    trusted = (
        None if host_key is None else asyncssh.import_known_hosts(f"[{pod.host}]:{pod.port} {public_line(host_key)}")
    )
    async with asyncssh.connect(
        pod.host, pod.port, username="root", client_keys=[key], known_hosts=trusted, config=None, agent_path=None
    ) as connection:
        yield connection


async def output_of(connection: asyncssh.SSHClientConnection, command: str) -> str:
    """The output of a command."""
    return str((await connection.run(command, check=True)).stdout).strip()


def test_it_starts_fast_and_uses_no_cpu_time_while_idle(swept_runpod: FakeRunPod, tmp_path: Path) -> None:
    second = FakeRunPod.start(tmp_path)
    starting = psutil.Process(second.process.pid).cpu_times()  # CPU time, which other load does not change
    second.stop()
    made(swept_runpod)
    process = psutil.Process(swept_runpod.process.pid)
    before = process.cpu_times()
    time.sleep(0.5)  # the window of the measurement
    after = process.cpu_times()
    assert starting.user + starting.system < 3  # under a second on a fast machine
    assert after.user + after.system - before.user - before.system <= 0.02


@pytest.mark.parametrize("api", APIS)
def test_a_pod_is_pulled_then_has_ports_then_answers(swept_runpod: FakeRunPod, api: Api) -> None:
    swept_runpod.configure(port_seconds=0.2)
    wire = Wire(swept_runpod, api)
    pod_id = wire.made(name="a-pod")
    phases: list[Any] = []

    def is_running() -> bool:
        (row,) = wire.rows()
        assert row["id"] == pod_id and row["name"] == "a-pod"
        phase = (row["status"], row["ssh"]["direct"] is not None) if api == "v2" else _graphql_phase(row)
        if phase not in phases:
            phases.append(phase)
        return phase[-1] is True

    until(is_running)
    if api == "v2":
        assert phases == [("PROVISIONING", False), ("STARTING", False), ("RUNNING", True)]
    else:
        assert phases == [("RUNNING", None, False), ("RUNNING", "no ports", False), ("RUNNING", "ports", True)]
    assert up(swept_runpod, pod_id).price == 0.43
    assert wire.terminate(pod_id).status_code in {200, 204}
    assert wire.rows() == [] and swept_runpod.pods() == []
    (past,) = swept_runpod.ever()
    assert past.ended is not None and past.ended > past.created and past.ended_by == "account"


def _graphql_phase(row: dict[str, Any]) -> tuple[str, str | None, bool]:
    runtime = row["runtime"]
    ports = runtime and runtime["ports"]
    public = bool(ports) and ports[0]["isIpPublic"] and ports[0]["privatePort"] == 22
    return row["desiredStatus"], runtime and ("ports" if ports else "no ports"), bool(public)


@pytest.mark.parametrize("api", APIS)
async def test_the_host_key_from_the_environment_is_the_one_that_answers(swept_runpod: FakeRunPod, api: Api) -> None:
    key, host_key = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
    env = {
        "PUBLIC_KEY": public_line(key),
        "GLASSHOUSE_HOST_KEY": base64.b64encode(host_key.export_private_key()).decode(),
        "GLASSHOUSE_START": base64.b64encode(SCRIPT.encode()).decode(),
    }
    pod = made(swept_runpod, api, env=env, args=START)
    home = f"{pod.folder}/root"
    async with login(pod, key, host_key) as connection:
        assert await output_of(connection, "echo $HOME; pwd; echo $RUNPOD_POD_ID") == f"{home}\n{home}\n{pod.id}"
        async with connection.start_sftp_client() as sftp:
            assert await sftp.realpath(".") == home
            async with sftp.open("there", "wb") as file:
                await file.write(b"bytes")
    assert (Path(home) / "there").read_bytes() == b"bytes"
    until(lambda: "ready to use" in (Path(pod.folder) / "container.log").read_text())
    kept = (Path(pod.folder) / "etc" / "rp_environment").read_text()
    assert "RUNPOD_API_KEY" in kept and "GLASSHOUSE_HOST_KEY" not in kept and "PUBLIC_KEY" not in kept
    with httpx.stream(
        "GET",
        f"{swept_runpod.url}/v2/pods/{pod.id}/logs?tail=100",
        headers={"Authorization": f"Bearer {swept_runpod.key}"},
    ) as reply:
        lines = (json.loads(line[6:])["line"] for line in reply.iter_lines() if line.startswith("data: "))
        assert any(host_key.get_fingerprint() in line for line in lines)
    with pytest.raises(asyncssh.PermissionDenied):
        async with login(pod, asyncssh.generate_private_key("ssh-ed25519")):
            pass


async def test_detached_processes_die_with_the_pod_and_each_pod_has_its_own_first_process(
    swept_runpod: FakeRunPod,
) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    first, second = (made(swept_runpod, env={"PUBLIC_KEY": public_line(key)}) for _ in range(2))
    assert first.pid != second.pid and first.port != second.port
    async with login(first, key) as connection:
        await output_of(connection, "setsid sleep 1000 >/dev/null 2>&1 </dev/null &")
        assert await output_of(connection, "ps -p 1 -o args=") == f"bash {first.folder}/start.sh"
    assert first.pid is not None
    inside = psutil.Process(first.pid).children(recursive=True)
    assert any(process.cmdline() == ["sleep", "1000"] for process in inside)
    Wire(swept_runpod, "v2").terminate(first.id)
    assert all(map(dead, inside))
    assert second.pid is not None and psutil.pid_exists(second.pid)


async def test_a_pod_moves_restarts_vanishes_and_loses_its_links(swept_runpod: FakeRunPod) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    pod = made(swept_runpod, env={"PUBLIC_KEY": public_line(key)})
    async with login(pod, key) as connection:
        host_key = connection.get_server_host_key()
        assert host_key is not None
        assert swept_runpod.drop_links(pod.id) >= 1
        await asyncio.wait_for(connection.wait_closed(), 60)
    async with login(pod, key, host_key) as connection:
        moved = swept_runpod.move(pod.id)
        await asyncio.wait_for(connection.wait_closed(), 60)
    assert moved.port != pod.port
    until(lambda: listening(moved))
    async with login(moved, key, host_key) as connection:
        assert swept_runpod.freeze(pod.id) >= 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(output_of(connection, "echo back"), 0.3)
        assert not connection.is_closed()
        swept_runpod.thaw(pod.id)
        assert await asyncio.wait_for(output_of(connection, "echo back; touch left"), 60) == "back"
    swept_runpod.freeze(pod.id, server=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncssh.get_server_host_key(moved.host, moved.port, config=None), 0.3)
    swept_runpod.thaw(pod.id)
    again = swept_runpod.restart(pod.id)
    assert (again.port, again.id) == (moved.port, pod.id) and again.pid not in {None, pod.pid}
    assert not (Path(pod.folder) / "root" / "left").exists()
    swept_runpod.vanish(pod.id)
    assert Wire(swept_runpod, "graphql").rows() == []
    assert [past.ended_by for past in swept_runpod.ever()] == ["fake"]


def test_foreign_pods_prices_and_stock_are_what_a_test_says(swept_runpod: FakeRunPod) -> None:
    swept_runpod.set_gpus(
        [
            Gpu(id="Some GPU", name="Some", memory=8, secure=1.5),
            Gpu(id="None", name="N", memory=8, secure=1, stock="none"),
        ]
    )
    foreign = swept_runpod.foreign("theirs", "Some GPU")
    wire = Wire(swept_runpod, "v2")
    assert [row["name"] for row in wire.rows()] == ["theirs"] and foreign.price == 1.5
    refused = wire.create(gpu="None")
    assert refused.status_code == 400 and "no longer any instances" in refused.json()["detail"]
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert [past.foreign for past in swept_runpod.ever()] == [True]
    gpus = wire.call("GET", "/v2/catalog/gpus?include=AVAILABILITY&product=POD").json()["gpus"]
    assert [(gpu["price"]["secure"], gpu["availability"]) for gpu in gpus] == [(1.5, "HIGH"), (1, "NONE")]
    assert wire.call("GET", "/v2/catalog/gpus/Some%20GPU").json()["memory"] == 8


def test_a_pods_own_key_terminates_that_pod_only(swept_runpod: FakeRunPod) -> None:
    first, second = made(swept_runpod), made(swept_runpod)
    own = Wire(swept_runpod, "v2", key=first.env["RUNPOD_API_KEY"])
    assert own.listing().status_code == 403
    assert own.terminate(second.id).status_code == 403
    swept_runpod.configure(pod_key="stop")
    assert own.terminate(first.id).status_code == 403
    assert own.call("POST", f"/v2/pods/{first.id}/action", {"action": "stop"}).json()["status"] == "EXITED"
    swept_runpod.configure(pod_key="terminate")
    assert own.terminate(first.id).status_code == 204
    assert [pod.id for pod in swept_runpod.pods()] == [second.id]
    assert swept_runpod.ever()[0].ended_by == "pod"
    assert [call.caller for call in swept_runpod.calls("terminate")] == ["pod"] * 3


def test_calls_are_recorded_without_the_key_and_strangers_are_refused(swept_runpod: FakeRunPod) -> None:
    for api in APIS:
        assert Wire(swept_runpod, api, key="wrong").listing().status_code == 401
        assert Wire(swept_runpod, api).listing().status_code == 200
    calls = swept_runpod.calls("list")
    assert [(call.api, call.status, call.caller) for call in calls] == [
        ("graphql", 401, "unknown"),
        ("graphql", 200, "account"),
        ("v2", 401, "unknown"),
        ("v2", 200, "account"),
    ]
    assert swept_runpod.key not in repr(calls) and "Authorization" not in calls[0].headers
    swept_runpod.configure(calls_per_minute=3)
    statuses = [Wire(swept_runpod, "v2").listing() for _ in range(4)]
    assert [reply.status_code for reply in statuses] == [200, 200, 200, 429]
    assert 0 < int(statuses[-1].headers["Retry-After"]) <= 60


def test_requests_and_replies_are_checked_against_the_published_contract(swept_runpod: FakeRunPod) -> None:
    if not swept_runpod.has_contract:
        pytest.skip(OPENAPI)
    from tests.fake_runpod.contract import Contract, document_path

    wire = Wire(swept_runpod, "v2")
    order = {"name": "n", "image": "i", "gpu": {"id": "NVIDIA L4"}, "ports": ["22/tcp"]}
    wrong = [{**order, "gpuTypeId": "x"}, {**order, "disk": "20"}, {"name": "n", "gpu": {"id": "NVIDIA L4"}}]
    for body in wrong:
        reply = wire.call("POST", "/v2/pods", body)
        assert reply.status_code == 422 and reply.json()["errors"], body
    assert wire.call("POST", "/v2/pods", {**order, "env": {"SECRET": 1}}).status_code == 422
    assert wire.call("GET", "/v2/catalog/gpus?include=PRICES&product=POD").status_code == 422
    assert wire.call("GET", "/v2/pods/x/logs?tail=9999").status_code == 422
    assert swept_runpod.ever() == []
    contract = Contract(document_path())
    good = b'{"title": "t", "status": 404, "detail": "d"}'
    assert contract.reply_faults("/v2/pods/{id}", "get", 404, "application/problem+json", good) == []
    assert contract.reply_faults("/v2/pods/{id}", "get", 404, "application/json", good)
    assert contract.reply_faults("/v2/pods", "get", 200, "application/json", b'{"pods": [{}]}')
    assert contract.reply_faults("/v2/pods/{id}", "delete", 204, "application/json", b"{}")


def test_the_pinned_sdk_gets_every_field_that_it_queries(swept_runpod: FakeRunPod, tmp_path: Path) -> None:
    environment = {**os.environ, **swept_runpod.environment(), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SDK], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report["made"]) == {"id", "imageName", "env", "machineId", "machine"}
    assert [pod["costPerHr"] for pod in report["pods"]] == [0.43] and report["one"]["name"] == "sdk-pod"
    assert "SEEN=a b=c" in report["one"]["env"] and report["one"]["machine"] == {"gpuDisplayName": "L4"}
    assert (report["stopped"]["desiredStatus"], report["resumed"]["desiredStatus"]) == ("EXITED", "RUNNING")
    assert report["ended"] is None and swept_runpod.pods() == []
    quote, endpoints, stock, unknown, key = report["errors"]
    assert quote.startswith("QueryError: Syntax Error") and endpoints.startswith("QueryError: Cannot query field")
    assert "no longer any instances" in stock and unknown.startswith("ValueError") and key.startswith("Authentication")


async def test_eight_pods_at_once_work(swept_runpod: FakeRunPod) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    wire = Wire(swept_runpod, "v2")
    ids = [wire.made(name=f"pod-{number}", env={"PUBLIC_KEY": public_line(key)}) for number in range(8)]
    pods = [up(swept_runpod, pod_id) for pod_id in ids]

    async def home(pod: PodView) -> str:
        async with login(pod, key) as connection:
            return await output_of(connection, "echo $HOME")

    assert await asyncio.gather(*map(home, pods)) == [f"{pod.folder}/root" for pod in pods]


async def test_a_container_whose_first_process_ends_is_exited_and_still_listed(swept_runpod: FakeRunPod) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    pod = made(swept_runpod, env={"PUBLIC_KEY": public_line(key)})
    async with login(pod, key) as connection:
        await connection.run(
            "kill -9 1; kill -TERM 1; echo $? > survived"
        )  # PID 1 ignores signals from its own namespace
        assert swept_runpod.pod(pod.id).status == "running"
        await connection.run("kill -9 -1")
    until(lambda: swept_runpod.pod(pod.id).status == "exited")
    (row,) = Wire(swept_runpod, "v2").rows()
    assert (row["status"], row["ssh"]["direct"], row["cost"]) == ("EXITED", None, 0.0)
    (other_row,) = Wire(swept_runpod, "graphql").rows()
    assert (other_row["desiredStatus"], other_row["runtime"]) == ("EXITED", None)


def test_pods_do_not_outlive_a_killed_fake(fake_runpod: FakeRunPod) -> None:
    pods = [made(fake_runpod), made(fake_runpod)]
    inside = [
        each for pod in pods if pod.pid for each in [psutil.Process(pod.pid), *psutil.Process(pod.pid).children()]
    ]
    assert len(inside) >= 4
    fake_runpod.process.kill()
    fake_runpod.process.wait(60)
    until(lambda: all(map(dead, inside)))


def test_a_fake_ends_with_its_parent(can_run_pods: None, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.fake_runpod.client import FakeRunPod\n"
        "fake = FakeRunPod.start(Path(sys.argv[1])); print(fake.process.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None and parent.stdin is not None
    fake = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    until(lambda: dead(fake))
