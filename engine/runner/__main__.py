"""The runner's process: `python -m engine.runner --home DIR --run ID`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import traceback
from pathlib import Path

from engine.errors import GlasshouseError
from engine.runner.lifecycle import Runner
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
        return 1
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
