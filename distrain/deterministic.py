"""The deterministic engine and its parts, where scripts that wrote `ignite.engine.deterministic` look for them."""

from distrain.engine.deterministic import (  # noqa: F401  # tests for ignite's engine import the private ones, too
    DeterministicEngine,
    ReproducibleBatchSampler,
    _get_rng_states,
    _repr_rng_state,
    _set_rng_states,
    keep_random_state,
    update_dataloader,
)

__all__ = ["DeterministicEngine", "ReproducibleBatchSampler", "keep_random_state", "update_dataloader"]
