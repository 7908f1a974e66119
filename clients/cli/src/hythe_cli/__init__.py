"""The command line: sets Hythe up, runs it, asks it and watches it."""
