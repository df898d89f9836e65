"""The folder of an adapter: written, signed, merged, and tied to its row."""
