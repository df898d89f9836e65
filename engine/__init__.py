"""The engine of Glasshouse: plans, the protected path, runs and their rows. Never imports a user interface."""

__version__ = "0.1.0"
