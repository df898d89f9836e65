"""Every command over a home full of hostile text: nothing of it reaches the terminal, and JSON still has it exactly."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from engine.plan import preset
from engine.runner.spawn import FOLDER, LOCK
from engine.store.views import Check
from engine.wire import LOG, ChainWriter
from glasshouse_tui.cli import main

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Scene

EVIL = "\x1b]0;gone\x07\x1b[2J\x9b2J\x90\x7f\r\u202egnp.\u2066\u2028\x85end"
COMMANDS = [
    ["runs"],
    ["show", "last"],
    ["logs", "last"],
    ["watch", "last"],
    ["cancel", "last"],
    ["resume", "last"],
    ["export", "last"],
    ["export", "last", "--format", "md"],
    ["export", "last", "-o", f"/nowhere/{EVIL}"],
    ["adapter", "last", "-o", f"/nowhere/{EVIL}"],
    ["allocations", "--offline"],
    ["cleanup"],
    ["show", EVIL],
    ["cleanup", EVIL],
    ["verify", EVIL],
    ["verify", EVIL, EVIL],
    ["run", "--preset", EVIL],
    ["run", "--preset", "demo", "--label", EVIL],
    ["run", "--preset", "demo", "--stand-in", "--data", EVIL],
    ["key", "restore", EVIL],
    ["data", EVIL],
    ["data", "/dev/null", "--max-length", EVIL],
    [EVIL],
    ["runs", f"--{EVIL}"],
]


@pytest.fixture
def hostile(scene: Scene, tmp_path: Path) -> Iterator[Path]:
    """A home in which everything that others can name has a hostile name."""
    plan = msgspec.structs.replace(preset("demo"), label=EVIL)
    run_id = scene.create(plan=plan)
    scene.writer.describe(run_id, gpu_model=EVIL)
    scene.move("run", "running", EVIL)
    for chain in ("runner", "pod"):
        line = ChainWriter(run_id).append(LOG, {"text": EVIL, EVIL: EVIL})
        scene.writer.append_events(run_id, "runner", [line]) if chain == "runner" else scene.writer.ingest(
            run_id, [line], 1
        )
    scene.writer.allocation_intent("alloc-1", "runpod", EVIL, None)
    scene.writer.allocation_state("alloc-1", "created", EVIL, provider_id=EVIL, gpu_model=EVIL, price_per_hour=1.0)
    scene.writer.allocation_state("alloc-1", "leaked", EVIL)
    check = Check(name="attestation_verified", group="lifecycle", status="failed", reason=EVIL)
    scene.finish(clean=False, state="failed", checks=[check], gpuModel=EVIL, note=EVIL, label=EVIL, model=EVIL)
    (scene.home / FOLDER).mkdir(mode=0o700)
    with (scene.home / FOLDER / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # no command starts a sentinel for the pod that does not exist
        yield scene.home


def _harmless(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for name, inner in value.items() for text in (name, *_texts(inner))]
    return [text for inner in value for text in _texts(inner)] if isinstance(value, list) else [str(value)]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: "-".join(arguments).split("\x1b")[0][:30])
def test_no_command_writes_what_a_terminal_could_obey(
    hostile: Path, arguments: Sequence[str], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for more in ([], ["--json"]):
        main(["--home", str(hostile), *arguments, *more])
        out, err = capfdbinary.readouterr()
        assert _harmless(out.decode()), (more, out)
        assert _harmless(err.decode()), (more, err)
        assert out or err


@pytest.mark.parametrize("arguments", [["runs"], ["show", "last"], ["logs", "last"], ["allocations", "--offline"]])
def test_json_has_the_text_as_it_came(
    hostile: Path, arguments: Sequence[str], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    main(["--home", str(hostile), *arguments, "--json"])
    assert EVIL in _texts(json.loads(capfdbinary.readouterr().out))


def test_a_hostile_artifact_is_refused_in_harmless_words(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    document = json.loads((Path(__file__).parents[2] / "vectors" / "artifact" / "row.json").read_bytes())
    document |= {"label": EVIL[:80], "gpuModel": EVIL, "note": EVIL}
    document["checks"][0]["reason"] = EVIL
    file = tmp_path / f"row-{EVIL.replace('/', '')}.json"
    file.write_text(json.dumps(document))
    for more in ([], ["--json"]):
        assert main(["--home", str(tmp_path / "home"), "verify", str(file), *more]) == 1
        out, err = capfdbinary.readouterr()
        assert _harmless(out.decode() + err.decode())
        assert out
