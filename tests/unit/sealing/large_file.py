"""Seals and opens one large file in a process with a limit on its private memory; prints how much it used.

`python -m tests.unit.sealing.large_file FOLDER SIZE` prints a JSON object with `grown`, by how many bytes the private
memory of the process grew at most, and with the last report of each progress.
"""

from __future__ import annotations

import json
import mmap
import re
import resource
import sys
from pathlib import Path
from typing import Final

from engine.sealing.memory import key_at
from engine.sealing.package import open_file, open_sealed, seal_package

MIB: Final = 1024 * 1024
ALLOWED: Final = 40 * MIB  # of which the stacks of two threads take 16
_CHECK_EVERY: Final = 32 * MIB


def own_memory(name: str) -> int:
    """A size in bytes: `VmData` is what the process reserved, `RssAnon` what it uses; both without shared maps."""
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"the kernel does not report {name}")
    return int(match[1]) * 1024


def marks(size: int) -> dict[int, bytes]:
    """The content of the otherwise sparse file, by offset: at its ends, and around 2 GiB."""
    places = {0, size // 3, 2**31 - 8, size - 16}
    return {at: f"mark {at:<11}".encode() for at in places if at + 16 <= size}


class Watch:
    """A progress callback that checks that progress only grows, and checks the memory from time to time."""

    def __init__(self) -> None:
        self.start = own_memory("RssAnon")
        self.grown = self.done = self.total = self._checked = 0
        self.ordered = True

    def __call__(self, done: int, total: int) -> None:
        """See `Progress`."""
        self.ordered = self.ordered and done >= self.done
        self.done, self.total = done, total
        if done - self._checked >= _CHECK_EVERY or done == total:
            self._checked = done
            self.grown = max(self.grown, own_memory("RssAnon") - self.start)

    def report(self) -> dict[str, object]:
        """The last progress, whether it only grew, and by how much the memory grew."""
        return {"done": self.done, "total": self.total, "ordered": self.ordered, "grown": self.grown}


def main() -> None:
    """Create the file, seal it, open it into a shared map, compare."""
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    with (folder / "source").open("wb") as file:
        file.truncate(size)
        for at, mark in marks(size).items():
            file.seek(at)
            file.write(mark)
    allowed = own_memory("VmData") + ALLOWED
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    sealing, opening = Watch(), Watch()
    package = seal_package(
        {"large.bin": folder / "source"},
        folder / "package",
        run_id="run-1",
        plan_digest="11" * 32,
        policy_digest="22" * 32,
        progress=sealing,
    )
    entry = package.manifest.files[0]
    with (folder / "opened").open("w+b") as file:
        file.truncate(size)
        with (
            mmap.mmap(file.fileno(), size, mmap.MAP_SHARED) as target,
            memoryview(target) as view,
            open_sealed(package.folder, entry) as source,
        ):
            open_file(key_at(package.keys, 0), package.manifest, entry, source, view, opening)
            whole = all(view[at : at + 16] == mark for at, mark in marks(size).items())
    stored = (folder / "package" / "large.bin.sealed").stat().st_size
    print(json.dumps({"sealing": sealing.report(), "opening": opening.report(), "whole": whole, "stored": stored}))


if __name__ == "__main__":
    main()
