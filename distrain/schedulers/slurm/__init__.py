"""Slurm: the batch script of a launch, its submission, and queueing it again."""
