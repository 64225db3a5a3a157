"""apex's automatic mixed precision, `apex.amp`: finding it, initialising it before DDP, and saving its loss scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distrain.training.checks import one_of

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

__all__ = ["ApexLossScales", "import_apex_amp", "initialize"]

OPT_LEVELS = ("O0", "O1", "O2", "O3")

NO_APEX = (
    "Please install apex from https://github.com/nvidia/apex to use amp_mode='apex'. The last release that has "
    "apex.amp is tag 25.05. Without it, amp_mode='amp' does the same with what torch has."
)


def import_apex_amp() -> Any:
    """Return the module `apex.amp`.

    Raises:
        ModuleNotFoundError: apex is not installed, or is a release without `amp`.
    """
    try:
        from apex import amp
    except ImportError as error:
        raise ModuleNotFoundError(NO_APEX) from error
    return amp


def initialize(
    models: Sequence[nn.Module], optimizers: Sequence[Optimizer], opt_level: str, options: Mapping[str, Any]
) -> tuple[list[nn.Module], list[Optimizer]]:
    """Call `amp.initialize` once for all models and optimizers, none of them wrapped.

    Args:
        models: Models on CUDA devices.
        optimizers: Their optimizers.
        opt_level: One of `OPT_LEVELS`.
        options: Further arguments of `amp.initialize`.

    Returns:
        The models and optimizers to go on with.

    Raises:
        ModuleNotFoundError: As for `import_apex_amp`.
        ValueError: The level is unknown, or a model is not on a CUDA device.
    """
    one_of("opt_level", opt_level, OPT_LEVELS)
    if options.get("enabled", True):
        for model in models:
            devices = {parameter.device.type for parameter in model.parameters()}
            if devices - {"cuda"}:
                raise ValueError(
                    f"apex computes on CUDA only, and {type(model).__name__} is on {devices.pop()}. Move it there "
                    "before making its optimizer, use amp_mode='amp', or switch apex off by "
                    "amp_options={'enabled': False}."
                )
    found = import_apex_amp().initialize(list(models), list(optimizers), opt_level=opt_level, **options)
    return list(found[0]), list(found[1])


class ApexLossScales:
    """The loss scales that apex keeps for the whole process, as an object with a state dict.

    Without `amp.initialize`, or with `enabled=False`, there are none, and the state dict is empty.
    """

    def state_dict(self) -> dict[str, Any]:
        try:
            return dict(import_apex_amp().state_dict())
        except AttributeError:  # apex has not made the list of its scalers
            return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Set the scales; `amp.initialize` must have been called with the level of the saved run.

        Args:
            state_dict: What `state_dict` returned.
        """
        if state_dict:
            import_apex_amp().load_state_dict(dict(state_dict))
