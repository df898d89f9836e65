"""What the engine needs from the operating system: processes, clocks, files, imports, shipped data."""
