"""Allocations, cleaning up, prices and the live self-test: the installed command against the fake RunPod."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from engine.errors import UsageError
from engine.plan import preset
from engine.providers import provider_for
from engine.providers.protocol import Spec
from engine.providers.settings import load_settings
from engine.runner.leases import with_lease
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.system.resources import data_path
from glasshouse_tui.backend import EngineLauncher
from tests.functional.command_line.terminal import at_a_terminal

if TYPE_CHECKING:
    from tests.fake_runpod.client import FakeRunPod
    from tests.functional.command_line.conftest import CommandLine

CHEAP = "NVIDIA RTX A2000"
CONFIG = """[runpod]
calls_per_minute = 600
[runpod.limits]
poll = 0.1
listings_apart = 0.1
search = 2
ssh = 5
provisioning = 10
terminate = 1
"""
LIVE = ("doctor", "--provider", "runpod", "--live", "--max-cost", "1", "--gpu", CHEAP)


class Desk:
    """One operator's home and command line, with RunPod's clients pointed at the fake."""

    def __init__(self, cli: CommandLine, fake: FakeRunPod) -> None:
        self.cli = cli
        self.fake = fake
        self.home = cli.home
        self.home.mkdir(mode=0o700)
        (self.home / "config.toml").write_text(CONFIG)

    def rent(self, run_id: str | None = None) -> str:
        """A pod of ours that stands in the ledger; returns the ledger's id."""
        found, name = secrets.token_hex(6), f"glasshouse-test-rented-{secrets.token_hex(4)}"
        with Writer(self.home) as writer:
            writer.allocation_intent(found, "runpod", name, run_id)
            provider = provider_for("runpod", self.home, load_settings(self.home))

            async def acquire() -> None:
                lease = await provider.acquire(Spec(name=name, gpus=(CHEAP,), max_cost=1.0), run_id or "rented")
                writer.allocation_state(found, "created", **with_lease(lease))
                await provider.close()

            asyncio.run(acquire())
            writer.allocation_state(found, "ready")
        return found

    def state(self, allocation_id: str) -> str:
        with Reader(self.home) as reader:
            return next(one.state for one in reader.allocations() if one.id == allocation_id)

    def ours(self) -> list[str]:
        """The names of the pods of ours that exist."""
        return [pod.name for pod in self.fake.pods() if pod.name.startswith("glasshouse-")]


