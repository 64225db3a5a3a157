"""A plan in the making: what was given, what was decided so far, and what the user has to be warned of."""

from __future__ import annotations

from collections.abc import Mapping

from distrain.plan.cluster import Placement
from distrain.plan.sources import Given, Origin, Setting, seconds, whole_number

__all__ = ["Draft"]


class Draft:
    """What the parts of a plan are resolved from, and where they note what they have decided.

    Args:
        found: What was given, by option.
        environ: The environment that the workers inherit, a profile's variables included.
        placement: What a scheduler said about this process, or None.
        gpus: How many GPUs the workers see; None where only the node can tell.
        is_ahead: Whether the launch begins later and elsewhere.
        warnings: A line for each setting that is ignored so far.
    """

    def __init__(
        self,
        found: Mapping[str, Given],
        *,
        environ: Mapping[str, str],
        placement: Placement | None,
        gpus: int | None,
        is_ahead: bool,
        warnings: list[str],
    ) -> None:
        self.found = found
        self.environ = environ
        self.placement = placement
        self.gpus = gpus
        self.is_ahead = is_ahead
        self.settings: dict[str, Setting] = {}
        self.warnings = warnings

    def given(self, name: str, value: str | float | bool | None, detail: str | None = None) -> None:  # noqa: FBT001  # one value
        """Note a value that somebody asked for."""
        said = self.found[name]
        self.settings[name] = Setting(value=value, origin=said.origin, detail=detail or said.where)

    def note(self, name: str, value: str | float | bool | None, origin: Origin, detail: str = "not given") -> None:  # noqa: FBT001  # one value
        """Note a value that nobody asked for."""
        self.settings[name] = Setting(value=value, origin=origin, detail=detail)

    def text(self, name: str, default: str | None) -> str | None:
        """Return an option's text, and note it."""
        if name not in self.found:
            self.note(name, default, "default")
            return default
        text = self.found[name].text
        self.given(name, text)
        return text

    def flag(self, name: str) -> bool:
        """Return whether a flag was given, and note it."""
        if name not in self.found:
            self.note(name, value=False, origin="default")
        else:
            self.given(name, value=True)
        return name in self.found

    def whole(self, name: str, what: str, *, least: int, default: int) -> int:
        """Return an option's whole number, and note it; `what` it counts and its `least` are for the message."""
        if name not in self.found:
            self.note(name, default, "default")
            return default
        value = whole_number(self.found[name], what, least=least)
        self.given(name, value)
        return value

    def seconds(self, name: str, default: float) -> float:
        """Return an option's number of seconds, and note it."""
        if name not in self.found:
            self.note(name, default, "default")
            return default
        value = seconds(self.found[name])
        self.given(name, value)
        return value
