"""RunPod: pods rented through a narrow interface with two implementations, and rules that keep them from leaking."""
