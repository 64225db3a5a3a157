"""The accumulation window: the micro-batches whose gradients one optimizer step takes together."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
import torch.distributed as dist

from distrain.errors import CheckpointError
from distrain.training.checks import one_of, whole_number
from distrain.training.progress import is_last_iteration

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel
    from torch.optim import Optimizer

    from distrain.engine import Engine, State
    from distrain.training.nonfinite import NonFiniteGuard

__all__ = ["AccumulationWindow", "Tail", "checked_num_micro"]

Tail: TypeAlias = Literal["carry", "flush", "drop"]

TAILS = ("carry", "flush", "drop")


class AccumulationWindow:
    """Knows where a window begins and ends, and how many micro-batches its gradients hold.

    A backward pass adds the gradient of `loss / num_micro`, so a full window holds the mean. One that holds fewer,
    because the epoch cut it or because the run was resumed without its gradients, is brought to the mean of what it
    holds before the step.

    A window goes on from one iteration to the next and never over a gap: when the iteration count was moved, by a
    resumption or by a new run, it begins anew. Unless its tail is to be carried, it does not go on into another epoch
    either, whatever ended the one before.

    Args:
        optimizer: Its parameters' gradients are the window's content.
        num_micro: Micro-batches in a full window.
        tail: What becomes of a window at the end of an epoch: `carry` counts on into the next one (windows end where
            the iteration is a multiple of `num_micro`), `flush` steps with what is held, `drop` discards it.
        finite: What it saw of the window's losses is saved with the window.
        content: The parameters whose gradients are the window's content, where those are not the optimizer's.

    Raises:
        ValueError: `num_micro` is not positive, or the tail is unknown.
        TypeError: `num_micro` is not a whole number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_micro: int,
        tail: Tail = "carry",
        *,
        finite: NonFiniteGuard | None = None,
        content: Iterable[torch.nn.Parameter] | None = None,
    ) -> None:
        self.num_micro = checked_num_micro(num_micro)
        self.tail = one_of("accumulation_tail", tail, TAILS)
        self.held = 0
        """Micro-batches in the gradients now, 0 between windows."""
        self._optimizer = optimizer
        self._finite = finite
        self._content = None if content is None else list(content)
        self._iteration = self._epoch = 0
        self._held_by_rank: float | None = None  # on average, in a window that `reduce` took together
        self._ends_together = True

    def opens(self, state: State) -> bool:
        """Whether a window begins with the current iteration; if so, it holds nothing now.

        Args:
            state: The state of the engine that runs the step.
        """
        if self.held and state.iteration == self._iteration + 1:
            if self.tail == "carry" or state.epoch == self._epoch:
                return False
            if self.tail == "flush":
                warnings.warn(
                    f"The end of epoch {self._epoch} was not known in its last iteration, and the {self.held} "
                    "micro-batches of the accumulation window that it cut were not flushed: they are not used. "
                    "create_supervised_trainer attaches what flushes them; to an engine of your own give it by "
                    "add_event_handler(Events.EPOCH_COMPLETED, step.end_epoch), likewise at TERMINATE_SINGLE_EPOCH.",
                    RuntimeWarning,
                    stacklevel=2,
                )
        self.held = 0
        return True

    def closes(self, engine: Engine) -> bool:
        """Whether the current iteration's micro-batch is the last of its window, as far as can be known before it.

        Args:
            engine: The engine that runs the step.
        """
        if self.tail == "carry":
            return engine.state.iteration % self.num_micro == 0
        is_cut = self.tail == "flush" and self._ends_together and is_last_iteration(engine)
        return self.held + 1 >= self.num_micro or is_cut

    def add(self, state: State) -> None:
        """Count the micro-batch of the current iteration, whose backward pass is done.

        Args:
            state: The state of the engine that runs the step.
        """
        self.held += 1
        self._iteration, self._epoch = state.iteration, state.epoch

    def clear(self) -> None:
        """End the window; its gradients stay where they are, for handlers, until the next one begins."""
        self.held, self._held_by_rank = 0, None

    def to_mean(self) -> None:
        """Make the gradients the mean of the micro-batches held, where those are not `num_micro`."""
        held = self.held if self._held_by_rank is None else self._held_by_rank
        if held != self.num_micro:
            _scale(self.parameters(), self.num_micro / held)

    def reduce(self, ddp: DistributedDataParallel) -> bool:
        """Take the mean over the ranks of gradients that were made without communication.

        For a window whose end could not be known before its last backward pass. Every rank must call it, with as many
        micro-batches as it has, perhaps none. All ranks do the same: what each holds is known to all first.

        Args:
            ddp: The model that would have reduced them.

        Returns:
            Whether any rank holds something; if none does, nothing was done.
        """
        group, ignored = ddp.process_group, ddp.parameters_to_ignore
        rank, world_size = dist.get_rank(group), dist.get_world_size(group)
        names = ((name, p) for name, p in ddp.module.named_parameters() if p.requires_grad)
        parameters = [p for name, p in names if name not in ignored]
        # Of a rank that holds nothing they are the last window's, left there for handlers.
        gradients = [p.grad if self.held else None for p in parameters]
        is_dense = [each is not None and not each.is_sparse for each in gradients]
        is_sparse = [each is not None and each.is_sparse for each in gradients]
        ends = [self._iteration if each == rank else 0 for each in range(world_size)]
        told = torch.tensor([self.held, *ends, *is_dense, *is_sparse], dtype=torch.long, device=parameters[0].device)
        dist.all_reduce(told, group=group)
        total, *others = told.tolist()
        self._ends_together = len(set(others[:world_size])) == 1
        if not total:
            return False
        kinds = zip(others[world_size:][: len(parameters)], others[world_size + len(parameters) :], strict=True)
        for parameter, mine, (num_dense, num_sparse) in zip(parameters, gradients, kinds, strict=True):
            parameter.grad = None
            if num_dense or num_sparse:
                parameter.grad = _in_layout(mine, parameter, sparse=not num_dense)
                parameter.grad.div_(world_size)
                dist.all_reduce(parameter.grad, group=group)
        self._held_by_rank = total / world_size
        return True

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield what the optimizer updates; apex puts its own master copies there."""
        for group in self._optimizer.param_groups:
            yield from group["params"]

    def state_dict(self) -> dict[str, Any]:
        """Return the window with its gradients, copied to the CPU. Under DDP each rank holds its own until the end."""
        gradients = [None if p.grad is None else p.grad.detach().cpu().clone() for p in self._contents()]
        return {
            "num_micro": self.num_micro,
            "held": self.held,
            "iteration": self._iteration,
            "epoch": self._epoch,
            "gradients": gradients if self.held else [],
            "nonfinite": 0 if self._finite is None else self._finite.place,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with a saved window, if the next iteration is the one after its last.

        Args:
            state_dict: What `state_dict` returned, also of a window of another size.

        Raises:
            CheckpointError: It belongs to other parameters.
        """
        gradients, parameters = state_dict["gradients"], list(self._contents())
        if state_dict["held"]:
            if len(gradients) != len(parameters) or any(
                g is not None and g.shape != p.shape for g, p in zip(gradients, parameters, strict=True)
            ):
                raise CheckpointError(
                    f"The saved accumulation window has gradients of {len(gradients)} tensors that do not fit the "
                    f"{len(parameters)} parameters of this optimizer. Make model and optimizer as in the saved run."
                )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
        self.held, self._iteration, self._epoch = (state_dict[key] for key in ("held", "iteration", "epoch"))
        if self.held and state_dict["num_micro"] != self.num_micro:
            _scale(parameters, state_dict["num_micro"] / self.num_micro)
        if self._finite is not None:
            self._finite.restore(state_dict["nonfinite"], state_dict["held"])

    def _contents(self) -> Iterable[torch.nn.Parameter]:
        return self.parameters() if self._content is None else self._content


def checked_num_micro(value: Any) -> int:
    """Return the number of micro-batches in a window.

    Args:
        value: What the user gave as `gradient_accumulation_steps`.

    Raises:
        ValueError: It is not positive.
        TypeError: It is not a whole number.
    """
    num_micro = whole_number("gradient_accumulation_steps", value)
    if num_micro <= 0:
        raise ValueError(
            "Gradient_accumulation_steps must be strictly positive. "
            "No gradient accumulation if the value set to one (default)."
        )
    return num_micro


def _in_layout(gradient: torch.Tensor | None, parameter: torch.nn.Parameter, *, sparse: bool) -> torch.Tensor:
    """Return this rank's gradient of a parameter in the layout that all ranks take; zeros where it has none."""
    if gradient is not None:
        return gradient.to_dense() if gradient.is_sparse and not sparse else gradient
    zeros = torch.zeros_like(parameter, requires_grad=False)
    return zeros.to_sparse(1) if sparse else zeros  # rows are what an embedding's gradient has few of


def _scale(parameters: Iterable[torch.nn.Parameter], factor: float) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
