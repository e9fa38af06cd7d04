"""The files of a run: its folder, lock, metrics, checkpoint and status."""
