"""Programs that run on another machine: each file is sent as one text and imports only the standard library."""
