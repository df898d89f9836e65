"""Whole runs on rented pods: real OpenSSH servers behind a fake RunPod, rented and terminated like real ones."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from engine.records.export import export_run
from engine.records.formats import render
from engine.runner.final_row import SIGNING_FILES
from engine.store.reader import Reader
from engine.store.views import RunView
from engine.wire import ALLOCATION_GONE, TRAIN_PROGRESS
from tests.functional import canaries
from tests.functional.runs.renter import Renter
from tests.functional.runs.support import LONG, checks_of


def is_training(view: RunView) -> bool:
    """Whether a segment has taken steps and is still training."""
    return any(one.state == "training" and one.steps > 0 for one in view.segments)


def places_in_export(renter: Renter, run_id: str) -> list[tuple[str, str]]:
    """The places in a run's export, decoded, that reveal where its pod or its home is."""
    with Reader(renter.home) as reader:
        published = canaries.opened(render(export_run(reader, run_id), "json"))
    assert b'"_type":"https://in-toto.io' in published, "encoded statements are decoded"
    (entry,) = renter.ledger()
    places = {"the pod": str(entry.provider_id), "its name": entry.name, "an address": "127.0.0.1"}
    return canaries.occurrences({**places, "the home": str(renter.home)}, iter([("export", published)]))


def run_on_a_pod(renter: Renter) -> None:
    """Run the demo on a pod by the command line; the row must be clean and no pod left."""
    completed = renter.glasshouse(
        "run", "--preset", "demo", "--provider", "runpod", "--steps", "20", "--settling", "5", "--json"
    )
    assert completed.returncode == 0, completed.stderr
    row = json.loads(completed.stdout)
    assert row["clean"] is True
    assert row["cleanup"] == {"activeRunPodPodsAfterRun": 0, "otherActivePods": 0}
    assert row["provider"] == "runpod"
    assert 0 < row["costUsd"] < 0.1
    assert renter.fake.pods() == []
    assert len(renter.fake.ever()) == 1
    assert places_in_export(renter, row["id"]) == []


def test_the_demo_on_a_pod_is_clean_and_leaves_no_pod(torch_renter: Renter) -> None:
    run_on_a_pod(torch_renter)


def test_a_pair_through_the_sdk_is_clean_and_leaves_no_pod(renter: Renter) -> None:
    renter.configure("sdk")
    run_on_a_pod(renter)


