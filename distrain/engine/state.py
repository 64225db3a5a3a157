"""The state of a run: the counters, what flows through the engine, and whatever the user adds."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Number
from typing import TYPE_CHECKING, Any, ClassVar

from distrain.engine.events import Events

__all__ = ["State"]


class State:
    """What the engine and its handlers share; any attribute may be added.

        iteration       number of the current iteration over all epochs; the first is 1, 0 before it
        epoch           number of the current epoch; the first is 1, 0 before it
        epoch_length    iterations in an epoch; None while not known
        max_epochs      epochs to run, or None
        max_iters       iterations to run, or None
        batch           the current batch
        output          what the process function returned for it
        metrics         results of metrics, by name
        dataloader      the data of the run, None when it has none
        seed            the seed of a deterministic run
        times           seconds of the last epoch and of the run, at "EPOCH_COMPLETED" and "COMPLETED"

    Args:
        **kwargs: Values for these, or further attributes.
    """

    event_to_attr: ClassVar[dict[Any, str]] = {
        Events.GET_BATCH_STARTED: "iteration",
        Events.GET_BATCH_COMPLETED: "iteration",
        Events.ITERATION_STARTED: "iteration",
        Events.ITERATION_COMPLETED: "iteration",
        Events.EPOCH_STARTED: "epoch",
        Events.EPOCH_COMPLETED: "epoch",
        Events.STARTED: "epoch",
        Events.COMPLETED: "epoch",
    }
    """The attribute that counts each event, which is what its filters see. Shared by all engines of the process."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    def __init__(self, **kwargs: Any) -> None:
        self.iteration = 0
        self.epoch = 0
        self.epoch_length: int | None = None
        self.max_epochs: int | None = None
        self.max_iters: int | None = None
        self.output: Any = None
        self.batch: Any = None
        self.metrics: dict[str, Any] = {}
        self.dataloader: Iterable[Any] | None = None
        self.seed: int | None = None
        self.times: dict[str, float | None] = {Events.EPOCH_COMPLETED.name: None, Events.COMPLETED.name: None}
        for name, value in kwargs.items():
            setattr(self, name, value)
        self._update_attrs()

    def _update_attrs(self) -> None:
        for attribute in self.event_to_attr.values():
            if not hasattr(self, attribute):
                setattr(self, attribute, 0)

    @staticmethod
    def attribute_of(event_name: Any) -> str:
        """Return the name of the attribute that counts an event.

        Args:
            event_name: The event, with or without a filter.

        Raises:
            RuntimeError: No attribute belongs to the event; `register_events(..., event_to_attr=...)` gives it one.
        """
        if event_name not in State.event_to_attr:
            raise RuntimeError(
                f"Unknown event name '{event_name}': no attribute of the state counts it. "
                "Give it one by register_events(..., event_to_attr={event: attribute})."
            )
        return State.event_to_attr[event_name]

    def get_event_attrib_value(self, event_name: Any) -> int:
        """Return the counter of an event: its attribute's value. Arguments and errors as in `attribute_of`."""
        counter: int = getattr(self, self.attribute_of(event_name))
        return counter

    def __repr__(self) -> str:
        shown = ((name, v if isinstance(v, (Number, str)) else type(v)) for name, v in self.__dict__.items())
        return "State:\n" + "".join(f"\t{name}: {value}\n" for name, value in shown)
