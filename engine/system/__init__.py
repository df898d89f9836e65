"""What the engine needs of the operating system: processes, clocks, files, imports, shipped data."""
