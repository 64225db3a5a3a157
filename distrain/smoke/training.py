"""Losses, gradients and weights, seen where every loop comes by: at `backward` and at the optimizer's step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from distrain.smoke.findings import Findings, Weights
from distrain.smoke.loaders import Loaders
from distrain.smoke.prints import print_of_parameter
from distrain.smoke.states import idle_optimizers, outermost_modules, parameters_of
from distrain.training import unwrap

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["ITERATIONS", "Steps", "follow"]

ITERATIONS = 4
"""How many iterations a trainer runs, or steps a loop of another kind takes."""

MOST_STEPS = 25 * ITERATIONS
"""A script that runs its trainer again and again is ended here."""


def follow(findings: Findings, loaders: Loaders) -> Steps:
    """Look on at each backward pass and each optimizer's step of this process.

    Args:
        findings: Where it is noted.
        loaders: Who wants to know which data a backward pass is for.
    """
    steps = Steps(findings, loaders)
    register_optimizer_step_pre_hook(steps.before)
    register_optimizer_step_post_hook(steps.after)
    backward, scale = torch.autograd.backward, torch.amp.GradScaler.scale  # Tensor.backward calls it by this name

    def seen_backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
        with steps.in_backward(tensors):
            backward(tensors, *args, **kwargs)

    def seen_scale(self: torch.amp.GradScaler, outputs: Any) -> Any:
        scaled = scale(self, outputs)
        if isinstance(outputs, torch.Tensor):
            steps.unscaled[scaled] = outputs.detach()
        return scaled

    torch.autograd.backward = seen_backward
    torch.amp.GradScaler.scale = seen_scale  # type: ignore[method-assign]
    if findings.world_size > 2:
        _keep_buckets()
    return steps


def _keep_buckets() -> None:
    """Have DDP keep the buckets that it begins with.

    It arranges them anew after the first step, and among three ranks or more the order in which gloo adds numbers up
    depends on their place in the bucket. A second start begins with the first arrangement, and would end some last bits
    apart from a run without a stop.
    """
    reducer: Any = getattr(torch.distributed, "Reducer", None)
    if reducer is not None:
        reducer._rebuild_buckets = lambda _: False  # noqa: SLF001  # torch has no other way


class _Backward:
    """A backward pass; those inside it, of checkpointed activations, are parts of it."""

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note
        self._depth = 0

    def __enter__(self) -> None:
        if self._depth == 0:
            self._note()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1


class Steps:
    """What this process trains.

    Args:
        findings: Where it is noted.
        loaders: See `follow`.
    """

    def __init__(self, findings: Findings, loaders: Loaders) -> None:
        self._findings = findings
        self._loaders = loaders
        self._roots: Any = None
        self._backward = _Backward(self._note_losses)
        self._count: Counter[int] = Counter()
        self._optimizers: dict[int, Optimizer] = {}
        self._names: dict[int, str] = {}
        self._parameters: dict[int, nn.Parameter] = {}
        self._with_gradient: set[int] = set()
        self._steps_at_end = -1
        self.iteration: Callable[[], int | None] = lambda: None
        """Says at which iteration the trainer is that runs now; None where none does."""
        self.unscaled: MutableMapping[torch.Tensor, torch.Tensor] = WeakTensorKeyDictionary()
        """The losses that a GradScaler has scaled, by what came of it; where that is infinite, it skips the step."""

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those that have stepped."""
        return list(self._optimizers.values())

    def is_trained(self, parameter: torch.Tensor) -> bool:
        """Whether the weights that are noted have it among them.

        Args:
            parameter: A parameter.
        """
        return id(parameter) in self._parameters

    def in_backward(self, tensors: Any) -> _Backward:
        """Return what is held during a backward pass.

        Args:
            tensors: Where it starts.
        """
        self._roots = tensors
        return self._backward

    def _note_losses(self) -> None:
        roots = [self._roots] if isinstance(self._roots, torch.Tensor) else list(self._roots)
        number = self.iteration() or self._findings.steps + 1
        for root in (self.unscaled.get(each, each) for each in roots):
            if root.numel() == 1:
                self._findings.losses.append((number, float(root.detach()).hex()))
        self._loaders.note_backward()

    def before(self, optimizer: Optimizer, *_: Any) -> None:
        """Look at the gradients, ahead of an optimizer's step.

        Args:
            optimizer: The optimizer.
        """
        findings = self._findings
        if id(optimizer) not in self._optimizers:
            self._optimizers[id(optimizer)] = optimizer
            self._discover()
        if not findings.weights:
            self._note_weights("start")
        for number, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            self._with_gradient.add(number)
            if not bool(torch.isfinite(_values(parameter.grad)).all()):
                findings.not_finite.setdefault(self._names[number], findings.steps + 1)
        self._note_gradients()

    def after(self, optimizer: Optimizer, *_: Any) -> None:
        """Count a step; the last one ends a script whose loop is its own.

        Args:
            optimizer: The optimizer.
        """
        findings = self._findings
        self._count[id(optimizer)] += 1
        findings.steps = max(self._count.values())
        is_ours = self.iteration() is not None
        if findings.steps >= (MOST_STEPS if is_ours else ITERATIONS):
            self._cut()
        findings.write()

    def end_of_training(self) -> None:
        """Note the weights, if there were steps since they were noted last."""
        if self._steps_at_end != self._findings.steps and self._optimizers:
            self._steps_at_end = self._findings.steps
            self._note_weights("end")
            self._findings.write()

    def conclude(self, how: str) -> None:
        """Write down everything, once.

        Args:
            how: As in `Findings.ended`.
        """
        if self._findings.ended:
            return
        self.end_of_training()
        self._findings.idle = idle_optimizers(self.optimizers)
        self._loaders.conclude()
        self._findings.ended = how
        self._findings.write()

    def _cut(self) -> NoReturn:
        self.conclude("cut")
        self._findings.meet()
        raise SystemExit(0)

    def _discover(self) -> None:
        """Find the models that the optimizers train, and the names of their parameters."""
        held = {id(each): each for optimizer in self.optimizers for each in parameters_of(optimizer)}
        models = [unwrap(model) for model in outermost_modules()]
        models = [model for model in models if any(id(each) in held for each in model.parameters())]
        several = len(models) > 1
        for model in models:
            for name, parameter in model.named_parameters():
                self._names.setdefault(id(parameter), f"{type(model).__name__}.{name}" if several else name)
                self._parameters[id(parameter)] = parameter
        for number, parameter in held.items():
            self._names.setdefault(number, f"parameter {len(self._names)}")
            self._parameters[number] = parameter
        self._findings.unstepped = [
            self._names[number]
            for number, parameter in self._parameters.items()
            if parameter.requires_grad and number not in held
        ]

    def _note_gradients(self) -> None:
        wanted = [number for number, each in self._parameters.items() if each.requires_grad]
        self._findings.parameters = [self._names[number] for number in wanted]
        self._findings.without = [self._names[number] for number in wanted if number not in self._with_gradient]

    def _note_weights(self, when: str) -> None:
        self._findings.weights.append(
            Weights(
                when=when,
                steps=self._findings.steps,
                names=[self._names[number] for number in self._parameters],
                prints=[print_of_parameter(each) for each in self._parameters.values()],
            )
        )


def _values(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.coalesce().values() if gradient.layout == torch.sparse_coo else gradient
