"""`python -m tests.fuzz.bounded FILE...`: verify artifacts under a limit of memory, and report what it took as JSON.

The limit is on the address space and so on everything that a file can make the verifier allocate; with `--cpu` also one
on processor time, after which the kernel ends the process.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ADDRESS_SPACE: Final = 512 * 1024 * 1024
ROOT: Final = Path(__file__).parents[2]
_SETTINGS: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


def outcome(file: Path) -> dict[str, Any]:
    """What `verify` says of one file to somebody who trusts nobody, with the processor seconds that it took."""
    from engine.errors import GlasshouseError
    from engine.records.trust import anchors
    from engine.records.verify import verify_bytes

    began = time.process_time()
    with tempfile.TemporaryDirectory() as nowhere:
        known = anchors(Path(nowhere))
    try:
        verification = verify_bytes(file.read_bytes(), known)
        codes = {proof.name: proof.code or proof.status for proof in verification.proofs}
        reasons = [proof.reason for proof in verification.proofs]
    except GlasshouseError as error:
        codes, reasons = {"parsed": error.code}, [error.message]
    return {
        "file": file.name,
        "codes": codes,
        "reasons": reasons,
        "seconds": time.process_time() - began,
        "peak": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """The most memory that this program held; `ru_maxrss` has that of its parent too, from before `exec`."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def verified(file: Path, *, cpu: int, address_space: int = ADDRESS_SPACE) -> dict[str, Any]:
    """`outcome` in a child with these limits; raises `CalledProcessError` if the limits ended it."""
    arguments = [sys.executable, "-m", "tests.fuzz.bounded", str(file), str(address_space), str(cpu)]
    done = subprocess.run(arguments, cwd=ROOT, env=_SETTINGS, check=True, capture_output=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main(arguments: Sequence[str]) -> int:
    """Verify one file: FILE, bytes of address space, seconds of processor time (0: no limit)."""
    import engine.measure.precision
    import engine.records.verify  # noqa: F401  # the libraries' own maps are not the file's doing

    file, address_space, cpu = arguments
    if int(address_space):
        resource.setrlimit(resource.RLIMIT_AS, (int(address_space), int(address_space)))
    if int(cpu):
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu), int(cpu)))
    sys.stdout.write(json.dumps(outcome(Path(file))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
