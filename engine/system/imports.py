"""Importing a package without its optional dependencies, to keep small processes small."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(*names: str) -> Iterator[None]:
    """While the context lasts, these packages cannot be imported, unless they are already loaded.

    `None` in `sys.modules` makes an import raise `ImportError` (Python reference, 5.3.1), which the importing package
    treats as an extra that is not installed.
    """
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
