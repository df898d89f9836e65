"""An installation whose training needs no torch: a copy of `engine` that `PYTHONPATH` puts before the real one.

The command line, the runners, the servers and the bundles of whatever is started with it are the shipped code. Replaced
are the training (`small.py`) and what the worker needs beside it, so that its environment is measured in a moment.
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
    """What the worker imports beside torch and its like. By its metadata it is all there, as an image must have it."""
    for installed in map(Path, site_paths()):
        for pattern in (*PACKAGES, *MODULES):
            for found in installed.glob(pattern):
                if found.is_dir():
                    shutil.copytree(found, target / found.name, symlinks=True)
                else:
                    shutil.copy(found, target)
        for found in installed.glob("*.dist-info/METADATA"):
            (target / found.parent.name).mkdir()
            shutil.copy(found, target / found.parent.name)
    compileall.compile_dir(target, maxlevels=0, quiet=1)  # or each process of each segment would compile these


def copy_engine(tree: Path, site: Path) -> None:
    """The installation, whose workers use `site`."""
    package = Path(engine.__file__).parent
    shutil.copytree(package, tree / "engine")  # with its compiled files: runners write none
    (tree / "data").symlink_to(package.parent / "data")
    for name, text in small_modules().items():
        (tree / name).write_text(text)
    text = (tree / BUNDLE).read_text()
    ours = f"def site_paths() -> tuple[str, ...]:\n    return ({json.dumps(str(site))},)\n"
    text, count = re.subn(r"def site_paths\(\) -> .*?:\n", lambda _: ours, text)
    assert count == 1
    (tree / BUNDLE).write_text(text)
