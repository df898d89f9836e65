from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import engine
from engine.remote.bundle import LOCK_NAME, MODULES, ROOMS, build_bundle, bundle_digest, worker_lock
from engine.wire import canonical, parse
from tests.needs import LOCAL_EXTRA

PACKAGE = Path(engine.__file__).parent
PRINT_DIGEST = "from engine.remote.bundle import *; print(bundle_digest(build_bundle()))"


def _digest_in_process(packages: Path, cwd: Path, umask: int, **env: str) -> str:
    pytest.importorskip("torch", reason=LOCAL_EXTRA)
    done = subprocess.run(
        [sys.executable, "-c", PRINT_DIGEST],
        cwd=cwd,
        umask=umask,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(packages), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_two_processes_in_different_environments_build_the_same_bytes(tmp_path: Path) -> None:
    here = _digest_in_process(PACKAGE.parent, tmp_path, 0o022, TZ="UTC", LC_ALL="C", PYTHONHASHSEED="1")
    there = _digest_in_process(
        PACKAGE.parent, Path("/"), 0o077, TZ="Pacific/Auckland", LC_ALL="C.UTF-8", PYTHONHASHSEED="2"
    )
    assert here == there == bundle_digest(build_bundle())


def test_another_copy_with_other_times_modes_and_litter_gives_the_same_bytes(tmp_path: Path) -> None:
    copy = tmp_path / "site-packages" / "engine"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.rglob("*.py"):
        path.chmod(0o640)
        os.utime(path, (1, 1))
    (copy / "worker" / "__pycache__").mkdir()
    (copy / "worker" / "__pycache__" / "main.cpython-311.pyc").write_bytes(b"x")
    (copy / "worker" / "fast.so").write_bytes(b"x")
    (copy / "sealing" / "notes.txt").write_bytes(b"x")
    (copy / "sealing" / "elsewhere.py").symlink_to("/etc/passwd")
    (copy / "store" / "extra.py").write_bytes(b"x = 1\n")
    assert _digest_in_process(copy.parent, tmp_path, 0o022) == bundle_digest(build_bundle())


def test_it_contains_our_unchanged_sources_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(build_bundle())) as archive:
        names = archive.namelist()
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert entry.external_attr >> 16 == 0o100644
        for name in names:
            if name in {"__main__.py", LOCK_NAME}:
                continue
            path = Path(name)
            assert path.suffix == ".py"
            assert path.parts[0] == "engine"
            assert path.parts[1] in (*MODULES, *ROOMS)
            assert archive.read(name) == (PACKAGE.parent / name).read_bytes()
    assert names == sorted(names)
    assert {"__main__.py", LOCK_NAME, "engine/wire.py", "engine/worker/main.py"} <= set(names)


def test_a_changed_source_changes_the_identity(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "engine" / "wire.py").open("ab") as file:
        file.write(b"\n")
    assert _digest_in_process(tmp_path, tmp_path, 0o022) != bundle_digest(build_bundle())


def test_the_lock_names_the_installed_requirements_transitively() -> None:
    lock = worker_lock()
    assert lock["torch"] == metadata.version("torch")
    assert lock["cffi"] == metadata.version("cffi")
    assert "pytest" not in lock
    assert "textual" not in lock
    with zipfile.ZipFile(io.BytesIO(build_bundle())) as archive:
        assert archive.read(LOCK_NAME) == canonical(lock)


def test_another_lock_can_be_given() -> None:
    with zipfile.ZipFile(io.BytesIO(build_bundle({"numpy": "1"}))) as archive:
        assert parse(archive.read(LOCK_NAME)) == {"numpy": "1"}


def test_python_runs_its_entry_point(tmp_path: Path) -> None:
    path = tmp_path / "bundle.pyz"
    path.write_bytes(build_bundle({}))
    done = subprocess.run(
        [sys.executable, "-I", "-S", path, "no-such-role"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "supervisor" in done.stderr
