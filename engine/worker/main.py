"""The bundle's entry point: one role per process."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Final

ROLES: Final = {
    "supervisor": "engine.worker.supervisor",
    "trainer": "engine.worker.trainer",
    "keyproc": "engine.worker.key_process",
    "scanner": "engine.worker.scanner",
    "measuring": "engine.worker.measuring",
}


def _sites(argv: list[str]) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv[:-1]) if word == "--site"]


def main() -> int:
    """`ROLE ... --site PATH...`: third-party code comes from the named folders only, after the bundle's own."""
    argv = sys.argv[1:]
    if not argv or argv[0] not in ROLES:
        sys.stderr.write(f"The first argument must be one of these roles: {', '.join(ROLES)}\n")
        return 2
    sys.path.extend(site for site in _sites(argv) if site not in sys.path)
    module = importlib.import_module(ROLES[argv[0]])
    status: int = module.main(argv[1:])
    if argv[0] == "trainer":
        # Torch's own exit handlers import modules, which a locked-down process may not read.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
