"""What fences a worker process off and proves that secrets left its memory; free of torch."""
