"""The environment's digest: what changes it, and what does not."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.attestation.measurement import bundle_digest, list_environment, stdlib_roots
from engine.errors import RefusedError

INTERPRETER = Path(sys.executable)
CACHE = f"module.{sys.implementation.cache_tag}.pyc"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "package" / "__pycache__").mkdir(parents=True)
    (folder / "package" / "module.py").write_text("x = 1\n")
    (folder / "package" / "native.so").write_bytes(os.urandom(3 * 1024 * 1024))
    (folder / "package" / "__pycache__" / CACHE).write_bytes(b"compiled")
    (folder / "link").symlink_to("package")
    return folder


def digest(*roots: Path) -> str:
    return list_environment(roots, INTERPRETER).measure().digest


def test_the_digest_is_the_same_when_repeated_and_after_a_move(site: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(site, tmp_path / "moved" / "deeper", symlinks=True)
    assert digest(site) == digest(site) == digest(copy)


def test_what_was_measured_is_counted(site: Path) -> None:
    measured = list_environment([site], INTERPRETER).measure()
    alone = list_environment([], INTERPRETER).measure()
    assert measured.files - alone.files == 3
    assert measured.bytes - alone.bytes == 3 * 1024 * 1024 + 6 + 8
    assert (measured.links, measured.skipped) == (1, 0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def in_place_of_link(site: Path) -> Path:
    (site / "link").unlink()
    return site / "link"


CHANGES: dict[str, Callable[[Path], object]] = {
    "source": lambda site: (site / "package" / "module.py").write_text("x = 2\n"),
    "one byte of an extension": lambda site: flip(site / "package" / "native.so"),
    "compiled cache": lambda site: (site / "package" / "__pycache__" / CACHE).write_bytes(b"otherwise"),
    "new file": lambda site: (site / "sitecustomize.py").write_text(""),
    "removed file": lambda site: (site / "package" / "module.py").unlink(),
    "renamed file": lambda site: (site / "package" / "module.py").rename(site / "package" / "modulf.py"),
    "moved file": lambda site: (site / "package" / "module.py").rename(site / "module.py"),
    "link target": lambda site: in_place_of_link(site).symlink_to("/etc"),
    "file in place of a link": lambda site: in_place_of_link(site).write_text("package"),
    "path file": lambda site: (site / "other.pth").write_text("/elsewhere"),
    "shadowing module": lambda site: (site / "json.py").write_text(""),
    "package in place of a namespace": lambda site: (site / "package" / "__init__.py").write_text(""),
    "compiled module without a source": lambda site: (site / "package" / "late.pyc").write_bytes(b""),
    "new compiled cache": lambda site: (site / "package" / "__pycache__" / CACHE.replace("mod", "m")).write_text(""),
}


@pytest.mark.parametrize("what", CHANGES)
def test_any_change_to_what_runs_changes_the_digest(what: str, site: Path) -> None:
    before = digest(site)
    CHANGES[what](site)
    assert digest(site) != before


def test_caches_that_this_interpreter_never_loads_are_not_measured(site: Path) -> None:
    before = list_environment([site], INTERPRETER).measure()
    caches = site / "package" / "__pycache__"
    tag = sys.implementation.cache_tag
    for name in ("module.cpython-27.pyc", f"module.{tag}-pytest-9.0.0.pyc", f"{CACHE}.139812", "README"):
        (caches / name).write_bytes(b"foreign")
    after = list_environment([site], INTERPRETER).measure()
    assert after.digest == before.digest
    assert after.skipped == 4


def test_times_and_modes_are_not_measured(site: Path) -> None:
    before = digest(site)
    os.utime(site / "package" / "module.py", (1, 1))
    (site / "package" / "module.py").chmod(0o600)
    assert digest(site) == before


def test_the_target_of_a_link_to_outside_is_measured(site: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "module.py").write_text("one")
    (outside / "deep" / "round").symlink_to(outside)
    (tmp_path / "single.py").write_text("one")
    (site / "away").symlink_to(outside)
    (site / "single.py").symlink_to(tmp_path / "single.py")
    (site / "loop").symlink_to(site)
    (site / "nowhere").symlink_to(tmp_path / "absent")
    before = digest(site)
    for changed in (outside / "deep" / "module.py", tmp_path / "single.py", outside / "added.py", tmp_path / "absent"):
        content = changed.read_text() if changed.exists() else None
        changed.write_text("two")
        assert digest(site) != before, changed
        changed.unlink() if content is None else changed.write_text(content)
        assert digest(site) == before


def test_a_link_to_a_file_that_is_otherwise_skipped_is_measured_by_content(site: Path) -> None:
    foreign = site / "package" / "__pycache__" / "module.cpython-27.pyc"
    foreign.write_bytes(b"foreign")
    (site / "module.py").symlink_to(foreign)
    before = digest(site)
    foreign.write_bytes(b"changed")
    assert digest(site) != before


def copied_interpreter(tmp_path: Path) -> Path:
    """A working copy of the interpreter in its own folder."""
    folder = tmp_path / "own" / "bin"
    folder.mkdir(parents=True)
    return Path(shutil.copy(INTERPRETER.resolve(), folder / "python"))


def test_a_file_that_redirects_the_interpreters_imports_is_measured(site: Path, tmp_path: Path) -> None:
    python = copied_interpreter(tmp_path)
    before = list_environment([site], python).measure().digest
    normal = subprocess.run([python, "-I", "-S", "-c", "import sys; print(sys.path)"], capture_output=True, check=True)
    for name in ("python._pth", "python3._pth"):
        python.with_name(name).write_text("/elsewhere\n")
    assert list_environment([site], python).measure().digest != before
    redirected = subprocess.run([python, "-I", "-S", "-c", "1"], capture_output=True, check=False)
    assert normal.stdout
    assert redirected.returncode != 0, "this interpreter no longer reads such a file"


def test_the_archive_that_precedes_the_standard_library_is_measured(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        Path(name).name
        for name in subprocess.run(
            [INTERPRETER, "-I", "-S", "-c", "import sys; print(*sys.path, sep='\\n')"],
            capture_output=True,
            check=True,
            text=True,
        ).stdout.split()
    ]
    library = tmp_path / "prefix" / sys.platlibdir
    library.mkdir(parents=True)
    roots = stdlib_roots()
    monkeypatch.setattr(sys, "base_prefix", str(library.parent))
    monkeypatch.setattr("engine.attestation.measurement.stdlib_roots", lambda: roots)
    before = digest(site)
    (library / f"python{sys.version_info.major}{sys.version_info.minor}.zip").write_bytes(b"json shadowed")
    assert digest(site) != before
    assert f"python{sys.version_info.major}{sys.version_info.minor}.zip" in names


def fingerprint(*roots: Path, interpreter: Path = INTERPRETER) -> str:
    return list_environment(roots, interpreter).fingerprint


def test_the_fingerprint_detects_a_file_that_was_exchanged_and_restored(site: Path) -> None:
    path = site / "package" / "module.py"
    status, content, before = path.stat(), path.read_bytes(), fingerprint(site)
    assert fingerprint(site) == before
    path.write_bytes(b"x = 2\n")
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest(site) == digest(site)
    assert fingerprint(site) != before


@pytest.mark.parametrize("name", ["pyvenv.cfg", "../pyvenv.cfg", "python"])
def test_the_fingerprint_covers_the_interpreter_and_its_pyvenv_cfg(name: str, site: Path, tmp_path: Path) -> None:
    python = copied_interpreter(tmp_path)
    before = fingerprint(site, interpreter=python)
    target = python.parent / name
    content = target.read_bytes() if target.exists() else b""
    target.unlink(missing_ok=True)
    target.write_bytes(content + b"home = /elsewhere\n")
    assert fingerprint(site, interpreter=python) != before


def test_special_files_are_counted_and_never_opened(site: Path) -> None:
    before = list_environment([site], INTERPRETER).measure()
    os.mkfifo(site / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(site / "s"))
        after = list_environment([site], INTERPRETER).measure()
    assert after.digest == before.digest
    assert after.skipped == 2


def test_the_order_of_roots_matters_as_in_the_import_path(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "module.py").write_text("y = 1\n")
    assert digest(site, other) != digest(other, site)


def test_a_root_inside_another_is_measured_once(site: Path) -> None:
    alone = list_environment([], INTERPRETER).measure().files
    assert list_environment([site, site / "package"], INTERPRETER).measure().files - alone == 3
    assert digest(site, site / "package") != digest(site)


def test_the_interpreter_is_part_of_the_measurement(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_bytes(b"another interpreter")
    assert list_environment([site], other).measure().digest != digest(site)


def test_the_standard_library_is_measured_without_its_site_packages() -> None:
    measured = list_environment(stdlib_roots(), INTERPRETER).measure()
    sources = sum(1 for root in stdlib_roots() for _ in root.rglob("*.py"))
    foreign = sum(
        1 for root in stdlib_roots() for name in ("site-packages", "dist-packages") for _ in (root / name).rglob("*.py")
    )
    assert measured.files >= sources - foreign
    assert measured.bytes > 10 * 1024 * 1024


def test_names_that_are_not_valid_text_are_measured(site: Path) -> None:
    before = digest(site)
    (Path(os.fsdecode(bytes(site) + b"/\xff\xfe.py"))).write_text("x")
    assert digest(site) != before


def test_a_name_cannot_pretend_to_be_two_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    (one / "a,4:file").write_text("")
    (two / "a").write_text("")
    (two / "file").write_text("")
    assert digest(one) != digest(two)


@pytest.mark.parametrize("root", ["missing", "site/package/module.py"])
def test_a_root_that_is_not_a_folder_is_refused(root: str, site: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        digest(site.parent / root)
    assert caught.value.code == "environment_unreadable"
    assert str(site.parent) not in caught.value.message
    assert root in caught.value.message
    assert caught.value.hint


def test_the_bundle_is_measured_by_its_bytes() -> None:
    assert bundle_digest(b"bundle") != bundle_digest(b"bundlf")
