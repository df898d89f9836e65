"""The messages between the fake and a test over `/_fake/`: frozen records, and the names of faults."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Stock = Literal["none", "low", "medium", "high"]
Phase = Literal["pulling", "starting", "running", "exited"]

OPERATIONS: Final = frozenset(
    {"list", "get", "create", "terminate", "stop", "start", "restart", "gpus", "gpu", "logs", "user", "any"}
)
CALL_FAULTS: Final[dict[str, tuple[str, ...]]] = {
    "status": ("code", "body", "headers", "kind"),
    "html500": (),
    "cut_json": (),
    "hang": ("done",),
    "drip": ("every",),
    "lose_reply": (),
    "late": ("seconds",),
    "errors_empty": (),
    "myself_null": (),
    "no_capacity": (),
    "no_balance": (),
    "ignored": (),
    "gone410": (),
    "rate_limited": ("seconds",),
    "forbidden": (),
    "unauthorized": (),
}
"""Faults of a call: it is answered wrongly; the first that matches applies. Each with the names of its values."""
POD_FAULTS: Final[dict[str, tuple[str, ...]]] = {
    "price": ("price",),
    "twin": (),
    "linger": ("seconds",),
    "unlisted": ("seconds",),
    "pull_forever": (),
    "no_port": (),
    "private_port": (),
    "ssh_after": ("seconds",),
    "other_host_key": ("printed",),
    "other_client_key": (),
    "small_disk": ("mib",),
}
"""Faults of a pod: the call is answered correctly, but the pod differs; all that match apply together."""


class _View(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Gpu(_View, frozen=True, kw_only=True):
    """One type in the catalogue. Prices in USD per hour for one GPU; None if that cloud does not offer it.

    With a stock of `none` no pod of it can be created.
    """

    id: str
    name: str
    memory: int
    secure: float | None
    community: float | None = None
    stock: Stock = "high"
    most: int = 8


class Settings(_View, frozen=True, kw_only=True):
    """Times in seconds. `pull_seconds` until the container starts, `port_seconds` from there to its ports,
    `ssh_delay` before its sshd listens.

    `pod_key` is what a pod's own key may do to its pod: `terminate` includes `stop`. More calls than
    `calls_per_minute` are answered with 429; None for no limit.
    """

    pull_seconds: float = 0.2
    port_seconds: float = 0.0
    ssh_delay: float = 0.0
    pod_key: Literal["terminate", "stop", "nothing"] = "terminate"
    calls_per_minute: int | None = None


class PodView(_View, frozen=True, kw_only=True):
    """A pod that actually exists, whatever the API reports. `price` in USD per hour, `pid` its PID 1 on this machine,
    `env` the container's environment with its secrets; `port` is where its sshd is or will be.
    """

    id: str
    name: str
    status: Phase
    gpu: str
    price: float
    host: str
    port: int
    folder: str
    env: dict[str, str]
    pid: int | None
    created_at: str


class PastPod(_View, frozen=True, kw_only=True):
    """A pod that was created at any time. Times on the monotonic clock; `ended` is None while it exists.

    `ended_by`: `account`, `pod` (its own key) or `fake` (it vanished, or the program ended).
    """

    id: str
    name: str
    price: float
    foreign: bool
    created: float
    ended: float | None
    ended_by: str | None


class Call(_View, frozen=True, kw_only=True):
    """One API call. `at` is its arrival on the monotonic clock; `status` is 0 if no complete answer was given.

    `caller`: `account`, `pod`, `unknown` (an unknown key) or `nobody`. `headers` are without the key. `defect` says how
    the fake's own answer broke the published contract.
    """

    op: str
    api: Literal["graphql", "v2"]
    at: float
    status: int
    pod_id: str | None
    caller: str
    headers: dict[str, str]
    fault: str | None = None
    defect: str | None = None


class Rule(_View, frozen=True, kw_only=True):
    """A scripted fault: after `after` matching calls it applies to the next `times`; None means until cleared.

    `api` and `pod` restrict it. `how` holds the fault's own values.
    """

    on: str
    do: str
    times: int | None = 1
    after: int = 0
    api: Literal["graphql", "v2"] | None = None
    pod: str | None = None
    how: dict[str, object] = {}
