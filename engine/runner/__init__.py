"""The runner: one detached process per run, which owns its state machine, provider, session and keys."""
