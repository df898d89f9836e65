"""What runs on the allocation; shipped as a reproducible zipapp of our own Python."""
