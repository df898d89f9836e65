"""Starting and resuming runs: inputs are validated here, then a detached runner process takes over."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from engine.errors import GlasshouseError, RunError, StoreError, UsageError
from engine.plan import Plan, checked, plan_digest
from engine.runner.folder import LOGS, RunFolder
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.worker.isolation.binding import BIND_NOW

if TYPE_CHECKING:
    from engine.attestation.policy import Policy

INPUTS: Final = "inputs.json"
DELEGATION_SECONDS: Final = 8 * 24 * 3600


def start_run(
    home: Path,
    plan: Plan,
    *,
    data_file: Path | None = None,
    model_folder: Path | None = None,
    passphrase: str | None = None,
    policy: Policy | None = None,
) -> str:
    """Validate a run, enter it as queued and start its runner; returns the run's id.

    `policy` may narrow the built-in one, never widen it (`policy_older`, `policy_loosened`).
    The operator's signing key is unlocked once, to sign a delegation to a run key that the runner holds alone.
    Raises `GlasshouseError` of every kind of bad input, and then leaves nothing behind.
    """
    from engine.attestation.policy import checked_policy, default_policy
    from engine.attestation.receipts import delegate
    from engine.payload.build import plan_with_digests
    from engine.providers import preflight
    from engine.sealing.keys import OperatorKeys
    from engine.sealing.runkey import RunKey

    plan = checked(plan)
    chosen = default_policy() if policy is None else checked_policy(policy, default_policy())
    preflight(plan.provider.name, home)
    plan = _with_own_name(home, plan)
    plan = checked(plan_with_digests(plan, data_file=data_file, model_folder=model_folder))
    run_id = secrets.token_hex(6)
    with Writer(home) as writer:
        keys = OperatorKeys.ensure(home / "keys", passphrase)
        folder = RunFolder(home, run_id)
        folder.create()
        try:
            run_key = RunKey.create(folder.path, run_id)
            delegation = delegate(
                keys.signing, run_key.public, run_id=run_id, plan_digest=plan_digest(plan), seconds=DELEGATION_SECONDS
            )
            folder.write_json(
                INPUTS,
                {
                    "dataFile": str(data_file.resolve()) if data_file else None,
                    "modelFolder": str(model_folder.resolve()) if model_folder else None,
                    "delegation": delegation,
                    "policy": msgspec.to_builtins(chosen),
                },
            )
            writer.create_run(run_id, plan)
        except BaseException:
            folder.destroy()
            raise
        try:
            writer.receipt(run_id, "delegation", delegation)
            writer.evidence(
                run_id, "operator", {"signing": keys.signing_public.hex(), "recipient": keys.recipient_public.hex()}
            )
            _spawn(writer, run_id)
        except GlasshouseError as error:
            with contextlib.suppress(StoreError):
                writer.transition(run_id, "run", "failed", f"{error.code}: {error.message}")
                folder.destroy()
            raise
    return run_id


def _with_own_name(home: Path, plan: Plan) -> Plan:
    """The plan with what it runs on under a name of our own: plans are published, a pod's addresses are made from the
    provider's id, and a static host's name may be its address.
    """
    from engine.providers.settings import load_settings
    from engine.runner.allocation import kept_allocation
    from engine.runner.hosts import chosen_host
    from engine.store.views import RENTED

    wanted = plan.provider.allocation
    if plan.provider.name == "static":
        name = chosen_host(home, load_settings(home), wanted)
    elif wanted is not None and plan.provider.name in RENTED:
        with Reader(home) as reader:
            name = kept_allocation(reader, wanted).id
    else:
        return plan
    return msgspec.structs.replace(plan, provider=msgspec.structs.replace(plan.provider, allocation=name))


def resume_run(home: Path, run_id: str) -> None:
    """Start a runner for an unfinished run that nobody is running; raises `UsageError` or `RunError`."""
    with Reader(home) as reader:
        summary = reader.run(run_id).summary
    if summary.source != "mine" or summary.state in {"finished", "failed", "cancelled"}:
        raise UsageError(
            f"Run {run_id} has ended: {summary.state}.", f"See it with `glasshouse show {run_id}`.", code="run_final"
        )
    if not summary.orphaned:
        raise UsageError(
            f"Run {run_id} has a runner already.", f"Follow it with `glasshouse watch {run_id}`.", code="run_locked"
        )
    with Writer(home) as writer:
        _spawn(writer, run_id)


def _spawn(writer: Writer, run_id: str) -> None:
    """Start the runner and claim the run in its name, so that nobody takes it for orphaned while it imports."""
    pid = spawn_runner(writer.home, run_id)
    with contextlib.suppress(StoreError):
        writer.claim_runner(run_id, pid)


def spawn_runner(home: Path, run_id: str) -> int:
    """Start the runner, detached from this terminal; returns its pid. Raises `RunError` (`runner_not_started`)."""
    logs = home / LOGS
    try:
        logs.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(logs / f"runner-{run_id}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(fd, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "engine.runner", "--home", str(home), "--run", run_id],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                # Caches written while the environment is measured would change it.
                env={**os.environ, **BIND_NOW, "PYTHONDONTWRITEBYTECODE": "1"},
            )
    except OSError as error:
        raise RunError(
            f"The run's own process cannot be started: {error.strerror}.",
            "Free some space or memory, then try again.",
            code="runner_not_started",
        ) from error
    return process.pid
