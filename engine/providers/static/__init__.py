"""The operator's own SSH hosts as allocations."""
