"""The runner with a bundle whose trainer needs no torch: `small_runner.py --home DIR --run ID` on `engine.runner`."""

from __future__ import annotations

from engine.remote import bundle
from engine.runner import staging
from engine.runner.__main__ import main
from tests.functional.runs.pod import with_small_training

if __name__ == "__main__":
    setattr(staging, "build_bundle", lambda lock=None: with_small_training(bundle.build_bundle(lock)))  # noqa: B010
    raise SystemExit(main())
