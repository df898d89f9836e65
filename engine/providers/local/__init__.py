"""This machine as an allocation."""
