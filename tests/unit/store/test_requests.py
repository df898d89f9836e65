"""Requests to a runner and settings."""

from __future__ import annotations

import pytest

from engine.errors import StoreError
from engine.plan import Plan
from engine.store.reader import Reader
from engine.store.writer import Writer


def test_requests_reach_their_runner_in_order_until_answered(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    writer.create_run("run-b", plan)
    first = writer.request("run-a", "keep", {"minutes": 30})
    second = writer.request("run-a", "cancel")
    writer.request("run-b", "cancel")
    writer.request(None, "keep", {"allocation": "alloc-1"})
    pending = writer.pending_requests("run-a")
    assert [(request.id, request.kind, request.detail) for request in pending] == [
        (first, "keep", {"minutes": 30}), (second, "cancel", {}),
    ]  # fmt: skip
    assert pending == reader.pending_requests("run-a")
    writer.complete_request(first, "kept")
    assert [request.id for request in writer.pending_requests("run-a")] == [second]
    assert [(request.run_id, request.kind) for request in reader.pending_requests(None)] == [(None, "keep")]


def test_an_equal_open_request_is_not_added_twice(writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    first = writer.request("run-a", "cancel")
    assert writer.request("run-a", "cancel") == first
    writer.complete_request(first)
    assert writer.request("run-a", "cancel") != first


def test_ended_run_cannot_be_cancelled_but_cleaned_up(writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    writer.transition("run-a", "run", "finished")
    with pytest.raises(StoreError) as caught:
        writer.request("run-a", "cancel")
    assert caught.value.code == "run_final"
    writer.request("run-a", "keep")


def test_settings_are_kept_replaced_and_removed(reader: Reader, writer: Writer) -> None:
    assert reader.setting("console.screen") is None
    writer.set_setting("console.screen", "history")
    writer.set_setting("console.screen", "fleet")
    assert reader.setting("console.screen") == "fleet"
    writer.set_setting("console.screen", None)
    assert reader.setting("console.screen") is None
