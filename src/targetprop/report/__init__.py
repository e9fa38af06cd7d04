"""Reports drawn from run folders, and from nothing else."""
