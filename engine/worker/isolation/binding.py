"""How the dynamic linker binds functions in a process that sees a key or plaintext.

Bound lazily, a function's first call goes through the linker, which saves the vector registers on the stack, and those
may still hold what was copied last (ld.so(8), `LD_BIND_NOW`).
"""

from __future__ import annotations

from typing import Final

# Read when a program starts: it goes into the environment of the process to be started.
BIND_NOW: Final = {"LD_BIND_NOW": "1"}
