"""How many processes the suite runs in."""

from __future__ import annotations

import os


def pytest_xdist_auto_num_workers() -> int:
    """Up to one a core, and three even on two cores: many tests wait for processes, links and clocks."""
    return max(3, min(4, os.cpu_count() or 1))
