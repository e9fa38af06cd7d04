"""The arena: problems, optimisers that compete on them, their tuning on an equal budget, and tables of the outcome."""
