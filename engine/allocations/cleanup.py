"""Terminates allocations from outside a run, with proof, and keeps one for the next run."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from engine.errors import GlasshouseError, RunError, StoreError, UsageError
from engine.plan import MAX_KEEP_MINUTES, RENTED
from engine.providers import provider_for
from engine.providers.protocol import Provider
from engine.providers.settings import load_settings
from engine.runner.allocation import keep_until
from engine.runner.end_allocation import end_allocation, outcome_of
from engine.runner.final_row import settle_runs
from engine.runner.leases import matching
from engine.runner.spawn import watch_on
from engine.store.failure import Failure, Reason, reason_text
from engine.store.reader import Reader
from engine.store.views import FINAL_RUN_STATES, AllocationView
from engine.store.writer import Writer

OnPhase = Callable[[str], None]


class Ended(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The outcome for one allocation, with the listings' counts. `unknown`: the provider gave no certain answer."""

    id: str
    name: str
    provider: str
    outcome: Literal["gone", "not_ours", "leaked", "unknown"]
    listings: int
    others: int | None
    reason: str
    hint: str = ""
    price_per_hour: float | None


def clean_up(home: Path, ids: Sequence[str] | None = None, on_phase: OnPhase | None = None) -> tuple[Ended, ...]:
    """Terminate allocations from the ledger and prove it: those with these ids, or every open one that is not in use.

    Raises `UsageError` (`allocation_unknown`, `allocation_in_use`) before anything is terminated.
    """
    with Writer(home) as writer, Reader(home) as reader:
        return asyncio.run(_clean_up(home, writer, reader, _chosen(reader, ids), on_phase))


async def _clean_up(
    home: Path, writer: Writer, reader: Reader, entries: Sequence[AllocationView], on_phase: OnPhase | None
) -> tuple[Ended, ...]:
    providers: dict[str, Provider] = {}
    ended = []
    try:
        for entry in entries:
            if on_phase:
                on_phase(f"terminating {entry.name}")
            present = reader.allocation(entry.id)
            if present is not None and present.released_at is None and in_use(reader, present):
                reason = "allocation_in_use: a run started or resumed on it in the meantime."
                ended.append(_ended(entry, "unknown", 0, None, reason))
                continue
            provider = providers.setdefault(entry.provider, provider_for(entry.provider, home, load_settings(home)))
            ended.append(await end_one(home, writer, reader, provider, entry))
            # Also when it is gone: the sentinel looks whether it is listed again.
            watch_on(home, entry.provider)
    finally:
        for provider in providers.values():
            await provider.close()
    return tuple(ended)


async def end_one(
    home: Path, writer: Writer, reader: Reader, provider: Provider, entry: AllocationView, *, overdue: bool = False
) -> Ended:
    """Terminate one allocation and update the rows of the ended runs that used it.

    Its unfinished run is claimed meanwhile, so that it cannot be resumed; a later resumption finds the allocation
    gone. An `overdue` allocation is terminated even when a run uses it.
    """
    unfinished = not overdue and entry.run_id is not None and entry.run_state not in FINAL_RUN_STATES
    if unfinished and entry.run_id is not None and not _claimed(writer, entry.run_id):
        return _ended(entry, "unknown", 0, None, "allocation_in_use: its run was resumed in the meantime.")
    try:
        proof = await end_allocation(writer, reader, provider, entry)
    except GlasshouseError as error:
        leaked = error.code != "create_unanswered"
        return _ended(entry, "leaked" if leaked else "unknown", 0, None, Failure.of(error))
    finally:
        if unfinished and entry.run_id is not None:
            writer.release_runner(entry.run_id)
    settle_runs(home, writer, reader, entry, proof)
    return _ended(entry, outcome_of(proof), proof.listings, proof.others, proof.statement)


def _claimed(writer: Writer, run_id: str) -> bool:
    try:
        writer.claim_runner(run_id)
    except StoreError as error:
        if error.code == "run_locked":
            return False
        raise
    return True


