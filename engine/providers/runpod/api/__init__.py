"""RunPod's API: one protocol over REST v2 and the SDK, with a rate limit and caches shared by a home's processes."""
