"""distrain: launch one training process per device, and give each a supervised trainer.

The public names are loaded when they are first used: `import distrain` alone costs nothing and imports no
torch, so the command line answers at once, also where torch is not installed.

To pytest, which rewrites a plugin's modules and warns of one that is imported already: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distrain.engine import CallableEventWithFilter as CallableEventWithFilter
    from distrain.engine import DeterministicEngine as DeterministicEngine
    from distrain.engine import Engine as Engine
    from distrain.engine import EventEnum as EventEnum
    from distrain.engine import Events as Events
    from distrain.engine import EventsList as EventsList
    from distrain.engine import RemovableEventHandle as RemovableEventHandle
    from distrain.engine import State as State
    from distrain.observe import ProgressBar as ProgressBar
    from distrain.runtime import init as init
    from distrain.supervision.heartbeat import heartbeat as heartbeat
    from distrain.training import Checkpointer as Checkpointer
    from distrain.training import LossAggregator as LossAggregator
    from distrain.training import create_supervised_evaluator as create_supervised_evaluator
    from distrain.training import create_supervised_trainer as create_supervised_trainer
    from distrain.training import dataloader as dataloader
    from distrain.training import detached_loss as detached_loss
    from distrain.training import prepare as prepare
    from distrain.training import prepare_batch as prepare_batch
    from distrain.training import supervised_evaluation_step as supervised_evaluation_step
    from distrain.training import supervised_evaluation_step_amp as supervised_evaluation_step_amp
    from distrain.training import supervised_training_step as supervised_training_step
    from distrain.training import supervised_training_step_amp as supervised_training_step_amp
    from distrain.training import supervised_training_step_apex as supervised_training_step_apex
    from distrain.training import supervised_training_step_tpu as supervised_training_step_tpu

_HOME = {
    "init": "distrain.runtime",
    "prepare": "distrain.training",
    "dataloader": "distrain.training",
    "create_supervised_trainer": "distrain.training",
    "create_supervised_evaluator": "distrain.training",
    "Engine": "distrain.engine",
    "DeterministicEngine": "distrain.engine",
    "Events": "distrain.engine",
    "EventEnum": "distrain.engine",
    "EventsList": "distrain.engine",
    "CallableEventWithFilter": "distrain.engine",
    "RemovableEventHandle": "distrain.engine",
    "State": "distrain.engine",
    "detached_loss": "distrain.training",
    "prepare_batch": "distrain.training",
    "supervised_evaluation_step": "distrain.training",
    "supervised_evaluation_step_amp": "distrain.training",
    "supervised_training_step": "distrain.training",
    "supervised_training_step_amp": "distrain.training",
    "supervised_training_step_apex": "distrain.training",
    "supervised_training_step_tpu": "distrain.training",
    "LossAggregator": "distrain.training",
    "Checkpointer": "distrain.training",
    "ProgressBar": "distrain.observe",
    "heartbeat": "distrain.supervision.heartbeat",
}

_PRIVATE_IN_IGNITE = {"_prepare_batch": "prepare_batch"}
"""What scripts import from ignite's engine although it is private there; many name this one."""

__version__ = "0.1.0"
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    public = _PRIVATE_IN_IGNITE.get(name, name)
    home = _HOME.get(public)
    if home is None:
        from distrain.errors import did_you_mean

        raise AttributeError(f"module 'distrain' has no attribute {name!r}.{did_you_mean(name, _HOME)}")
    value = getattr(importlib.import_module(home), public)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