def test_a_runner_killed_at_every_transition_leaves_no_pod_and_a_finished_row(
    renter: Renter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = renter.die_at("next", monkeypatch, lambda: renter.start(renter.plan("pair")))
    deaths = 0
    while True:
        view = renter.wait(run_id, lambda view: view.summary.orphaned)
        if not view.summary.orphaned:
            break
        deaths += 1
        assert deaths < 60, ([(one.subject, one.state) for one in view.transitions], renter.log_of(run_id)[-3000:])
        renter.die_at("next", monkeypatch, lambda: renter.resume(run_id))
    entered = {(one.subject, one.state) for one in view.transitions}
    assert deaths >= 20, sorted(entered)
    assert {state for subject, state in entered if subject == "run"} >= {
        "queued", "allocating", "connecting", "staging", "running", "collecting", "cleaning", "finished",
    }  # fmt: skip
    assert view.row is not None
    for kind in ("raw", "protected"):
        states = [one.state for one in view.transitions if one.subject == f"segment:{kind}"]
        assert len(states) == len(set(states))
    history = "\n".join(f"{one.subject} {one.state} {one.reason}" for one in view.transitions)
    assert view.row["clean"] is True, history
    assert renter.fake.pods() == []
    assert len(renter.fake.ever()) == 1
    assert [one.ledger_state for one in renter.ledger()] == ["gone"]


def test_dropped_links_and_a_new_address_lose_no_step(renter: Renter) -> None:
    run_id = renter.start(renter.long_plan())
    renter.wait(run_id, is_training)
    (pod,) = renter.fake.pods()
    assert renter.fake.drop_links(pod.id) > 0
    renter.fake.move(pod.id)
    known = renter.view(run_id).segments[0].steps
    renter.wait(run_id, lambda view: view.segments[0].steps > known + 200)
    renter.hurry(run_id)
    view = renter.finish(run_id)
    assert view.summary.state == "finished", view.summary.reason
    assert view.segments[0].steps == LONG.steps
    assert checks_of(view)["chains_whole"] == "passed"
    assert renter.fake.pods() == []


def test_a_pod_that_vanishes_fails_its_run_and_no_other_is_rented(renter: Renter) -> None:
    run_id = renter.start(renter.long_plan())
    renter.wait(run_id, is_training)
    renter.fake.vanish(renter.fake.pods()[0].id)
    view = renter.finish(run_id)
    assert view.summary.state == "failed"
    assert view.summary.reason.startswith("allocation_gone"), view.summary.reason
    assert len(renter.fake.ever()) == 1


def test_a_restarted_container_is_no_longer_the_same_allocation(renter: Renter) -> None:
    run_id = renter.start(renter.long_plan())
    renter.wait(run_id, is_training)
    renter.fake.restart(renter.fake.pods()[0].id)
    view = renter.finish(run_id)
    assert view.summary.state == "failed", view.summary.reason
    assert view.row is not None
    assert view.row["clean"] is False
    assert renter.fake.pods() == []


def test_a_pod_that_stays_listed_is_reported_as_leaked_and_terminated_later(renter: Renter) -> None:
    renter.configure(terminate=2.0)
    renter.fake.fault("terminate", "ignored", times=None)
    run_id = renter.start(renter.plan())
    watched = renter.glasshouse("watch", run_id)
    assert watched.returncode == 1, watched.stderr
    assert "leaked" in watched.stderr + watched.stdout
    view = renter.finish(run_id)
    assert view.summary.cleanup == "leaked"
    assert view.summary.clean is False
    (pod,) = renter.fake.pods()
    listed = renter.glasshouse("allocations")
    assert pod.id in listed.stdout
    assert "leaked" in listed.stdout
    renter.fake.clear()
    renter.configure()
    ended = renter.glasshouse("cleanup", "--yes", "--json")
    assert ended.returncode == 0, ended.stderr
    assert renter.fake.pods() == []
    view = renter.view(run_id)
    assert view.summary.cleanup == "gone"
    assert checks_of(view)["allocation_gone"] == "passed"


def test_a_pod_that_returns_after_its_end_is_terminated_and_the_row_is_signed_again(renter: Renter) -> None:
    renter.configure(recheck=0.5)
    renter.fake.fault("terminate", "unlisted")
    run_id = renter.start(renter.plan())
    before = renter.finish(run_id)
    assert before.row is not None
    assert (before.summary.cleanup, before.summary.clean) == ("gone", True), checks_of(before)
    receipt = renter.receipt(run_id)
    (pod,) = renter.fake.pods()
    renter.fake.appear(pod.id)
    renter.until(lambda: not renter.fake.pods())

    def is_settled() -> bool:
        row = renter.view(run_id).row or {}
        return renter.receipt(run_id) != receipt and row["cleanup"]["activeRunPodPodsAfterRun"] == 0

    renter.until(is_settled)
    after = renter.view(run_id)
    assert after.row is not None
    assert after.summary.cleanup == "gone"
    assert after.row["costUsd"] > before.row["costUsd"]
    counts = [line.body["count"] for line in renter.log(run_id) if line.event == ALLOCATION_GONE]
    assert counts == [0, 1, 0]


def test_a_pod_whose_runner_died_is_terminated_at_its_deadline(renter: Renter, monkeypatch: pytest.MonkeyPatch) -> None:
    renter.configure(max_cost=0.0058)  # about 30 seconds
    run_id: str = renter.die_at("state:run:connecting", monkeypatch, lambda: renter.start(renter.plan()))
    renter.wait(run_id, lambda view: view.summary.orphaned)
    assert len(renter.fake.pods()) == 1
    renter.until(lambda: not renter.fake.pods())
    renter.until(lambda: renter.ledger()[0].ledger_state == "gone")
    renter.resume(run_id)
    view = renter.finish(run_id)
    assert view.summary.state == "failed"
    assert view.summary.reason.startswith("allocation_gone"), view.summary.reason


def test_a_kept_pod_serves_the_next_run_and_both_rows_are_settled(renter: Renter) -> None:
    first = renter.start(renter.plan(keep_for=10))
    kept = renter.finish(first)
    assert kept.summary.cleanup == "kept"
    assert checks_of(kept)["allocation_gone"] == "pending"
    (entry,) = renter.ledger()
    assert entry.keep_until is not None
    assert [pod.id for pod in renter.fake.pods()] == [entry.provider_id]
    second = renter.start(renter.plan(allocation=entry.provider_id))
    last = renter.finish(second)
    assert last.summary.state == "finished", last.summary.reason
    assert len(renter.fake.ever()) == 1
    assert renter.fake.pods() == []
    for run_id in (first, second):
        view = renter.view(run_id)
        assert checks_of(view)["allocation_gone"] == "passed"
        assert {proof.name: proof.status for proof in renter.verified(run_id).proofs}["row"] == "passed"
        left = {path.name for path in (renter.home / "runs" / run_id).iterdir()}
        assert left <= set(SIGNING_FILES), "only what the row is signed with stays while the pod is looked for"
        assert places_in_export(renter, run_id) == []


def test_a_run_cancelled_while_it_waits_for_its_pod_leaves_no_pod(renter: Renter) -> None:
    renter.fake.fault("create", "pull_forever")
    run_id = renter.start(renter.plan())
    renter.wait(run_id, lambda view: view.summary.reason.startswith("image"))
    renter.cancel(run_id)
    view = renter.finish(run_id)
    assert view.summary.state == "cancelled"
    assert view.summary.cleanup == "gone"
    assert renter.fake.pods() == []


def test_eight_runs_at_once_share_the_api_and_leave_no_pod(renter: Renter) -> None:
    renter.configure(poll=4.0, calls=30)
    runs = [renter.start(renter.plan(steps=5)) for _ in range(8)]
    for run_id in runs:
        renter.wait(run_id, lambda view: view.summary.state in {"running", "collecting", "cleaning"})
    memory = [_proportional_bytes(run_id, renter) for run_id in runs]
    for run_id in runs:
        view = renter.finish(run_id)
        assert view.summary.state == "finished", view.summary.reason
    assert max(memory) < 80e6, memory
    assert renter.fake.pods() == []
    assert len({one.name for one in renter.fake.ever()}) == 8
    times = sorted(call.at for call in renter.fake.calls())
    assert max(sum(begin <= at < begin + 60 for at in times) for begin in times) <= 30


def _proportional_bytes(run_id: str, renter: Renter) -> int:
    """The runner's share of memory (PSS), 0 when it has ended."""
    for process in renter.processes(run_id, "--run"):
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024
    return 0


def test_nothing_secret_is_left_in_the_home(renter: Renter) -> None:
    run_id = renter.start(renter.plan(steps=5))
    renter.finish(run_id)
    key = renter.fake.key.encode()
    for path in renter.home.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert key not in data, path
            assert b"OPENSSH PRIVATE" not in data, path


def test_a_disk_that_is_too_small_stops_the_run_before_it_is_staged(renter: Renter) -> None:
    renter.fake.fault("create", "small_disk", mib=2)
    run_id = renter.start(renter.plan())
    view = renter.finish(run_id)
    assert view.summary.state == "failed"
    assert view.summary.reason.startswith("remote_disk_full"), view.summary.reason
    assert renter.fake.pods() == []


def test_a_disk_that_fills_in_training_ends_the_run_with_its_log(renter: Renter) -> None:
    renter.fake.fault("create", "small_disk", mib=64)
    run_id = renter.start(renter.long_plan())
    renter.wait(run_id, is_training)
    (pod,) = renter.fake.pods()
    fill = ["nsenter", "-t", str(pod.pid), "-m", "dd", "if=/dev/zero", f"of={pod.folder}/root/fill", "bs=1M"]
    assert b"No space left" in subprocess.run(fill, capture_output=True, check=False).stderr
    view = renter.finish(run_id)
    assert view.summary.state == "failed", view.summary.reason
    with Reader(renter.home) as reader:
        assert any(event.event == TRAIN_PROGRESS for event in reader.events(run_id, "pod"))
    assert renter.fake.pods() == []
