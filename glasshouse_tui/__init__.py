"""The user interfaces: the console and the command line. Neither owns a run."""
