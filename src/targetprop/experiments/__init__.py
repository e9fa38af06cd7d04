"""The command line and what it runs: configuration, data, networks, the one training loop, run folders, checkpoints."""
