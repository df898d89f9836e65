"""RunPod's API: one protocol over REST v2 and the SDK, with limits that all processes of a home keep together."""
