"""The allocations ledger: every state is committed before the provider's call that it announces."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from typing import Any, Final, TypedDict, get_args

from engine.errors import StoreError, UsageError
from engine.store.views import AllocationView, CleanupState, LedgerState
from engine.wire import canonical, parse

_MOVES: Final[dict[str, tuple[str, ...]]] = {
    "intent": ("created", "releasing", "gone", "leaked"),
    "created": ("ready", "releasing", "gone", "leaked", "kept", "not_ours"),
    "ready": ("releasing", "gone", "leaked", "kept", "not_ours"),
    "kept": ("ready", "releasing", "gone", "leaked", "not_ours"),
    "releasing": ("gone", "leaked", "not_ours"),
    "leaked": ("releasing", "gone", "not_ours"),
    "gone": ("leaked",),  # a provider may list again what two of its listings lacked
    "not_ours": (),
}
_SHOWN: Final[dict[str, CleanupState]] = {
    "intent": "active", "created": "active", "ready": "active", "kept": "kept", "releasing": "terminating",
    "gone": "gone", "leaked": "leaked", "not_ours": "not_ours",
}  # fmt: skip
_RELEASED: Final = ("gone", "not_ours")


class AllocationFields(TypedDict, total=False):
    """What may become known of an allocation later. Prices in USD; `keep_until` and `deadline` in UTC."""

    provider_id: str
    gpu_model: str
    price_per_hour: float
    spent: float
    keep_until: str | None
    deadline: str
    detail: dict[str, Any]


def intend(
    connection: sqlite3.Connection, allocation_id: str, provider: str, name: str, run: int | None, at: str,
    fields: AllocationFields,
) -> None:  # fmt: skip
    """Enter an allocation that is about to be asked for."""
    connection.execute(
        """INSERT INTO allocations (id, provider, name, state, created_at, run)
        VALUES (?, ?, ?, 'intent', ?, ?)""",
        (allocation_id, provider, name, at, run),
    )
    if run is not None:
        _serve(connection, allocation_id, run, at)
    _record(connection, allocation_id, "intent", at, "")
    _set(connection, allocation_id, fields)


def move(
    connection: sqlite3.Connection, allocation_id: str, state: LedgerState, reason: str, at: str,
    fields: AllocationFields, only_from: LedgerState | None = None,
) -> None:  # fmt: skip
    """Enter the next state, or the present one again; raises `StoreError` (`ledger_move`) for any other.

    `only_from`: the state that whoever moves it has seen; another one is refused too.
    """
    row = connection.execute("SELECT state, reason FROM allocations WHERE id = ?", (allocation_id,)).fetchone()
    if row is None:
        raise UsageError(
            f"There is no allocation {allocation_id}.",
            "List them with `glasshouse allocations`.",
            code="allocation_unknown",
        )
    seen = only_from is None or row["state"] in (only_from, state)
    if not seen or state not in get_args(LedgerState) or (state != row["state"] and state not in _MOVES[row["state"]]):
        raise StoreError(
            f"Allocation {allocation_id} cannot go from {row['state']} to {state}.",
            "Report this with the log file.",
            code="ledger_move",
        )
    if (state, reason) != (row["state"], row["reason"]):
        connection.execute(
            "UPDATE allocations SET state = ?, reason = ?, released_at = iif(?, ?, NULL) WHERE id = ?",
            (state, reason, state in _RELEASED, at, allocation_id),
        )
        _record(connection, allocation_id, state, at, reason)
    _set(connection, allocation_id, fields)


def take_up(connection: sqlite3.Connection, allocation_id: str, run: int, at: str) -> None:
    """Give a kept allocation to another run; raises `StoreError` (`allocation_in_use`) when it is not free."""
    row = connection.execute("SELECT state, run FROM allocations WHERE id = ?", (allocation_id,)).fetchone()
    if row is not None and row["state"] != "kept" and row["run"] == run:
        return
    if row is None or row["state"] != "kept":
        raise StoreError(
            f"Allocation {allocation_id} is not kept for a run.",
            "List those that are with `glasshouse allocations`.",
            code="allocation_in_use",
        )
    connection.execute("UPDATE allocations SET run = ?, keep_until = NULL WHERE id = ?", (run, allocation_id))
    _serve(connection, allocation_id, run, at)
    move(connection, allocation_id, "ready", "taken up by another run", at, AllocationFields())


def served(connection: sqlite3.Connection, allocation_id: str) -> list[str]:
    """The ids of the runs that an allocation has served, oldest first."""
    rows = connection.execute(
        """SELECT runs.id FROM allocation_runs JOIN runs ON runs.key = allocation_runs.run
        WHERE allocation = ? ORDER BY allocation_runs.at, runs.key""",
        (allocation_id,),
    )
    return [row["id"] for row in rows]


def _serve(connection: sqlite3.Connection, allocation_id: str, run: int, at: str) -> None:
    connection.execute("INSERT OR IGNORE INTO allocation_runs VALUES (?, ?, ?)", (allocation_id, run, at))


def _record(connection: sqlite3.Connection, allocation_id: str, state: str, at: str, reason: str) -> None:
    connection.execute(
        "INSERT INTO allocation_moves (allocation, state, at, reason) VALUES (?, ?, ?, ?)",
        (allocation_id, state, at, reason),
    )


def _set(connection: sqlite3.Connection, allocation_id: str, fields: AllocationFields) -> None:
    connection.execute(
        """UPDATE allocations SET provider_id = ifnull(?, provider_id), gpu_model = ifnull(?, gpu_model),
            price_per_hour = ifnull(?, price_per_hour), spent = ifnull(?, spent), detail = ifnull(?, detail),
            deadline = ifnull(?, deadline)
        WHERE id = ?""",
        (
            fields.get("provider_id"), fields.get("gpu_model"), fields.get("price_per_hour"),
            fields.get("spent"), canonical(fields["detail"]).decode() if "detail" in fields else None,
            fields.get("deadline"), allocation_id,
        ),
    )  # fmt: skip
    if "keep_until" in fields:
        connection.execute("UPDATE allocations SET keep_until = ? WHERE id = ?", (fields["keep_until"], allocation_id))


def read(connection: sqlite3.Connection, *, open_only: bool = False) -> list[AllocationView]:
    """The ledger, newest first. What is not settled yet is priced by its age."""
    rows = connection.execute(
        f"""SELECT allocations.*, runs.id AS run_id, runs.state AS run_state
        FROM allocations LEFT JOIN runs ON runs.key = allocations.run
        {"WHERE allocations.released_at IS NULL" if open_only else ""}
        ORDER BY allocations.created_at DESC, allocations.id DESC"""  # noqa: S608  both texts are ours
    ).fetchall()
    return [_view(row) for row in rows]


def detail(connection: sqlite3.Connection, allocation_id: str) -> dict[str, Any]:
    """What the provider keeps with an allocation (host key, address); {} when it is unknown."""
    row = connection.execute("SELECT detail FROM allocations WHERE id = ?", (allocation_id,)).fetchone()
    return dict(parse(row["detail"])) if row is not None else {}


def _view(row: sqlite3.Row) -> AllocationView:
    return AllocationView(
        id=row["id"],
        provider=row["provider"],
        name=row["name"],
        provider_id=row["provider_id"],
        gpu_model=row["gpu_model"],
        state=_SHOWN[row["state"]],
        ledger_state=row["state"],
        reason=row["reason"],
        created_at=row["created_at"],
        released_at=row["released_at"],
        price_per_hour=row["price_per_hour"],
        spent=row["spent"] if row["spent"] is not None else _spent_by_age(row),
        run_id=row["run_id"],
        run_state=row["run_state"],
        keep_until=row["keep_until"],
        deadline=row["deadline"],
    )


def _spent_by_age(row: sqlite3.Row) -> float | None:
    if row["price_per_hour"] is None:
        return None
    end = datetime.fromisoformat(row["released_at"]) if row["released_at"] else datetime.now(UTC)
    age = (end - datetime.fromisoformat(row["created_at"])).total_seconds()
    return round(float(row["price_per_hour"]) * max(age, 0.0) / 3600, 6)
