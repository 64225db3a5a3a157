"""What a training program can see of the process it runs in. See facts.py."""
