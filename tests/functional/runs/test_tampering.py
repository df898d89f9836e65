"""An attacker with access to the allocation's disk changes files of a protected run in three of its last stages."""

from __future__ import annotations

import pytest

from tests.functional.runs.support import LONG, Operator, checks_of, segment_state, short_plan


def test_tampering_with_scratch_adapter_and_log_end_fails_one_check_each(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = short_plan("protected", target=LONG)
    run_id: str = operator.hold_at("state:run:collecting", monkeypatch, lambda: operator.start(plan))
    operator.wait(run_id, lambda view: segment_state(view, "protected") == "training")
    folder = operator.remote_folder(run_id)
    (folder / "scratch" / "left-over").write_bytes(b"a copy of something")
    (folder / "inbox" / "end.json").write_text('{"runnerHead":"%s"}' % ("0" * 64))
    operator.hurry(run_id)
    with operator.held(run_id):
        sealed = folder / "outbox" / "protected" / "adapter.sealed"
        content = bytearray(sealed.read_bytes())
        content[-1] ^= 1
        sealed.write_bytes(content)
    view = operator.finish(run_id)
    assert view.row is not None
    assert view.row["clean"] is False
    assert view.row["runtimeState"] == "unverified"
    reasons = {check.name: check.reason for check in view.checks}
    failed = {name for name, status in checks_of(view).items() if status == "failed"}
    assert failed == {"zeroization_proven", "adapters_open", "chains_whole"}
    assert "zeroization_scratch" in reasons["zeroization_proven"]
    assert "adapter_other_sealed_file" in reasons["adapters_open"]
    assert "head that the runner's log does not have" in reasons["chains_whole"]
