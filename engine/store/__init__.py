"""The home folder's database: the only place where runners, console and command line meet."""
