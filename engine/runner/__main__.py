"""The runner's process: `python -m engine.runner --home DIR --run ID`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import traceback
from pathlib import Path

from engine.errors import GlasshouseError
from engine.runner.lifecycle import Runner
from engine.runner.lost import LOST
from engine.store.home import has_database
from engine.store.writer import Writer
from engine.system.text import visible


def main() -> int:
    """Run one run to its end; 0 when it finished, 1 when it failed or was cancelled."""
    parser = argparse.ArgumentParser("engine.runner")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--run", required=True)
    options = parser.parse_args()
    try:
        return 0 if asyncio.run(Runner(options.home, options.run).execute()) == "finished" else 1
    except GlasshouseError as error:
        sys.stderr.write(visible(f"{error.code}: {error.message} {error.hint}") + "\n")
        if error.code not in {"run_locked", *LOST}:  # another runner has the run, or there is nowhere to warn
            _warn(options.home, options.run, f"The runner ended: {error.code}: {error.message} {error.hint}")
        return 1
    except Exception as error:
        traceback.print_exc()
        _warn(options.home, options.run, f"The runner ended by an internal error ({type(error).__name__}).")
        return 1


def _warn(home: Path, run_id: str, text: str) -> None:
    """Leave the last word in the run's history as well, where `logs` and `watch` show it."""
    if not has_database(home):
        return  # a writer would make the home that the user removed again
    with contextlib.suppress(GlasshouseError), Writer(home) as writer:
        writer.warn(run_id, text)


if __name__ == "__main__":
    raise SystemExit(main())
