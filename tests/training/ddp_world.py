"""What the scenarios of `test_ddp_integration` share: data, models, runs under DDP, and what they must come to.

The reference is one process that knows the micro-batches of every rank: for each window it adds up the gradients of
the mean loss over all of them, and steps.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import distrain
from distrain import Events
from distrain.training import unwrap

BF16 = {"amp_mode": "amp", "amp_dtype": "bfloat16"}

DDP_OPTIONS = {
    "default": {},
    "bucket view": {"gradient_as_bucket_view": True},
    "find unused": {"find_unused_parameters": True},
    "static graph": {"static_graph": True},
}


def scaler():
    """Return a scaler that grows after two steps, so that its tracker and its scale move in a short run."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)


def options_of(mechanism):
    """Return the trainer's arguments for a mechanism."""
    return {
        "plain": {},
        "amp": BF16,
        "amp scaler": {**BF16, "scaler": scaler()},
        "apex": {"amp_mode": "apex"},
    }[mechanism]


def region_of(mechanism):
    return torch.autocast("cpu", torch.bfloat16) if mechanism.startswith("amp") else contextlib.nullcontext()


class StopError(Exception):
    pass


class Unsized:
    """Data that does not tell its length."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Resumable:
    """Data that begins, the first time, where a stopped run left it, as a restored loader does."""

    def __init__(self, batches, done):
        self.batches, self.done = batches, done % len(batches)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        rest, self.done = self.batches[self.done :], 0
        return iter(rest)


class Net(nn.Sequential):
    """Two layers, and on demand one that is frozen and one that no prediction uses."""

    def __init__(self, *, extra=False):
        super().__init__(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        if extra:
            self.frozen, self.unused = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)

    def forward(self, x):
        return self[2](self[1](self[0](x)))


class Dropping(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 3, sparse=True), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.embedding(x[:, 0].mul(10).long().abs() % 6))


def build(make=Net):
    torch.manual_seed(0)
    return make()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def plain_sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.05)


def batch(rank, index):
    """Return one micro-batch, different for each rank and index."""
    generator = torch.Generator().manual_seed(1000 * rank + index)
    return torch.randn(4, 3, generator=generator), torch.randn(4, 1, generator=generator)


def poisoned(rank, index):
    """Return the same with a nan in the target."""
    x, y = batch(rank, index)
    y[0] = torch.nan
    return x, y


def flat(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def windows_of(*windows, size=None):
    """Return windows of micro-batches that every rank has alike, as `reference` takes them."""
    return [[list(window)] * (size or dist.get_world_size()) for window in windows]


def reference(windows, *, make=Net, optimizer=sgd, mechanism="plain", max_norm=None, get=batch, num_micro=None):
    """Train in one process; return the weights and the norm of each step's gradient.

    Args:
        windows: For each step a list that has, for each rank, the indices of its micro-batches.
        make: As for `Run`, and so are the others.
        optimizer: As there.
        mechanism: Only its autocast region matters.
        max_norm: Clip to it.
        get: Takes rank and index, returns the micro-batch.
        num_micro: Divide each loss by this first, as a rank does; bfloat16 sees the difference.
    """
    model = build(make)
    stepper, norms = optimizer(model), []
    for window in windows:
        stepper.zero_grad()
        total = sum(map(len, window))
        first = num_micro or total
        for rank, indices in enumerate(window):
            for index in indices:
                x, y = get(rank, index)
                with region_of(mechanism):
                    loss = mse_loss(model(x), y)
                (loss / first).backward()
        for parameter in model.parameters():
            if parameter.grad is not None and first != total:
                parameter.grad.mul_(first / total)
        if max_norm is not None:
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), max_norm))
        stepper.step()
    return flat(model), norms


def bad_at(*where):
    """Return the micro-batches, with a nan at these (rank, index)."""
    return lambda rank, index: poisoned(rank, index) if (rank, index) in where else batch(rank, index)


class FakeAmp(types.ModuleType):
    """Stands in for `apex.amp`, scale 8. As there, a pass that does not delay sets older gradients aside,
    and an overflow puts something that does nothing in the place of the optimizer's next step."""

    def __init__(self):
        super().__init__("apex.amp")
        self.calls, self.is_scaled, self.loaded = [], False, None

    def initialize(self, models, optimizers, **options):
        self.calls.append("wrapped" if isinstance(models[0], DistributedDataParallel) else "initialize")
        for optimizer in optimizers:
            optimizer._amp_stash = types.SimpleNamespace(already_patched=False)
        return models, optimizers

    @contextlib.contextmanager
    def scale_loss(self, loss, optimizer, *, delay_unscale=False):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        aside = [None] * len(parameters)
        if not delay_unscale and not self.is_scaled:
            aside = [p.grad for p in parameters]
            for parameter in parameters:
                parameter.grad = None
        yield loss * 8
        self.calls.append("delayed" if delay_unscale else "unscaled")
        self.is_scaled = delay_unscale
        if not delay_unscale:
            self._unscale(parameters, aside)
            if not all(p.grad.isfinite().all() for p in parameters if p.grad is not None):
                self._skip_once(optimizer, optimizer._amp_stash)

    @staticmethod
    def _unscale(parameters, aside):
        for parameter, older in zip(parameters, aside, strict=True):
            if parameter.grad is None:
                parameter.grad = older
            else:
                parameter.grad.div_(8).add_(0 if older is None else older)

    @staticmethod
    def _skip_once(optimizer, stash):
        step = optimizer.step

        def skip():
            optimizer.step, stash.already_patched = step, False

        if not stash.already_patched:
            optimizer.step, stash.already_patched = skip, True

    def state_dict(self):
        return {"loss_scaler0": {"loss_scale": 8.0, "unskipped": dist.get_world_size()}}

    def load_state_dict(self, state):
        self.loaded = state


