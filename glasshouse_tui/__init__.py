"""What a person meets: the console and the command line. Nothing here owns work."""
