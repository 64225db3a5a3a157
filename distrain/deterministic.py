"""The deterministic engine and its parts, where scripts that wrote `ignite.engine.deterministic` look for them."""

from distrain.engine.deterministic import (
    DeterministicEngine,
    ReproducibleBatchSampler,
    keep_random_state,
    update_dataloader,
)

__all__ = ["DeterministicEngine", "ReproducibleBatchSampler", "keep_random_state", "update_dataloader"]
