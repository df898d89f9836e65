"""The same facts in the format of each API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.unit.providers.runpod.server import Answer

GPU = "NVIDIA GeForce RTX 4090"


@dataclass(frozen=True)
class State:
    """The state of a pod at RunPod."""

    id: str = "pod1"
    name: str = "glasshouse-a-b-c"
    state: str = "running"
    price: float = 0.44
    secret: str = ""


class Rest:
    """REST v2."""

    name = "rest"

    def pods(self, *states: State) -> Answer:
        return Answer({"pods": [self._pod(one) for one in states]})

    def gpus(self) -> Answer:
        common = {"pool": None, "manufacturer": "NVIDIA", "maxCount": {"secure": 8, "community": 4}}
        return Answer(
            {
                "gpus": [
                    {"id": GPU, "name": "RTX 4090", "memory": 24, "secure": True, "community": True}
                    | {"price": {"secure": 0.44, "community": 0.31}, "availability": "LOW"}
                    | common,
                    {"id": "NVIDIA H100", "name": "H100", "memory": 80, "secure": True, "community": False}
                    | {"price": {"secure": 2.5, "community": 0.0}, "availability": "NONE"}
                    | common,
                ]
            }
        )

    def made(self, pod_id: str = "pod1") -> Answer:
        return Answer(self._pod(State(id=pod_id, state="provisioning")), status=201)

    def ended(self) -> Answer:
        return Answer(status=204)

    def absent(self) -> Answer:
        return self.problem(404, "pod not found")

    def no_capacity(self, detail: str) -> Answer:
        return self.problem(400, detail)

    def nothing(self) -> Answer:
        return Answer({"pods": None})

    def problem(self, status: int, detail: str) -> Answer:
        return Answer(
            {"title": "Error", "status": status, "detail": detail},
            status=status,
            headers={"Content-Type": "application/problem+json"},
        )

    def _pod(self, one: State) -> dict[str, Any]:
        status = {"provisioning": "PROVISIONING", "starting": "STARTING", "exited": "EXITED"}.get(one.state, "RUNNING")
        running = one.state in {"running", "private"}
        direct = {"host": "195.26.233.3", "port": 34446, "username": "root", "command": "ssh"}
        ports = [{"private": 22, "public": 34446, "type": "tcp", "ip": "195.26.233.3"}]
        return {
            "id": one.id,
            "name": one.name,
            "image": "image",
            "args": "",
            "disk": 50,
            "ports": ["22/tcp"],
            "env": {"SECRET": one.secret},
            "registry": None,
            "status": status,
            "actions": ["terminate"],
            "mounts": {},
            "gpu": {"id": GPU, "count": 1},
            "cloud": "SECURE",
            "dataCenterId": None,
            "cudaVersion": None,
            "ssh": {"proxy": None, "direct": direct if one.state == "running" else None},
            "template": None,
            "cost": one.price,
            "locked": False,
            "globalNetworking": {"enabled": False},
            "runtime": {"uptime": 9, "ports": ports if one.state == "running" else []} if running else None,
            "createdAt": "2026-06-01T12:00:00Z",
            "startedAt": None,
        }


class Sdk:
    """GraphQL."""

    name = "sdk"

    def pods(self, *states: State) -> Answer:
        return Answer({"data": {"myself": {"pods": [self._pod(one) for one in states]}}})

    def gpus(self) -> Answer:
        first = {"id": GPU, "displayName": "RTX 4090", "memoryInGb": 24, "secureCloud": True, "communityCloud": True}
        second = {"id": "NVIDIA H100", "displayName": "H100", "memoryInGb": 80, "secureCloud": True}
        return Answer(
            {
                "data": {
                    "gpuTypes": [
                        first | {"securePrice": 0.44, "communityPrice": 0.31},
                        second | {"communityCloud": False, "securePrice": 2.5, "communityPrice": None},
                    ]
                }
            }
        )

    def made(self, pod_id: str = "pod1") -> Answer:
        made = {"id": pod_id, "imageName": "image", "env": [], "machineId": "m", "machine": {"podHostId": "h"}}
        return Answer({"data": {"podFindAndDeployOnDemand": made}})

    def ended(self) -> Answer:
        return Answer({"data": {"podTerminate": None}})

    def absent(self) -> Answer:
        return self.error("pod not found to terminate")

    def no_capacity(self, detail: str) -> Answer:
        text = "There are no longer any instances available with the requested specifications."
        return self.error(f"{text} {detail}")

    def nothing(self) -> Answer:
        return Answer({"data": {"myself": None}})

    def problem(self, status: int, detail: str) -> Answer:
        return Answer({"detail": detail}, status=status)

    def error(self, message: str, code: str = "") -> Answer:
        return Answer({"errors": [{"message": message, "extensions": {"code": code}}], "data": None})

    def _pod(self, one: State) -> dict[str, Any]:
        port = {"ip": "195.26.233.3", "privatePort": 22, "publicPort": 34446, "type": "tcp"}
        ports = {
            "running": [port | {"isIpPublic": True}],
            "private": [port | {"isIpPublic": False}],
            "starting": None,
        }
        return {
            "id": one.id,
            "name": one.name,
            "desiredStatus": "EXITED" if one.state == "exited" else "RUNNING",
            "costPerHr": one.price,
            "gpuCount": 1,
            "machineId": "m1",
            "machine": {"gpuDisplayName": "RTX 4090"},
            "env": [f"SECRET={one.secret}"],
            "runtime": {"ports": ports[one.state]} if one.state in ports else None,
        }


Dialect = Rest | Sdk
