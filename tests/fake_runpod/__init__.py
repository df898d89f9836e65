"""A fake RunPod: both APIs on loopback, with pods that are real OpenSSH servers. See README.md."""