@pytest.fixture
def desk(cli: CommandLine, fake_runpod: FakeRunPod, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    for name, value in fake_runpod.environment().items():
        monkeypatch.setenv(name, value)
    fake_runpod.configure(pull_seconds=0.05)
    yield Desk(cli, fake_runpod)
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if "engine.allocations.sentinel" in words and str(cli.home) in words:
            process.kill()
    everything = "".join(path.read_text(errors="replace") for path in (cli.home / "logs").glob("*"))
    assert fake_runpod.key not in everything


def test_what_is_ours_and_what_is_foreign_is_listed_with_price_and_totals(desk: Desk) -> None:
    mine = desk.rent()
    theirs = desk.fake.foreign("somebody-elses")
    seen = desk.cli("allocations", "--json")
    assert (seen.code, seen.err) == (0, "")
    ours, foreign = seen.document["allocations"]
    assert (ours["id"], ours["ours"], ours["state"], ours["observation"]) == (mine, True, "active", "alive")
    assert (foreign["allocationId"], foreign["state"], foreign["name"]) == (theirs.id, "foreign", "somebody-elses")
    totals = seen.document["totals"]
    assert (totals["open"], totals["foreign"], totals["pricePerHour"]) == (1, 1, ours["pricePerHour"])
    shown = desk.cli("allocations")
    assert re.search(rf"{mine} +runpod +RTX A2000 +\$0\.\d\d/h .* active", shown.out)
    assert "1 open at" in shown.out
    assert "1 foreign, shown only" in shown.out
    offline = desk.cli("allocations", "--offline", "--json")
    assert [one["observation"] for one in offline.document["allocations"]] == [None]


def test_a_provider_that_does_not_answer_is_an_error_and_its_allocations_are_unknown(desk: Desk) -> None:
    mine = desk.rent()
    desk.fake.fault("list", "status", times=None, code=500)
    seen = desk.cli("allocations", "--json")
    assert seen.code == 1
    assert [one["id"] for one in seen.document["allocations"]] == [mine]
    assert seen.document["allocations"][0]["observation"] in (None, "unknown")
    assert [one["provider"] for one in seen.document["troubles"]] == ["runpod"]
    shown = desk.cli("allocations")
    assert (shown.code, mine in shown.out) == (1, True)
    assert "unknown, not absent" in shown.err


def test_cleaning_up_needs_a_yes_ends_what_is_ours_and_proves_it(desk: Desk) -> None:
    mine, other = desk.rent(), desk.rent()
    desk.fake.foreign("somebody-elses")
    desk.cli("cleanup", "--json").refused(2, "confirmation_needed")
    assert "needs confirmation" in desk.cli("cleanup", mine).err
    assert len(desk.ours()) == 2
    done = desk.cli("cleanup", mine[:6], "--yes")
    assert done.code == 0, done.err
    assert re.search(rf"gone +{mine} .*absent in 2 successful listings; others untouched: 2", done.out)
    assert (desk.state(mine), desk.state(other)) == ("gone", "active")
    rest = desk.cli("cleanup", "--yes", "--json")
    assert rest.code == 0
    (ended,) = rest.document["ended"]
    assert (ended["id"], ended["outcome"], ended["listings"], ended["others"]) == (other, "gone", 2, 1)
    assert desk.ours() == []
    assert [pod.name for pod in desk.fake.pods()] == ["somebody-elses"]
    nothing = desk.cli("cleanup")
    assert (nothing.code, "never touched" in nothing.out) == (0, True)


def test_what_is_foreign_or_in_use_is_never_ended(desk: Desk) -> None:
    theirs = desk.fake.foreign("somebody-elses")
    desk.cli("cleanup", theirs.id, "--yes", "--json").refused(2, "allocation_unknown")
    run_id = "a1b2c3d4e5f6"
    with Writer(desk.home) as writer:
        writer.create_run(run_id, preset("demo"))
        writer.claim_runner(run_id, os.getpid())
    mine = desk.rent(run_id)
    error = desk.cli("cleanup", mine, "--yes", "--json").refused(2, "allocation_in_use")
    assert f"glasshouse cancel {run_id}" in error["hint"]
    left = desk.cli("cleanup", "--yes")
    assert (left.code, "in use by active runs: 1" in left.out) == (0, True)
    assert (desk.state(mine), len(desk.fake.pods())) == ("active", 2)


def test_what_cannot_be_ended_is_loud_exits_1_and_stays_loud(desk: Desk) -> None:
    mine = desk.rent()
    desk.fake.fault("terminate", "ignored", times=None)
    done = desk.cli("cleanup", "--yes")
    assert done.code == 1
    assert "LEAKED" in done.out
    assert "https://console.runpod.io/pods" in done.out
    assert desk.state(mine) == "leaked"
    assert "1 allocation is open without an active run, at $0." in desk.cli("presets").err
    listed = desk.cli("allocations")
    assert listed.code == 0
    assert f"glasshouse cleanup {mine}" in listed.out
    desk.fake.clear()
    done = desk.cli("cleanup", mine, "--yes")
    # The sentinel, which `cleanup` started, tries again too: where it was first, nothing is left to terminate.
    assert done.code == 0 or desk.state(mine) == "gone", done.err
    assert desk.ours() == []


def test_what_the_console_releases_is_ended_by_a_process_of_its_own(desk: Desk) -> None:
    mine = desk.rent()
    EngineLauncher().release(desk.home, mine)
    deadline = time.monotonic() + 120
    while desk.state(mine) != "gone" and time.monotonic() < deadline:
        select.select([], [], [], 0.05)
    assert (desk.state(mine), desk.ours()) == ("gone", [])
    with pytest.raises(UsageError) as caught:
        EngineLauncher().release(desk.home, mine)
    assert caught.value.code == "allocation_unknown"


def test_the_live_self_test_rents_looks_ends_and_proves(desk: Desk) -> None:
    desk.fake.foreign("somebody-elses")
    done = desk.cli(*LIVE, "--yes")
    assert done.code == 0, done.err
    for part in ("ceiling  $1.00", "ok       rent", "ok       ready", "dead-man's switch armed", "ok       proof"):
        assert part in done.err, part
    assert "Renting, trust and termination work" in done.out
    assert [pod.name for pod in desk.fake.pods()] == ["somebody-elses"]
    assert len([pod for pod in desk.fake.ever() if pod.name.startswith("glasshouse-")]) == 1


def test_the_dead_mans_switch_ends_the_pod_with_its_own_key(desk: Desk) -> None:
    done = desk.cli(*LIVE, "--yes", "--json", "--self-destruct", "4")
    assert (done.code, done.err) == (0, ""), done.out
    steps = {step["name"]: step for step in done.document["steps"]}
    assert list(steps) == [
        "rent",
        "ready",
        "login",
        "commands",
        "home",
        "sftp",
        "python",
        "lock",
        "self-destruct",
        "proof",
    ]
    assert "terminated itself with its own key" in steps["self-destruct"]["detail"]
    assert {call.caller for call in desk.fake.calls("terminate")} >= {"pod"}
    assert desk.ours() == []


def test_a_self_test_that_fails_still_ends_its_pod_and_proves_it(desk: Desk) -> None:
    desk.fake.fault("create", "other_host_key")
    done = desk.cli(*LIVE, "--yes", "--json")
    assert done.code == 1
    found = done.document
    assert (found["passed"], found["gone"]) == (False, True)
    steps = {step["name"]: step for step in found["steps"]}
    assert not steps["ready"]["passed"]
    assert "host_key_mismatch" in steps["ready"]["detail"]
    assert steps["proof"]["passed"]
    assert "login" not in steps
    assert desk.ours() == []


def test_an_interrupted_self_test_still_ends_its_pod(desk: Desk) -> None:
    desk.fake.fault("create", "pull_forever")
    running = desk.cli.start(*LIVE, "--yes")
    deadline = time.monotonic() + 120
    while not desk.ours() and time.monotonic() < deadline:
        select.select([], [], [], 0.05)
    with Reader(desk.home) as reader:
        (mine,) = reader.allocations()
    desk.cli("cleanup", mine.id, "--yes", "--json").refused(2, "allocation_in_use")
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=120)
    assert running.returncode == 130, said
    assert desk.ours() == []
    assert desk.state(mine.id) == "gone"


