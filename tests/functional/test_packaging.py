"""What is installed: the data in the wheel, the entry point, and imports that stay light."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = (
    "presets.json", "published_rows.json", "sample_corpus.jsonl", "policies/default.json", "tiny_model/config.json",
    "tiny_model/base.json", "tiny_model/model.safetensors", "demo_facts.jsonl", "demo_heldout.jsonl",
    "locks/linux-x86_64.txt",
)  # fmt: skip
HEAVY = ("torch", "transformers", "peft", "asyncssh", "runpod", "textual", "plotext")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (path,) = out.glob("*.whl")
    return path


def test_the_data_is_in_the_wheel_and_found_there(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        names = archive.namelist()
    assert not [name for name in names if name.startswith("tests/")]
    program = f"from engine.system.resources import data_path; [print(data_path(*n.split('/'))) for n in {DATA!r}]"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd="/", env={"PYTHONPATH": str(tmp_path)}, check=True, capture_output=True,
        text=True,
    )  # fmt: skip
    lines = ran.stdout.splitlines()
    assert len(lines) == len(DATA)
    assert all(line.startswith(str(tmp_path / "engine" / "_data")) for line in lines)


def test_a_run_staged_from_the_wheel_is_the_bundle_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = "from engine.remote.bundle import build_bundle, bundle_digest; print(bundle_digest(build_bundle({})))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program], cwd="/", env={"PYTHONPATH": str(path)}, check=True, capture_output=True
        ).stdout
        for path in (tmp_path, ROOT)
    }
    assert len(digests) == 1


def test_the_data_is_found_in_a_checkout() -> None:
    from engine.system.resources import data_path

    assert all(data_path(*name.split("/")).exists() for name in DATA)


@pytest.mark.parametrize("module", ["engine", "engine.plan", "engine.wire", "engine.store.reader", "engine.runner"])
def test_importing_the_engine_loads_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"


def test_the_engine_never_reaches_textual_whatever_is_imported() -> None:
    program = (
        "import sys, pkgutil, importlib, engine\n"
        "names = [m.name for m in pkgutil.walk_packages(engine.__path__, 'engine.')"
        " if not m.name.endswith(('__main__', 'launcher'))]\n"
        "[importlib.import_module(name) for name in names]\n"
        "print([n for n in ('textual', 'plotext', 'torch', 'transformers', 'peft') if n in sys.modules], len(names))"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    loaded, count = ran.stdout.strip().rsplit(" ", 1)
    assert loaded == "[]"
    assert int(count) > 60
