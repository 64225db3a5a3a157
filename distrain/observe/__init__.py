"""Looking at a run while it goes."""

from distrain.observe.progress import ProgressBar

__all__ = ["ProgressBar"]
