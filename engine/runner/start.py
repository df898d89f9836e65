"""Starting and resuming runs: inputs are validated here, then a detached runner process takes over."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from engine.errors import GlasshouseError, StoreError, UsageError
from engine.plan import Plan, checked, plan_digest
from engine.runner.folder import INPUTS, MODEL_BYTES, RunFolder
from engine.runner.spawn import spawn_runner
from engine.store.failure import Failure
from engine.store.reader import Reader
from engine.store.writer import Writer

if TYPE_CHECKING:
    from engine.attestation.policy import Policy
    from engine.providers.settings import Settings

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
    """Validate a run, store it as queued and start its runner; returns the run's id.

    `policy` may narrow the built-in one, never widen it (`policy_older`, `policy_loosened`).
    The operator's signing key is unlocked once, to sign a delegation to a run key that only the runner holds.
    Raises a `GlasshouseError` for every kind of invalid input, and then leaves nothing behind.
    """
    from engine.attestation.policy import checked_policy, default_policy
    from engine.attestation.receipts import delegate
    from engine.payload.build import plan_with_digests
    from engine.providers import preflight
    from engine.providers.settings import load_settings
    from engine.runner.spec import check_disk, model_size
    from engine.sealing.operator_keys import OperatorKeys
    from engine.sealing.run_key import RunKey

    plan = checked(plan)
    chosen = default_policy() if policy is None else checked_policy(policy, default_policy())
    settings = load_settings(home)
    preflight(plan.provider.name, home, settings, plan.provider.allocation)
    plan = _with_published_name(home, plan, settings)
    model_bytes = model_size(plan, model_folder) if plan.provider.kind.rents else None
    check_disk(plan, settings, model_bytes)
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
                    MODEL_BYTES: model_bytes,
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
                writer.transition(run_id, "run", "failed", Failure.of(error))
                folder.destroy()
            raise
    return run_id


def _with_published_name(home: Path, plan: Plan, settings: Settings) -> Plan:
    """The plan with a publishable name for its allocation.

    Plans are published; a pod's addresses derive from the provider's id, and a static host's name may be its address.
    """
    from engine.runner.allocation import kept_allocation
    from engine.runner.spec import chosen_host

    requested = plan.provider.allocation
    if plan.provider.name == "static":
        name = chosen_host(home, settings, requested)
    elif requested is not None and plan.provider.kind.rents:
        with Reader(home) as reader:
            name = kept_allocation(reader, requested).id
    else:
        return plan
    return msgspec.structs.replace(plan, provider=msgspec.structs.replace(plan.provider, allocation=name))


def resume_run(home: Path, run_id: str) -> None:
    """Start a runner for an unfinished run that has none.

    Raises `UsageError` (`run_final`, `run_locked`) or `RunError` (`runner_not_started`).
    """
    with Reader(home) as reader:
        summary = reader.run(run_id).summary
    if summary.source != "mine" or summary.state in {"finished", "failed", "cancelled"}:
        raise UsageError(
            f"Run {run_id} has already ended: {summary.state}.",
            f"See it with `glasshouse show {run_id}`.",
            code="run_final",
        )
    if not summary.orphaned:
        raise UsageError(
            f"Run {run_id} already has a runner.", f"Follow it with `glasshouse watch {run_id}`.", code="run_locked"
        )
    with Writer(home) as writer:
        _spawn(writer, run_id)


def _spawn(writer: Writer, run_id: str) -> None:
    """Start the runner and claim the run for it, so that the run does not count as orphaned while it starts up."""
    pid = spawn_runner(writer.home, run_id)
    with contextlib.suppress(StoreError):
        writer.claim_runner(run_id, pid)
