"""The forward pass from `model_fn` and `model_transform`."""

from __future__ import annotations

import pytest
import torch

from distrain.training.forward import call_model, forward_of, same


def with_two(model, x):
    return model(2 * x)


def as_pair(output):
    return output, "pair"


@pytest.mark.parametrize(("model_fn", "given"), [(call_model, 3.0), (with_two, 6.0)])
@pytest.mark.parametrize("model_transform", [same, as_pair])
def test_it_is_the_transform_of_the_function_of_the_model(model_fn, given, model_transform):
    forward = forward_of(torch.nn.Identity(), model_fn, model_transform)
    assert forward(3.0) == model_transform(given)


def test_the_defaults_cost_no_call():
    model = torch.nn.Identity()
    assert forward_of(model, call_model, same) is model
