"""The forward pass: from the input to the prediction, through `model_fn` and `model_transform`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["call_model", "forward_of", "same"]


def same(output: Any) -> Any:
    """Give the model's output as it is: the default `model_transform`."""
    return output


def call_model(model: nn.Module, x: Any) -> Any:
    """Call the model with the input: the default `model_fn`."""
    return model(x)


def forward_of(
    model: nn.Module, model_fn: Callable[[nn.Module, Any], Any], model_transform: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """Return the function from the input to the prediction. The defaults cost no call.

    Args:
        model: The model.
        model_fn: Takes the model and the input, returns the model's output.
        model_transform: Takes that output, returns the prediction.
    """
    output_of = model if model_fn is call_model else partial(model_fn, model)
    if model_transform is same:
        return output_of
    return lambda x: model_transform(output_of(x))
