"""Isolates a worker process and proves that secrets left its memory; free of torch."""
