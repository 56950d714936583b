"""The command line: `bess`."""
