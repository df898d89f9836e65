"""An installation whose training needs no torch: a copy of `engine` that `PYTHONPATH` puts before the real one.

The command line, the runners, the servers and the bundles started from it are the shipped code. Only the training
(`small.py`) and the worker's installed packages are replaced, so that measuring the environment takes a moment.
"""

from __future__ import annotations

import compileall
import json
import re
import shutil
from pathlib import Path
from typing import Final

import engine
from engine.remote.bundle import site_paths
from tests.functional.runs.pod import small_modules

PACKAGES: Final = ("cffi", "cryptography", "joserfc", "msgspec", "pycparser", "rfc8785", "securesystemslib")
MODULES: Final = ("_cffi_backend*", "typing_extensions.py")
BUNDLE: Final = "engine/remote/bundle.py"


def copy_site(target: Path) -> None:
    """Copy what the worker imports apart from torch and its dependencies, and every package's metadata."""
    for installed in map(Path, site_paths()):
        for pattern in (*PACKAGES, *MODULES):
            for path in installed.glob(pattern):
                if path.is_dir():
                    shutil.copytree(path, target / path.name, symlinks=True)
                else:
                    shutil.copy(path, target)
        for metadata in installed.glob("*.dist-info/METADATA"):
            (target / metadata.parent.name).mkdir()
            shutil.copy(metadata, target / metadata.parent.name)
    compileall.compile_dir(target, maxlevels=0, quiet=1)  # otherwise each process of each segment would compile these


def copy_engine(tree: Path, site: Path) -> None:
    """Copy the installation; its workers use `site`."""
    package = Path(engine.__file__).parent
    shutil.copytree(package, tree / "engine")  # with its compiled files, because runners write none
    (tree / "data").symlink_to(package.parent / "data")
    for name, text in small_modules().items():
        (tree / name).write_text(text)
    text = (tree / BUNDLE).read_text()
    ours = f"def site_paths() -> tuple[str, ...]:\n    return ({json.dumps(str(site))},)\n"
    text, count = re.subn(r"def site_paths\(\) -> .*?:\n", lambda _: ours, text)
    assert count == 1
    (tree / BUNDLE).write_text(text)
