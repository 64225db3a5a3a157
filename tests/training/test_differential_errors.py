"""Calls in ignite's words: what it takes we take, and what it refuses we refuse, with its exception and first words.

What a batch may be is here too: our default `prepare_batch` beside ignite's.
"""

import collections
import inspect

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import distrain
from tests.engine.script import label
from tests.training.twins import MODELS, Pair, batches, require_same

FACTORIES = [
    "supervised_training_step",
    "supervised_training_step_amp",
    "supervised_training_step_apex",
    "supervised_training_step_tpu",
    "supervised_evaluation_step",
    "supervised_evaluation_step_amp",
]


def parts():
    torch.manual_seed(0)
    model = MODELS["mlp"]()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def plain(function):
    """Return the parameters that a positional caller can name, and whether each has a default."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.default is not p.empty) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("name", [*FACTORIES, "create_supervised_evaluator"])
def test_positional_callers_find_ignites_order(ignite, name):
    assert plain(getattr(distrain, name)) == plain(getattr(ignite, name))


@pytest.mark.parametrize("name", [*FACTORIES, "create_supervised_trainer", "create_supervised_evaluator"])
def test_every_default_that_is_a_value_is_ignites(ignite, name):
    ours, theirs = (inspect.signature(getattr(api, name)).parameters for api in (distrain, ignite))
    compared = {n: p.default for n, p in theirs.items() if not callable(p.default)}
    assert len(compared) >= 2
    assert {n: ours[n].default for n in compared} == compared


def test_a_call_with_all_of_ignites_keywords(ignite):
    def given(api):
        model, optimizer = parts()
        return model, {
            "model": model,
            "optimizer": optimizer,
            "loss_fn": mse_loss,
            "device": "cpu",
            "non_blocking": True,
            "prepare_batch": lambda batch, device, non_blocking: batch,
            "model_transform": lambda output: output * 2,
            "output_transform": lambda x, y, y_pred, loss: loss.item(),
            "deterministic": True,
            "amp_mode": None,
            "scaler": False,
            "gradient_accumulation_steps": 2,
            "model_fn": lambda model, x: model(x + 1),
        }

    weights = []
    for api in (distrain, ignite):
        model, keywords = given(api)
        assert set(keywords) == set(inspect.signature(ignite.create_supervised_trainer).parameters)
        api.create_supervised_trainer(**keywords).run(batches())
        weights.append(dict(model.state_dict()))
    require_same(*weights)


def refusal(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is what is compared
        call()
    return caught.value


def require_same_refusal(call, ignite, num_words):
    ours, theirs = (refusal(lambda api=api: call(api)) for api in (distrain, ignite))
    assert isinstance(ours, type(theirs))
    assert str(ours).split()[:num_words] == str(theirs).split()[:num_words]
    return ours


REFUSED = [
    ({"gradient_accumulation_steps": 0}, 14),
    ({"gradient_accumulation_steps": -3}, 14),
    ({"gradient_accumulation_steps": 0, "amp_mode": "amp"}, 14),
    ({"device": "mps", "amp_mode": "amp"}, 7),
    ({"device": torch.device("mps"), "amp_mode": "amp"}, 7),
    ({"device": "mps", "amp_mode": "apex"}, 7),
    ({"device": "xla"}, 9),
    ({"device": "xla", "amp_mode": "amp"}, 9),
    ({"device": torch.device("xla"), "amp_mode": "apex"}, 9),
    ({"scaler": True}, 8),
    ({"amp_mode": "apex"}, 8),
    ({"amp_mode": "apex", "gradient_accumulation_steps": 0}, 8),
    ({"unknown": 1}, 2),
]


@pytest.mark.parametrize(("options", "num_words"), REFUSED, ids=label)
def test_a_trainer_that_is_refused(ignite, options, num_words):
    model, optimizer = parts()
    require_same_refusal(
        lambda api: api.create_supervised_trainer(model, optimizer, mse_loss, **options), ignite, num_words
    )


def test_xla_with_amp_is_refused_where_torch_xla_is_there(ignite, monkeypatch):
    """Only that it is there is pretended: neither gets as far as using it."""
    monkeypatch.setattr(ignite.idist, "has_xla_support", True)
    monkeypatch.setattr("distrain.runtime.xla.is_installed", lambda: True)
    for mode in ("amp", "apex"):
        require_same_refusal(
            lambda api, mode=mode: api.create_supervised_trainer(*parts(), mse_loss, device="xla", amp_mode=mode),
            ignite,
            7,
        )
    require_same_refusal(
        lambda api: api.create_supervised_evaluator(parts()[0], device="xla", amp_mode="amp"), ignite, 7
    )


def test_a_scaler_of_ones_own_without_amp(ignite):
    scaler = torch.amp.GradScaler("cpu")
    error = require_same_refusal(
        lambda api: api.create_supervised_trainer(*parts(), mse_loss, scaler=scaler), ignite, 10
    )
    assert str(scaler) in str(error)


@pytest.mark.parametrize(
    ("options", "num_words"),
    [({"device": "mps", "amp_mode": "amp"}, 7), ({"device": "xla"}, 9), ({"unknown": 1}, 2)],
    ids=label,
)
def test_an_evaluator_that_is_refused(ignite, options, num_words):
    require_same_refusal(lambda api: api.create_supervised_evaluator(parts()[0], **options), ignite, num_words)


@pytest.mark.parametrize("name", FACTORIES[:4])
def test_a_step_that_is_refused(ignite, name):
    """Without apex and torch_xla two of them say what to install, before they look at the number."""
    model, optimizer = parts()
    require_same_refusal(
        lambda api: getattr(api, name)(model, optimizer, mse_loss, gradient_accumulation_steps=0), ignite, 6
    )


BROKEN = {
    "a batch of three": ({}, [(torch.ones(2, 3), torch.ones(2, 1), 3)]),
    "a batch that is no pair": ({}, [5]),
    "a wrong shape": ({}, [(torch.ones(2, 7), torch.ones(2, 1))]),
    "a loss of many elements": ({"loss_fn": lambda y_pred, y: y_pred - y}, batches(1)),
    "a loss without gradients": ({"loss_fn": lambda y_pred, y: (y_pred - y).mean().detach()}, batches(1)),
    "a transform that takes too little": ({"output_transform": lambda x, y: None}, batches(1)),
    "a prepare_batch that takes too little": ({"prepare_batch": lambda batch: batch}, batches(1)),
    "a transform that raises": ({"output_transform": lambda *_: {}["missing"]}, batches(1)),
}


@pytest.mark.parametrize("broken", sorted(BROKEN))
def test_a_step_that_fails(ignite, broken):
    options, data = BROKEN[broken]
    learnt = []

    def call(api):
        model, optimizer = parts()
        try:
            api.create_supervised_trainer(model, optimizer, **{"loss_fn": mse_loss, **options}).run(data)
        finally:
            learnt.append({name: (p.detach(), p.grad) for name, p in model.named_parameters()})

    require_same_refusal(call, ignite, 6)
    require_same(*learnt)


class OwnList(list):
    pass


class OwnDict(dict):
    pass


TENSOR = torch.ones(2, 3)
NESTS = {
    "tensor": TENSOR,
    "list": [TENSOR, TENSOR],
    "tuple": (TENSOR, (TENSOR,)),
    "dict": {"a": TENSOR, "b": {"c": [TENSOR]}},
    "named tuple": Pair(TENSOR, Pair(TENSOR, "text")),
    "ordered": collections.OrderedDict(a=TENSOR, b=TENSOR),
    "own list": OwnList([TENSOR]),
    "own dict": OwnDict(a=TENSOR),
    "user list": collections.UserList([TENSOR]),
    "user dict": collections.UserDict(a=[TENSOR]),
    "deque": collections.deque([TENSOR, TENSOR]),
    "text": "text",
    "bytes": b"bytes",
    "parameter": nn.Parameter(TENSOR),
    "empty": [],
    "nested user list": {"a": (collections.UserList([TENSOR]),)},
}


@pytest.mark.parametrize("device", [None, "cpu", "meta", torch.device("meta")], ids=str)
@pytest.mark.parametrize("nest", sorted(NESTS))
def test_what_is_moved_to_the_device(ignite, nest, device):
    """The device `meta` is another one on every machine."""
    value = NESTS[nest]
    ours, theirs = (
        prepare((value, TENSOR), device, non_blocking=True)
        for prepare in (distrain.prepare_batch, ignite._prepare_batch)
    )
    assert isinstance(ours, tuple)
    require_same(spread(ours), spread(theirs))


def spread(value):
    """Return the nest with the names of its types beside its parts."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.device, None if value.is_meta else value)
    if isinstance(value, collections.abc.Mapping):
        return (type(value).__name__, [(key, spread(item)) for key, item in value.items()])
    if isinstance(value, collections.abc.Sequence) and not isinstance(value, (str, bytes)):
        return (type(value).__name__, [spread(item) for item in value])
    return value
