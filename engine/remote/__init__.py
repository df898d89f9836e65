"""Between operator and allocation: the bundle, the SSH session, the launch and the log's tail."""
