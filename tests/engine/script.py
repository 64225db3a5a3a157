"""Scripts that run unchanged on our engine and on ignite's, and the trace they leave."""

from __future__ import annotations

import dataclasses
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

BUILT_IN = (
    "STARTED",
    "EPOCH_STARTED",
    "GET_BATCH_STARTED",
    "GET_BATCH_COMPLETED",
    "ITERATION_STARTED",
    "ITERATION_COMPLETED",
    "EPOCH_COMPLETED",
    "COMPLETED",
    "DATALOADER_STOP_ITERATION",
    "TERMINATE_SINGLE_EPOCH",
    "TERMINATE",
    "INTERRUPT",
)


class Unsized:
    """Data that can be iterated again and have no length."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[int]:
        return iter(range(100, 100 + self.size))


DATA: dict[str, Callable[[], Iterable[Any] | None]] = {
    "list": lambda: [10, 11, 12, 13, 14],
    "one": lambda: [7],
    "unsized": lambda: Unsized(4),
    "iterator": lambda: iter(range(20, 26)),
    "endless": lambda: itertools.count(50),
    "nothing": lambda: None,
    "empty": list,
    "empty iterator": lambda: iter(()),
}


@dataclasses.dataclass
class Stage:
    """One engine and its trace.

    Args:
        api: The module that has `Engine` and `Events`: ours or ignite's.
        silent: Attach no handlers, so that only results are recorded.
    """

    api: ModuleType
    silent: bool = False

    def __post_init__(self) -> None:
        self.trace: list[Any] = []
        self.engine = self.api.Engine(self.step)
        if not self.silent:
            for name in BUILT_IN:
                self.engine.add_event_handler(self.event(name), *self.recorder(name))

    def event(self, name: str, **filters: Any) -> Any:
        event = getattr(self.api.Events, name)
        return event(**filters) if filters else event

    def recorder(self, name: str) -> tuple[Any, ...]:
        if name == "TERMINATE_SINGLE_EPOCH":

            def record(engine: Any, iter_counter: int) -> None:
                self.trace.append((name, iter_counter, *self.snapshot()))

            return (record,)
        return (lambda engine, label: self.trace.append((label, *self.snapshot())), name)

    def step(self, engine: Any, batch: Any) -> Any:
        self.trace.append(("step", batch, engine.state.iteration, engine.last_event_name.name))
        return (engine.state.iteration, batch)

    def snapshot(self) -> tuple[Any, ...]:
        engine, state = self.engine, self.engine.state
        return (
            state.epoch,
            state.iteration,
            state.batch,
            state.output,
            state.epoch_length,
            state.max_epochs,
            state.max_iters,
            engine.last_event_name and engine.last_event_name.name,
            engine.should_terminate,
            engine.should_terminate_single_epoch,
            engine.should_interrupt,
        )

    def attempt(self, label: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call something of the engine's and record how it ended: its value's type, its error, its warnings."""
        result = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = call(*args, **kwargs)
                self.trace.append((label, "returned", type(result).__name__))
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # whatever it is goes into the trace
                self.trace.append((label, "raised", type(error).__name__, _head(error)))
        self.trace.extend((label, "warned", str(warning.message)[:40]) for warning in caught)
        return result

    def run(self, data: Any = "list", **kwargs: Any) -> bool:
        """Run over the named data, then record the whole state; return whether the run raised nothing.

        A script ends where a run raised: after it ignite's next run does nothing, which we do not repeat.
        """
        data = DATA[data]() if isinstance(data, str) else data
        state = self.attempt("run", self.engine.run, data, **kwargs)
        is_well = state is not None
        state = self.engine.state
        plain = {name: value for name, value in vars(state).items() if name not in ("times", "dataloader")}
        times = {name: value is not None and value >= 0 for name, value in state.times.items()}
        self.trace.append(("state", plain, times, state.dataloader is None, *self.snapshot()))
        return is_well


def _head(error: BaseException) -> str:
    """The beginning of a message; its wording beyond that is each engine's own."""
    return str(error)[:24] if isinstance(error, ValueError | TypeError) else ""


def label(value: Any) -> str:
    """Return the id of a parameter; the same in every process."""
    return re.sub(r"<function \S+| at 0x\w+>?", "", str(value))


def compare(ignite: ModuleType, script: Callable[[Stage], None], *, silent: bool = False) -> list[Any]:
    """Run the script on both engines and require the same trace; return it."""
    import distrain.engine

    ours, theirs = (Stage(api, silent=silent) for api in (distrain.engine, ignite))
    script(ours)
    script(theirs)
    assert ours.trace == theirs.trace
    assert ours.trace
    return ours.trace