@pytest.mark.parametrize(
    ("options", "exit_code", "code"),
    [
        (["--max-cost", "1", "--provider", "runpod"], 2, "confirmation_needed"),
        (["--yes", "--provider", "runpod"], 2, "ceiling_missing"),
        (["--yes", "--max-cost", "1"], 2, "usage"),
        (["--yes", "--max-cost", "0.001", "--provider", "runpod", "--gpu", CHEAP], 1, "ceiling_too_low"),
        (["--yes", "--max-cost", "1", "--provider", "runpod", "--gpu", "no such GPU"], 1, "no_acceptable_gpu"),
        (["--yes", "--max-cost", "1", "--provider", "runpod", "--max-price", "0.01"], 1, "price_above_ceiling"),
    ],
)
def test_a_self_test_that_may_not_start_rents_nothing(
    desk: Desk, options: list[str], exit_code: int, code: str
) -> None:
    desk.cli("doctor", "--live", "--json", *options).refused(exit_code, code)
    assert desk.fake.calls("create") == []


def test_doctor_says_where_the_key_is_and_never_what_it_is(desk: Desk) -> None:
    usable = desk.cli("doctor", "--provider", "runpod", "--json")
    assert (usable.code, usable.document["usable"]) == (0, True)
    checks = {check["name"]: check for check in usable.document["checks"]}
    assert checks["runpod key"]["detail"] == "in the variable RUNPOD_API_KEY"
    assert "127.0.0.1" in checks["runpod api"]["detail"]
    desk.fake.fault("any", "unauthorized", times=None)
    refused = desk.cli("doctor", "--provider", "runpod", "--json")
    assert (refused.code, refused.document["usable"]) == (1, False)
    assert "api_key_rejected" in refused.document["checks"][-1]["detail"]
    (desk.home / "config.toml").write_text("[runpod]\nmax_cots = 1\n")
    broken = desk.cli("doctor", "--provider", "runpod", "--json")
    assert broken.document["checks"][0]["status"] == "missing"
    assert "max_cots" in broken.document["checks"][0]["detail"]
    assert all(desk.fake.key not in done.out + done.err for done in (usable, refused, broken))


@pytest.mark.parametrize("detach", [[], ["--detach"]], ids=["followed", "detached"])
def test_at_a_terminal_the_price_is_shown_and_no_is_no(desk: Desk, detach: list[str]) -> None:
    options = ["run", "--preset", "demo", "--provider", "runpod", "--gpu", CHEAP, "--max-cost", "0.5", *detach]
    code, shown = at_a_terminal([*desk.cli.command, "--home", str(desk.home), *options], "Rent it?", "n\n")
    assert code == 1, shown
    assert shown.rstrip().endswith("Not rented.")
    assert "Interrupted" not in shown
    for part in ("RTX A2000 at $0.", "an hour", "at most $", "the pod terminates itself"):
        assert part in shown, part
    assert desk.cli("runs", "--json").document == {"runs": []}
    assert desk.fake.calls("create") == []


def test_what_is_refused_is_refused_before_the_price_is_asked_about(desk: Desk, tmp_path: Path) -> None:
    loose = tmp_path / "loose.json"
    policy = json.loads(data_path("policies", "default.json").read_text())
    loose.write_text(json.dumps(policy | {"requiredControls": []}))
    options = ["run", "--preset", "demo", "--provider", "runpod", "--gpu", CHEAP, "--max-cost", "0.5"]
    for wrong, words in (["--policy", tmp_path / "none"], "--policy"), (["--policy", loose], "requires less"):
        command = [*desk.cli.command, "--home", str(desk.home), *options, *map(str, wrong)]
        exit_code, shown = at_a_terminal(command, "Rent it?", "y\n")
        assert exit_code != 0
        assert words in shown
        assert "Rent it?" not in shown
    assert desk.fake.calls("create") == []


def test_a_run_on_an_allocation_that_nobody_kept_is_refused_at_once(cli: CommandLine) -> None:
    options = ("run", "--preset", "demo", "--provider", "runpod", "--allocation", "abc")
    cli(*options, "--json").refused(2, "allocation_unknown")
    assert not (cli.home / "runs").exists()


def test_a_home_without_rented_allocations_says_so_without_a_key(cli: CommandLine, tmp_path: Path) -> None:
    empty = {"RUNPOD_API_KEY": "", "HOME": str(tmp_path)}
    assert cli("allocations", env=empty).out.startswith("Nothing is rented.")
    assert cli("cleanup", "--json", env=empty).document == {"ended": []}
