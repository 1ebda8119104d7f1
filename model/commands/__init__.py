"""The command lines of the three programs: parse the arguments, call a daemon or a command."""
