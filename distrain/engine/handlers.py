"""Handlers: attaching them to events, calling them, taking them off again.

`engine._event_handlers` maps each event to a list of `(handler, args, kwargs)`. ignite's profilers insert into these
lists and replace their entries, also while an event is being fired, so this shape is part of the interface. Where a
handler wants the engine, a weak reference to it is the first of its `args`.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from distrain.engine.events import EventEnum, Events, check_signature, is_event, is_events_list
from distrain.engine.interop import ignite_counterpart, share_event_attributes
from distrain.engine.state import State
from distrain.errors import did_you_mean

__all__ = ["EventSource", "RemovableEventHandle"]

Handler: TypeAlias = Callable[..., Any]
Entry: TypeAlias = tuple[Handler, tuple[Any, ...], dict[str, Any]]


class HandlerTable(dict[Any, list[Entry]]):
    """The entries of each event. Keys are the names of events, which events are equal to and hashed as.

    A lookup by name is several times cheaper than one by event. A run does without: it holds the lists of the events
    of its iterations and looks up only those that are not empty. So a list that is empty is never replaced, but filled.
    """

    def __setitem__(self, event: Any, entries: list[Entry]) -> None:
        if self.get(event) == []:
            self[event].extend(entries)
        else:
            super().__setitem__(event, entries)

    def __missing__(self, event: Any) -> list[Entry]:
        entries: list[Entry] = []
        self[event if isinstance(event, str) else event._name_] = entries
        return entries


class FilteredHandler:
    """A handler that runs when the filter of its event lets it.

    Args:
        handler: The handler as the user gave it.
        event: The event with the filter.
        engine: The engine it is attached to; only a weak reference is kept.
    """

    def __init__(self, handler: Handler, event: Any, engine: EventSource) -> None:
        functools.update_wrapper(self, handler, updated=())
        self.handler = handler
        self.event = event
        self.event_filter = event.filter
        self.attribute = State.event_to_attr.get(event)
        self._engine = weakref.ref(engine)
        self._parent = lambda: handler

    def find_attribute(self) -> str:
        """Return the attribute of the state that counts the event; it may be registered after the handler."""
        if self.attribute is None:
            self.attribute = State.attribute_of(self.event)
        return self.attribute

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        engine = self._engine()
        if engine is None or not self.event_filter(engine, getattr(engine.state, self.find_attribute())):
            return None
        return self.handler(*args, **kwargs)


class EventSource:
    """The part of the engine that knows events and their handlers."""

    def __init__(self) -> None:
        self._event_handlers = HandlerTable()
        self._allowed_events: list[Any] = []
        self.logger = logging.getLogger(f"{type(self).__module__}.{type(self).__name__}")
        self.last_event_name: Any = None
        self.state = State()
        self.register_events(*Events)

    @property  # type: ignore[misc]  # isinstance against ignite's classes asks for this attribute
    def __class__(self) -> type:
        return ignite_counterpart(type(self))

    def register_events(self, *event_names: Any, event_to_attr: Mapping[Any, str] | None = None) -> None:
        """Add events that `fire_event` may fire and handlers may be attached to.

        Args:
            *event_names: Strings or members of an `EventEnum`.
            event_to_attr: The attribute of the state that counts each event, for its filters; it is created as 0.

        Raises:
            TypeError: An event is neither a string nor a member of an `EventEnum`.
            ValueError: `event_to_attr` is not a mapping.
        """
        if event_to_attr is not None and not isinstance(event_to_attr, Mapping):
            raise ValueError(f"Expected event_to_attr to be dictionary. Got {type(event_to_attr)}.")
        for index, event in enumerate(event_names):
            if not isinstance(event, (str, EventEnum)) and not is_event(event):
                raise TypeError(f"Value at {index} of event_names should be a str or EventEnum, but given {event}")
        self._allowed_events.extend(event_names)
        if event_to_attr:
            counted = {event: event_to_attr[event] for event in event_names if event in event_to_attr}
            State.event_to_attr.update(counted)
            share_event_attributes(counted)
        self.state._update_attrs()  # noqa: SLF001  # the state is ours

    def has_registered_events(self, event: Any) -> bool:
        """Say whether the engine may fire this event."""
        return event in self._allowed_events

    def _assert_allowed_event(self, event_name: Any) -> None:
        if event_name not in self._allowed_events:
            names = [event if isinstance(event, str) else event._name_ for event in self._allowed_events]
            self.logger.error("attempt to use an invalid event %s", event_name)
            raise ValueError(
                f"Event {event_name} is not a valid event for this {type(self).__name__}."
                f"{did_you_mean(str(event_name), names)} Valid events: {', '.join(names)}."
            )

    def add_event_handler(self, event_name: Any, handler: Handler, *args: Any, **kwargs: Any) -> RemovableEventHandle:
        """Call `handler` whenever the event is fired.

        The handler gets the engine first if its signature has room for it, then what the event itself carries, then
        `args` and `kwargs`. `EXCEPTION_RAISED` carries the exception. `TERMINATE_SINGLE_EPOCH` carries `iter_counter`,
        by keyword, for the handlers that take it; ignite fails on those that do not.

        Args:
            event_name: An event, with or without a filter, or events joined by `|`.
            handler: Any callable: function, method, partial, object.
            *args: Further positional arguments of the handler.
            **kwargs: Further keyword arguments of the handler.

        Returns:
            A handle that takes the handler off again, by `remove()` or as a context manager.

        Raises:
            ValueError: The engine has no such event, or the handler cannot be called with these arguments.
        """
        if is_events_list(event_name):
            for event in event_name:
                self._assert_allowed_event(event)
            for event in event_name:
                self.add_event_handler(event, handler, *args, **kwargs)
            return RemovableEventHandle(event_name, handler, self)

        self._assert_allowed_event(event_name)
        call, first = self._fit(event_name, handler, args, kwargs)
        if getattr(event_name, "filter", None) is not None:
            call = FilteredHandler(call, event_name, self)
        self._event_handlers[event_name].append((call, first + args, kwargs))
        self.logger.debug("Added handler for event %s", event_name)
        return RemovableEventHandle(event_name, call, self)

    def _fit(
        self, event_name: Any, handler: Handler, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Handler, tuple[Any, ...]]:
        """Find out how the handler is to be called: itself or wrapped, with the engine first or without."""
        itself: tuple[Any, ...] = (weakref.ref(self),)
        carried = (Exception(),) if event_name == Events.EXCEPTION_RAISED else ()
        if event_name == Events.TERMINATE_SINGLE_EPOCH:
            for first in (itself, ()):
                if _accepts(handler, *first, *args, iter_counter=0, **kwargs):
                    return handler, first
            handler = _without_counter(handler)
        if _accepts(handler, self, *carried, *args, **kwargs):
            return handler, itself
        check_signature(handler, "handler", *carried, *args, **kwargs)
        return handler, ()

    def has_event_handler(self, handler: Handler, event_name: Any = None) -> bool:
        """Say whether the handler is attached.

        Args:
            handler: The handler as it was given to `add_event_handler`.
            event_name: The event to look at; all of them when None.
        """
        if event_name is None:
            lists = list(self._event_handlers.values())
        else:
            lists = [self._event_handlers[event_name]] if event_name in self._event_handlers else []
        return any(_original(attached) == handler for entries in lists for attached, _, _ in entries)

    def remove_event_handler(self, handler: Handler, event_name: Any) -> None:
        """Take the handler off the event, whatever filters it was attached with.

        Args:
            handler: The handler as it was given to `add_event_handler`.
            event_name: The event it is attached to.

        Raises:
            ValueError: The event never had a handler, or has not this one.
        """
        if event_name not in self._event_handlers:
            raise ValueError(f"Input event name '{event_name}' does not exist")
        entries = self._event_handlers[event_name]
        kept = [entry for entry in entries if _original(entry[0]) != handler]
        if len(kept) == len(entries):
            raise ValueError(f"Input handler '{handler}' is not found among registered event handlers")
        # A new list: an event that is being fired goes on over the old one.
        self._event_handlers[event_name] = kept

    def on(self, event_name: Any, *args: Any, **kwargs: Any) -> Callable[[Handler], Handler]:
        """Attach the decorated function: the decorator's form of `add_event_handler`, with the same arguments."""

        def attach(handler: Handler) -> Handler:
            self.add_event_handler(event_name, handler, *args, **kwargs)
            return handler

        return attach

    def fire_event(self, event_name: Any) -> None:
        """Call the handlers of an event: how a process function fires custom events.

        Args:
            event_name: A built-in or a registered event.

        Raises:
            ValueError: The engine has no such event.
        """
        self._assert_allowed_event(event_name)
        self._fire_event(event_name)

    def _fire_event(self, event_name: Any, *event_args: Any, **event_kwargs: Any) -> None:
        self.logger.debug("%d | %d, Firing handlers for event %s", self.state.epoch, self.state.iteration, event_name)
        self.last_event_name = event_name
        # The list itself, not a copy: handlers that are added while their event is being fired run at once.
        for handler, args, kwargs in self._event_handlers[event_name]:
            first, rest = _resolve(args)
            handler(*first, *event_args, *rest, **kwargs, **event_kwargs)

    def _fire_plainly(self, event: Any) -> None:
        """Fire an event that carries nothing, without the debug log: what a run calls in its iterations."""
        self.last_event_name = event
        for attached, args, kwargs in self._event_handlers[event._name_]:
            handler = attached
            if type(attached) is FilteredHandler:
                attribute = attached.attribute or attached.find_attribute()
                if not attached.event_filter(self, getattr(self.state, attribute)):
                    continue
                handler = attached.handler
            first, rest = _resolve(args)
            handler(*first, *rest, **kwargs)


