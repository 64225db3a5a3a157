"""What the supervisor watches and does: output of the ranks, orphans, the failure report."""
