"""The training work itself, the same code for both segments. Importing this package loads no torch."""
