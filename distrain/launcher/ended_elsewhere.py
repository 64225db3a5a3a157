"""The end of a run on this node that has its reason on another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distrain.errors import LaunchError

__all__ = ["EndedElsewhereError"]


class EndedElsewhereError(LaunchError):
    """The run ends here because of what happened to another node.

    Args:
        text: What happened.
        exit_code: The exit code that this node's launcher ends with.
        report: The failure report of the node whose rank brought the run down, as in failure.json; None without one.
        signal: The signal that ended the other node; None for another reason.
    """

    def __init__(
        self, text: str, exit_code: int = 1, report: Mapping[str, Any] | None = None, signal: int | None = None
    ) -> None:
        super().__init__(text)
        self.exit_code = exit_code if signal is None else 128 + signal
        self.report = report
        self.signal = signal

    def as_report(self) -> dict[str, Any]:
        """Return what the agent tells its supervisor of this end."""
        return {
            "outcome": "ended",
            "error": str(self),
            "code": self.exit_code,
            "report": self.report,
            "signal": self.signal,
        }
