"""What runs on another machine: each file is sent as one text and imports the standard library alone."""
