"""RunPod's API through its own SDK: one folder that can go when its GraphQL does."""
