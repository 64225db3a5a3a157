"""The events and what goes with them, where scripts that wrote `ignite.engine.events` look for them."""

from distrain.engine.events import CallableEventWithFilter, EventEnum, Events, EventsList
from distrain.engine.handlers import RemovableEventHandle
from distrain.engine.state import State

__all__ = ["CallableEventWithFilter", "EventEnum", "Events", "EventsList", "RemovableEventHandle", "State"]
