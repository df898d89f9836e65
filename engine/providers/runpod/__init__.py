"""RunPod: pods rented through a narrow seam with two implementations, and rules that keep them from leaking."""