def fake_apex():
    amp, apex = FakeAmp(), types.ModuleType("apex")
    apex.amp = amp
    sys.modules.update({"apex": apex, "apex.amp": amp})
    return amp


@dataclass(kw_only=True)
class Run:
    """A trainer under DDP with what it did: the iterations that reduced, once for each bucket, stepped, and lost."""

    num_micro: int = 1
    mechanism: str = "plain"
    make: type = Net
    optimizer: object = sgd
    ddp: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    counts: bool = True
    compiles: bool = False
    done: int = 0

    def __post_init__(self):
        amp = {"amp_mode": "apex", "amp_options": {"enabled": False}} if self.mechanism == "apex" else {}
        self.bare = build(self.make)
        self.model, self.stepper = distrain.prepare(self.bare, self.optimizer(self.bare), ddp_options=self.ddp, **amp)
        self.reductions, self.steps, self.losses = [], [], {}
        if self.counts:
            self.model.register_comm_hook(None, self._reduce)
        called = torch.compile(self.model, backend="eager") if self.compiles else self.model
        options = {**options_of(self.mechanism), **self.options}
        self.trainer = distrain.create_supervised_trainer(
            called, self.stepper, mse_loss, gradient_accumulation_steps=self.num_micro, **options
        )
        self.stepper.register_step_pre_hook(lambda *_: self.steps.append(self.trainer.state.iteration))
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._follow)

    def _reduce(self, state, bucket):
        self.reductions.append(self.trainer.state.iteration)
        return allreduce_hook(state, bucket)

    def _follow(self):
        self.losses[self.trainer.state.iteration] = self.trainer.state.output

    def over(self, indices, *, wrap=list, get=batch, **goal):
        """Train on this rank's micro-batches of these indices; return self."""
        rank = dist.get_rank()
        wrap = functools.partial(Resumable, done=self.done) if self.done else wrap
        self.trainer.run(wrap([get(rank, index) for index in indices]), **goal)
        return self

    def stop_after(self, iteration):
        def stop():
            raise StopError

        self.trainer.add_event_handler(Events.ITERATION_STARTED(once=iteration + 1), stop)

    def weights(self):
        return flat(unwrap(self.model))

    def against(self, expected, **more):
        """Return what the tests look at, beside the weights that the reference came to."""
        return {
            "weights": self.weights(),
            "expected": expected,
            "reductions": self.reductions,
            "steps": self.steps,
        } | more
