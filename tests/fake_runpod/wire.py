"""Both APIs without a client library: for tests of the fake itself, which need the raw answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import httpx

if TYPE_CHECKING:
    from tests.fake_runpod.client import FakeRunPod

Api = Literal["graphql", "v2"]
APIS: Final[tuple[Api, ...]] = ("graphql", "v2")
GPU: Final = "NVIDIA L4"
_ROW: Final = "id name desiredStatus costPerHr runtime { ports { ip isIpPublic privatePort publicPort type } }"


@dataclass(frozen=True)
class Wire:
    """One API of a fake, with the account's key unless another is given."""

    fake: FakeRunPod
    api: Api
    key: str | None = None
    timeout: float = 10.0

    def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        """One HTTP exchange; raises httpx's errors."""
        headers = {"Authorization": f"Bearer {self.key or self.fake.key}"}
        with httpx.Client(base_url=self.fake.url, trust_env=False, timeout=self.timeout, verify=False) as client:  # noqa: S501 - no TLS here
            return client.request(method, path, json=body, headers=headers)

    def graphql(self, query: str) -> httpx.Response:
        """One GraphQL document."""
        return self.call("POST", "/graphql", {"query": query})

    def listing(self) -> httpx.Response:
        """Every pod."""
        if self.api == "v2":
            return self.call("GET", "/v2/pods")
        return self.graphql(f"query {{ myself {{ pods {{ {_ROW} }} }} }}")

    def create(
        self, name: str = "pod", *, env: dict[str, str] | None = None, args: str = "", gpu: str = GPU
    ) -> httpx.Response:
        """One pod with 22/tcp."""
        if self.api == "v2":
            order = {"name": name, "image": "image:1", "args": args, "env": env or {}, "disk": 20, "startSsh": True}
            return self.call("POST", "/v2/pods", {**order, "gpu": {"id": gpu, "count": 1}, "ports": ["22/tcp"]})
        pairs = ", ".join(f"{{ key: {json.dumps(k)}, value: {json.dumps(v)} }}" for k, v in (env or {}).items())
        fields = f'name: "{name}", imageName: "image:1", cloudType: SECURE, startSsh: true, gpuTypeId: "{gpu}"'
        fields += f', gpuCount: 1, ports: "22/tcp", dockerArgs: {json.dumps(args)}, env: [{pairs}]'
        return self.graphql(f"mutation {{ podFindAndDeployOnDemand(input: {{{fields}}}) {{ id env machineId }} }}")

    def terminate(self, pod_id: str) -> httpx.Response:
        """Terminate one pod."""
        if self.api == "v2":
            return self.call("DELETE", f"/v2/pods/{pod_id}")
        return self.graphql(f'mutation {{ podTerminate(input: {{ podId: "{pod_id}" }}) }}')

    def rows(self) -> list[dict[str, Any]]:
        """The rows of a successful listing."""
        body = self.listing().json()
        rows = body["pods"] if self.api == "v2" else body["data"]["myself"]["pods"]
        assert isinstance(rows, list)
        return rows

    def made(self, **order: Any) -> str:
        """The id of a new pod."""
        body = self.create(**order).json()
        return str(body["id"] if self.api == "v2" else body["data"]["podFindAndDeployOnDemand"]["id"])