class RemovableEventHandle:
    """Takes a handler off its event, by `remove()` or on leaving a `with` block.

    It keeps neither the handler nor the engine alive, and removing twice does nothing.

    Args:
        event_name: The event, or the events joined by `|`.
        handler: The handler as it is attached.
        engine: The engine.
    """

    def __init__(self, event_name: Any, handler: Handler, engine: EventSource) -> None:
        self.event_name = event_name
        self.handler = weakref.ref(handler)
        self.engine = weakref.ref(engine)

    def remove(self) -> None:
        """Take the handler off the engine."""
        attached, engine = self.handler(), self.engine()
        if attached is None or engine is None:
            return
        handler = _original(attached)
        for event in self.event_name if is_events_list(self.event_name) else [self.event_name]:
            if engine.has_event_handler(handler, event):
                engine.remove_event_handler(handler, event)

    def __enter__(self) -> RemovableEventHandle:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()


def _resolve(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Split the arguments of an entry into the engine, if it wants it, and the rest."""
    if not args or not isinstance(args[0], weakref.ref):
        return (), args
    engine = args[0]()
    if engine is None:
        raise RuntimeError("Engine reference not resolved. Cannot execute event handler.")
    return (engine,), args[1:]


def _original(handler: Handler) -> Handler:
    """Return the handler as the user gave it. Mocks have every attribute, hence the look into `__dict__`."""
    while (parent := getattr(handler, "__dict__", {}).get("_parent")) is not None:
        handler = parent()
    return handler


def _accepts(handler: Handler, *args: Any, **kwargs: Any) -> bool:
    try:
        check_signature(handler, "handler", *args, **kwargs)
    except ValueError:
        return False
    return True


def _without_counter(handler: Handler) -> Handler:
    @functools.wraps(handler, updated=())
    def call(*args: Any, iter_counter: int, **kwargs: Any) -> Any:  # noqa: ARG001  # swallowed on purpose
        return handler(*args, **kwargs)

    call.__dict__["_parent"] = lambda: handler
    return call
