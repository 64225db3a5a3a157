"""The same script on our trainer and on ignite's, and all that can be seen of a training.

A script takes a `Twin` and does with its trainer what it likes. `compare` runs it on both and requires the same trace:
every event in its order with the counters and the output, and after every iteration each weight, gradient and buffer
and the optimizer's state. Tensors must be equal to the bit.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from torch.utils.data import DataLoader

import distrain
from tests.engine.script import BUILT_IN, Stage

FEATURES = 3


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))).mean(1, keepdim=True)


class PartlyUsed(nn.Module):
    """Has a parameter that never gets a gradient."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(FEATURES, 1), nn.Linear(FEATURES, 1)

    def forward(self, x):
        return self.used(x)


def mlp():
    return nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 1))


def frozen():
    model = mlp()
    model[0].requires_grad_(False)
    return model


MODELS = {
    "linear": lambda: nn.Linear(FEATURES, 1),
    "mlp": mlp,
    "batch norm": lambda: nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)),
    "dropout": lambda: nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.5), nn.Linear(8, 1)),
    "frozen": frozen,
    "tied": Tied,
    "partly used": PartlyUsed,
}


def two_groups(parameters):
    first, *others = parameters
    return SGD([{"params": [first], "lr": 0.2}, {"params": others}], lr=0.01)


OPTIMIZERS = {
    "sgd": lambda parameters: SGD(parameters, lr=0.1),
    "momentum": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda parameters: Adam(parameters, lr=0.01, amsgrad=True),
    "adamw": lambda parameters: AdamW(parameters, lr=0.01),
    "rmsprop": lambda parameters: RMSprop(parameters, lr=0.01),
    "adagrad": lambda parameters: Adagrad(parameters, lr=0.1),
    "two groups": two_groups,
}

Pair = collections.namedtuple("Pair", ["first", "second"])


@dataclasses.dataclass
class Record:
    first: Any
    second: Any = None


def batches(num=6, size=4, seed=1, wrap=lambda x: x):
    """Return pairs of input and target, each input put in a nest by `wrap`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (wrap(torch.randn(size, FEATURES, generator=generator)), torch.randn(size, 1, generator=generator))
        for _ in range(num)
    ]


class Unsized:
    """Batches that can be iterated again and have no length."""

    def __init__(self, num):
        self.num = num

    def __iter__(self):
        return iter(batches(self.num))


def loader(num=5, size=4, **kwargs):
    """Return a DataLoader of `num` batches."""
    x, y = batches(1, num * size)[0]
    return DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=size, **kwargs)


def create(api, *args, **options):
    return api.create_supervised_trainer(*args, **options)


class Twin(Stage):
    """One of the two trainers, with its model and optimizer, and its trace.

    Args:
        api: `distrain` or `ignite.engine`.
        model: One of `MODELS`, or a function that makes one.
        optimizer: One of `OPTIMIZERS`.
        make: Makes the engine of the api, the model, the optimizer, the loss function and the options, in place of
            the api's `create_supervised_trainer`.
        loss_fn: The loss function.
        options: For the trainer.
    """

    def __init__(self, api, *, model="mlp", optimizer="momentum", make=create, loss_fn=mse_loss, **options):
        self.api, self.silent, self.trace, self.options = api, False, [], options
        torch.manual_seed(0)
        self.model = (MODELS[model] if isinstance(model, str) else model)()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.trainer = self.engine = make(api, self.model, self.optimizer, loss_fn, **options)
        for name in BUILT_IN:
            self.engine.add_event_handler(self.event(name), *self.recorder(name))

    @property
    def is_ours(self):
        return self.api is distrain

    def on(self, name, **filters):
        """Return a decorator that attaches a handler to an event of this twin's own library."""
        return self.trainer.on(self.event(name, **filters))

    def snapshot(self):
        state = self.trainer.state
        counters = (state.epoch, state.iteration, state.epoch_length, state.max_epochs, state.max_iters)
        event = self.trainer.last_event_name and self.trainer.last_event_name.name
        learnt = self.learnt() if event == "ITERATION_COMPLETED" else None
        return (*counters, event, Output(state.output), learnt)

    def learnt(self):
        """Return copies of all that training changes."""
        return copied(
            {
                "weights": self.model.state_dict(),
                "gradients": {name: p.grad for name, p in self.model.named_parameters()},
                "optimizer": self.optimizer.state_dict(),
                "training": self.model.training,
            }
        )

    def run(self, data=None, **kwargs):
        """Run over what `data` makes and record the end; return whether nothing was raised."""
        made = batches() if data is None else data()
        result = self.attempt("run", self.trainer.run, made, **kwargs)
        times = {name: value is not None and value >= 0 for name, value in self.trainer.state.times.items()}
        self.trace.append(("state", times, self.snapshot(), self.learnt()))
        return result is not None


@dataclasses.dataclass
class Output:
    """An output of a trainer, which accumulation may have rounded."""

    value: Any


def copied(value):
    """Return a copy of a nest of mappings and lists; `copy.deepcopy` takes a third of a comparison's time."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def require_same(ours, theirs, rel=0.0):
    """Require that two nests are equal: tensors and numbers to the bit, those of outputs up to `rel` of their size."""
    found = difference(ours, theirs, rel, 0.0)
    assert found is None, f"ours{found}"


def difference(ours, theirs, rel, within):
    """Return where two nests differ and how, None if they do not."""
    if type(ours) is not type(theirs):
        return f" is {ours!r}, theirs {theirs!r}"
    if isinstance(ours, Output):
        return difference(ours.value, theirs.value, rel, rel)
    if isinstance(ours, torch.Tensor):
        same = (ours.dtype, ours.shape, ours.device) == (theirs.dtype, theirs.shape, theirs.device)
        same = same and (ours.is_meta or torch.allclose(ours, theirs, rtol=within, atol=0, equal_nan=True))
        return None if same else f" is {ours}, theirs {theirs}"
    if isinstance(ours, float):
        same = ours == theirs or ours == pytest.approx(theirs, rel=within, abs=0, nan_ok=True)
        return None if same else f" is {ours!r}, theirs {theirs!r}"
    if isinstance(ours, Mapping):
        if list(ours) != list(theirs):
            return f" has {list(ours)}, theirs {list(theirs)}"
        items = ((key, ours[key], theirs[key]) for key in ours)
    elif isinstance(ours, Sequence) and not isinstance(ours, str):
        if len(ours) != len(theirs):
            shorter = min(len(ours), len(theirs))
            common = difference(ours[:shorter], theirs[:shorter], rel, within)
            return common or f" has {len(ours)} items, theirs {len(theirs)}; the first {shorter} are equal"
        items = ((i, a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True)))
    else:
        return None if ours == theirs else f" is {ours!r}, theirs {theirs!r}"
    for key, a, b in items:
        found = difference(a, b, rel, within)
        if found is not None:
            return f"[{key!r}]{found}"
    return None


def compare(ignite: ModuleType, script, **what):
    """Run the script on both trainers and require the same trace; return ours.

    ignite's loss is `loss / N * N`, which is the loss itself for powers of two and else rounded.
    """
    num_micro = what.get("gradient_accumulation_steps", 1)
    traces = []
    for api in (distrain, ignite):
        twin = Twin(api, **what)
        script(twin)
        traces.append(twin.trace)
    require_same(*traces, 0.0 if num_micro & (num_micro - 1) == 0 else 1e-6)
    assert traces[0]
    return traces[0]
