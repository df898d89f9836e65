"""Between operator and allocation: the bundle, the SSH session, the launch, and following the event log."""
