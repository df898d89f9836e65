"""RunPod's API through its own SDK: one folder, to be deleted when RunPod retires GraphQL."""