def _ended(
    entry: AllocationView,
    outcome: Literal["gone", "not_ours", "leaked", "unknown"],
    listings: int,
    others: int | None,
    reason: Reason,
) -> Ended:
    return Ended(
        id=entry.id,
        name=entry.name,
        provider=entry.provider,
        outcome=outcome,
        listings=listings,
        others=others,
        reason=reason_text(reason).strip(),
        hint=reason.hint if isinstance(reason, Failure) else "",
        price_per_hour=entry.price_per_hour,
    )


def _chosen(reader: Reader, ids: Sequence[str] | None) -> list[AllocationView]:
    entries = reader.allocations(open_only=True)
    if ids is None:
        return [entry for entry in entries if not in_use(reader, entry)]
    chosen = [_only_match(entries, query) for query in ids]
    for entry in chosen:
        if in_use(reader, entry):
            raise UsageError(
                f"{'A self-test' if entry.run_id is None else f'Run {entry.run_id}'} is using {entry.name}.",
                "Interrupt the self-test: that terminates the allocation too."
                if entry.run_id is None
                else f"Cancel the run with `glasshouse cancel {entry.run_id}`: that terminates the allocation too.",
                code="allocation_in_use",
            )
    return chosen


def _only_match(entries: Sequence[AllocationView], query: str) -> AllocationView:
    matches = matching(entries, query)
    if len(matches) != 1:
        raise UsageError(
            f"This home has no open allocation {query}." if not matches else f"Several allocations match {query}.",
            "List them with `glasshouse allocations`, then give the full id; foreign allocations are never terminated.",
            code="allocation_unknown",
        )
    return matches[0]


def in_use(reader: Reader, entry: AllocationView) -> bool:
    """True when a running runner uses the allocation, or a running self-test, which claims it by its id."""
    if entry.run_id is None:
        return reader.is_claimed(entry.id)
    if entry.run_state in FINAL_RUN_STATES:
        return False
    return not reader.run(entry.run_id).summary.orphaned


def keep(home: Path, allocation_id: str, minutes: int) -> str:
    """Keep an allocation for the next run: after the run that uses it, or for longer if it is already kept.

    Returns the end of that time in UTC; for an allocation in use, a phrase for the user. Raises `UsageError`
    (`allocation_unknown`, `keep_refused`).
    """
    if not 1 <= minutes <= MAX_KEEP_MINUTES:
        raise UsageError(
            f"An allocation cannot be kept for {minutes} minutes.",
            f"Give a number from 1 to {MAX_KEEP_MINUTES}.",
            code="keep_refused",
        )
    with Writer(home) as writer, Reader(home) as reader:
        entry = _only_match(reader.allocations(open_only=True), allocation_id)
        if entry.provider not in RENTED:
            raise UsageError(
                f"{entry.name} is not rented, so it need not be kept.", "Just start the next run.", code="keep_refused"
            )
        if entry.ledger_state == "kept":
            return keep_until(writer, entry, minutes)
        if entry.run_id is None or not in_use(reader, entry):
            resume = "" if entry.run_id is None else f"Resume its run with `glasshouse resume {entry.run_id}`, or "
            raise UsageError(
                f"{entry.name} is {entry.state}, and no running run uses it.",
                f"{resume}{'terminate' if resume else 'Terminate'} it with `glasshouse cleanup`.",
                code="keep_refused",
            )
        writer.request(entry.run_id, "keep", {"minutes": minutes})
    return f"{minutes} minutes after its run"


def release_in_background(home: Path, allocation_id: str) -> None:
    """Terminate an allocation in a separate process; the ledger shows the outcome.

    Raises `UsageError` as `clean_up`, and `RunError` (`tender_not_started`).
    """
    with Reader(home) as reader:
        (entry,) = _chosen(reader, [allocation_id])
    command = [sys.executable, "-m", "engine.allocations.cleanup", str(home), entry.id]
    try:
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
    except OSError as error:
        raise RunError(
            f"The process that terminates the allocation cannot be started: {error.strerror}.",
            "Terminate it with `glasshouse cleanup`.",
            code="tender_not_started",
        ) from error


def main(home: str, allocation_id: str) -> int:
    """`python -m engine.allocations.cleanup HOME ID`: terminate one allocation."""
    with contextlib.suppress(StoreError, UsageError):
        ended = clean_up(Path(home), [allocation_id])
        return 0 if all(one.outcome in {"gone", "not_ours"} for one in ended) else 1
    return 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
