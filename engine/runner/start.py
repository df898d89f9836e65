"""Starting and resuming runs: inputs are validated here, then a detached runner process takes over."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from engine.errors import GlasshouseError, StoreError, UsageError
from engine.payload.local_files import NO_FILES, LocalFiles, stored_files
from engine.plan import Plan, plan_digest
from engine.runner.folder import FILES, INPUTS, SPOOLED, WEIGHTS_BYTES, RunFolder
from engine.runner.spawn import spawn_runner
from engine.store.failure import Failure
from engine.store.reader import Reader
from engine.store.writer import Writer

if TYPE_CHECKING:
    from engine.attestation.policy import Policy
    from engine.runner.feasible import Feasible

DELEGATION_SECONDS: Final = 8 * 24 * 3600


def start_run(
    home: Path,
    plan: Plan,
    files: LocalFiles = NO_FILES,
    *,
    passphrase: str | None = None,
    policy: Policy | None = None,
    found: Feasible | None = None,
) -> str:
    """Validate a run, store it as queued and start its runner; returns the run's id.

    `found` is what `check_run` said of these inputs, if it was asked before. `policy` may narrow the built-in one,
    never widen it (`policy_older`, `policy_loosened`).
    The operator's signing key is unlocked once, to sign a delegation to a run key that only the runner holds.
    Raises a `GlasshouseError` for every kind of invalid input, and then leaves nothing behind.
    """
    from engine.attestation.policy import checked_policy, default_policy
    from engine.attestation.receipts import delegate
    from engine.providers.settings import load_settings
    from engine.runner.feasible import check_run
    from engine.sealing.operator_keys import OperatorKeys
    from engine.sealing.run_key import RunKey

    chosen = default_policy() if policy is None else checked_policy(policy, default_policy())
    found = found or check_run(home, plan, load_settings(home), files)
    plan = found.plan
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
                    FILES: stored_files(_taken_over(files, folder)),
                    "delegation": delegation,
                    "policy": msgspec.to_builtins(chosen),
                    WEIGHTS_BYTES: found.weights_bytes,
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


def _taken_over(files: LocalFiles, folder: RunFolder) -> LocalFiles:
    """The files with temporary copies moved into the run's folder, where they are destroyed with it."""
    moved: dict[str, Path] = {}
    for name in ("data", "held_out", "template"):
        path: Path | None = getattr(files, name)
        if path is not None and path in files.temporary:
            moved[name] = folder.path / f"{SPOOLED}-{name}"
            shutil.move(path, moved[name])
    return msgspec.structs.replace(files, temporary=(), **moved)


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
