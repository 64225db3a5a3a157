"""What the findings of a smoke test's ranks come to: one line for each check. Pure, and nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distrain.launcher.smoke_data import judge_data

__all__ = ["Check", "checks", "table"]

SHOWN_NAMES = 4

OTHER_DATA = "got other data"

OTHER_STATE = "other state at the end than without the stop: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check.

    Args:
        name: What is checked.
        standing: `passed`, `failed` or `unknown`, which is where it could not be checked.
        why: What was seen, or why nothing was.
        todo: What to do about it, "" where nothing is to be done.
    """

    name: str
    standing: Literal["passed", "failed", "unknown"]
    why: str
    todo: str = ""


Findings = Mapping[str, Any]
"""What a rank has left, see `distrain.smoke.findings`."""


def checks(
    starts: Sequence[Sequence[Findings | None]],
    data: Sequence[Mapping[str, Any] | None],
    *,
    trouble: str,
    left: Sequence[str],
) -> list[Check]:
    """Judge a smoke test.

    Args:
        starts: The findings of each rank in each start; None where a rank has left none.
        data: What each rank's training data were in the first start; None where that is not known.
        trouble: Why the script failed, "" if it did not.
        left: The processes that it left behind, as people read them.
    """
    first = [each for each in starts[0] if each is not None]
    if len(first) < len(starts[0]):
        nothing = "a rank has left no findings"
        names = ("losses", "gradients", "weights", "data", "checkpoint")
        seen = [Check(name=name, standing="unknown", why=nothing) for name in names]
    else:
        standing, why, todo = judge_data(data, first)
        seen = [
            _losses(first),
            _gradients(first),
            _weights(first),
            Check(name="data", standing=standing, why=why, todo=todo),
            _checkpoint(first, starts[1] if len(starts) > 1 else [], trouble),
        ]
    return [_ran(starts, trouble), *seen, _left(left, len(starts))]


def table(found: Sequence[Check]) -> str:
    """Return the checks as a table, a line each, and what to do below those that did not pass.

    Args:
        found: The checks.
    """
    words = {"passed": "passed", "failed": "FAILED", "unknown": "could not be checked"}
    width = max(len(words[each.standing]) for each in found)
    names = max(len(each.name) for each in found)
    lines = []
    for each in found:
        lines.append(f"  {each.name:<{names}}  {words[each.standing]:<{width}}  {each.why}".rstrip())
        if each.todo:
            lines.append(f"      → {each.todo}")
    return "\n".join(lines)


def _ran(starts: Sequence[Sequence[Findings | None]], trouble: str) -> Check:
    if trouble:
        return Check(name="script", standing="failed", why=trouble)
    last = [each for each in starts[-1] if each is not None]
    why = f"{len(starts)} starts, ended well" if len(starts) > 1 else "ended well"
    if any(each["ended"] == "cut" for each in last):
        why = f"ended here after {last[0]['steps']} steps; what comes later in it was not run"
    return Check(name="script", standing="passed", why=why)


def _losses(first: Sequence[Findings]) -> Check:
    seen = [(rank["rank"], number, float.fromhex(text)) for rank in first for number, text in rank["losses"]]
    if not seen:
        todo = "call backward() on the loss; the trainer of distrain.create_supervised_trainer does"
        return Check(name="losses", standing="unknown", why="no backward pass from a single number", todo=todo)
    bad = [each for each in seen if not math.isfinite(each[2])]
    if bad:
        rank, number, value = min(bad, key=lambda each: each[1])
        return Check(
            name="losses",
            standing="failed",
            why=f"{value} on rank {rank} in iteration {number}; {len(bad)} of {len(seen)} are not finite",
            todo="look at that batch, the learning rate and the loss function",
        )
    values = [each[2] for each in seen]
    return Check(
        name="losses", standing="passed", why=f"{len(values)} finite, between {min(values):.4g} and {max(values):.4g}"
    )


def _gradients(first: Sequence[Findings]) -> Check:
    if not any(each["steps"] for each in first):
        why, todo = "no step of a torch optimizer was seen", "see that the script trains, and with a torch.optim one"
        return Check(name="gradients", standing="unknown", why=why, todo=todo)
    without = list(dict.fromkeys(name for each in first for name in each["without"]))
    not_finite = {name: step for each in first for name, step in each["not_finite"].items()}
    num = max(len(each["parameters"]) for each in first)
    if without:
        return Check(
            name="gradients",
            standing="failed",
            why=f"{len(without)} of {num} parameters that require one got none: {_some(without)}",
            todo="make the loss depend on them (a branch that is not called, a detach()), or requires_grad_(False)",
        )
    if not_finite:
        name, step = min(not_finite.items(), key=lambda each: each[1])
        return Check(
            name="gradients",
            standing="failed",
            why=f"nan or infinite in {len(not_finite)} of {num} parameters, first in step {step}: {name}",
            todo="clip (max_grad_norm), lower the learning rate, or look for a division by zero or a square root of it",
        )
    unstepped, idle = first[0]["unstepped"], first[0]["idle"]
    aside = f"; no optimizer has {_some(unstepped)}" if unstepped else ""
    aside += f"; not exercised, without a step: {_some(idle)}" if idle else ""
    return Check(name="gradients", standing="passed", why=f"{num} parameters got finite ones{aside}")


def _weights(first: Sequence[Findings]) -> Check:
    if len(first) == 1:
        return Check(name="weights", standing="unknown", why="one rank has nobody to agree with", todo="--nproc 2")
    steps = [each["steps"] for each in first]
    if len(set(steps)) > 1:
        why = "; ".join(f"rank {rank} took {num} steps" for rank, num in enumerate(steps))
        return Check(name="weights", standing="failed", why=why, todo="let every rank train, not only some")
    ends = [next((each for each in rank["weights"] if each["when"] == "end"), None) for rank in first]
    if any(each is None for each in ends):
        why = "no training came to its end" if any(steps) else "no step of a torch optimizer was seen"
        return Check(name="weights", standing="unknown", why=why)
    names = ends[0]["names"]  # type: ignore[index]  # none is None
    if any(not print_ for print_ in ends[0]["prints"]):  # type: ignore[index]  # likewise
        return Check(name="weights", standing="unknown", why="they are spread over the ranks (DTensor)")
    since = before = "already before the first step"
    apart = _apart([next((each for each in rank["weights"] if each["when"] == "start"), None) for rank in first])
    if not apart and apart is not None:
        since, apart = f"after {steps[0]} steps", _apart(ends)
    if apart is None or apart:
        todo = "wrap the model: model, optimizer = distrain.prepare(model, optimizer), or DistributedDataParallel"
        if since != before and any(each["without"] for each in first):
            todo = (
                "mend the gradients first: where a parameter gets none, DistributedDataParallel may reduce none at all"
            )
        which = "the parameters" if apart is None else f"{len(apart)} of {len(names)} parameters"
        details = ": their names are others" if apart is None else f": {_some(apart)}"
        return Check(
            name="weights",
            standing="failed",
            why=f"{which} differ between the ranks, {since}{details}",
            todo=todo,
        )
    return Check(name="weights", standing="passed", why=f"{len(names)} parameters, bit for bit, after {steps[0]} steps")


def _apart(moments: Sequence[Any]) -> list[str] | None:
    """Return the parameters that differ between the ranks; None where they have others."""
    one = moments[0]
    if any(each is None or each["names"] != one["names"] for each in moments):
        return None
    columns = zip(*(each["prints"] for each in moments), strict=True)
    return [name for name, column in zip(one["names"], columns, strict=True) if len(set(column)) > 1]


def _checkpoint(first: Sequence[Findings], second: Sequence[Findings | None], trouble: str) -> Check:
    found = first[0]["checkpoint"]
    if found is None:
        return Check(
            name="checkpoint",
            standing="unknown",
            why="no distrain.Checkpointer is attached; torch.save by hand is not followed",
            todo="Checkpointer().attach(trainer, model=…, optimizer=…, loader=…)",
        )
    if found["saved_at"] is None:
        return Check(name="checkpoint", standing="unknown", why=found["why_not"] or "its trainer did not run")
    pairs = [(one, other) for one, other in zip(first, second, strict=False) if other is not None]
    if len(pairs) < len(first) or any(other["checkpoint"] is None for _, other in pairs):
        if trouble:
            why, todo = f"saved after iteration {found['saved_at']}; the script failed before it had gone on", ""
            return Check(name="checkpoint", standing="unknown", why=why, todo=todo)
        return Check(name="checkpoint", standing="failed", why="the second start has not attached the Checkpointer")
    for one, other in pairs:
        difference = _difference(one, other, found["saved_at"])
        if difference:
            why = f"rank {one['rank']}: {difference}"
            return Check(name="checkpoint", standing="failed", why=why, todo=_remedy(one, difference))
    last = max((number for number, _ in first[0]["losses"]), default=found["saved_at"])
    why = f"resumed after iteration {found['saved_at']} of {last}: data, losses and weights as without the stop"
    return Check(name="checkpoint", standing="passed", why=why)


def _difference(one: Findings, other: Findings, saved_at: int) -> str:
    """Return where a start from the checkpoint went another way than the run without a stop, "" if nowhere."""
    resumed_at = other["checkpoint"]["resumed_at"]
    iterations = [number for number, _ in one["losses"] if number > saved_at]
    if iterations and resumed_at != saved_at:
        where = "nowhere" if resumed_at is None else f"after iteration {resumed_at}"
        return f"saved after iteration {saved_at}, resumed {where}"
    pairs = zip(_after(one, saved_at), _after(other, saved_at), strict=False)
    for (number, loss), (_, resumed) in pairs:
        batch, other_batch = one["batches"].get(str(number)), other["batches"].get(str(number))
        if batch != other_batch:
            return f"iteration {number} {OTHER_DATA} than without the stop"
        if loss != resumed:
            values = f"{float.fromhex(resumed):.7g}, {float.fromhex(loss):.7g} without the stop"
            return f"the loss of iteration {number} is {values}; its data are the same"
    ends = [next((each for each in start["weights"] if each["when"] == "end"), None) for start in (one, other)]
    apart = [] if ends[1] is None and not iterations else _apart(ends)
    if apart is None:
        return "the second start has other parameters"
    if apart:
        return f"other weights at the end than without the stop: {_some(apart)}"
    others = _other_states(one["checkpoint"]["others"], other["checkpoint"]["others"])
    return f"{OTHER_STATE}{_some(others)}" if others else ""


def _other_states(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the kinds of state that differ. A kind with more or fewer of them is left out: they come and go."""
    return [kind for kind, held in one.items() if held != (again := other.get(kind, [])) and len(held) == len(again)]


def _after(start: Findings, saved_at: int) -> Iterator[tuple[int, str]]:
    return ((number, loss) for number, loss in start["losses"] if number > saved_at)


def _remedy(first: Findings, difference: str) -> str:
    found = first["checkpoint"]
    if difference.startswith(OTHER_STATE):
        return f"attach it as well, as in scheduler=… or average=…. Attached are {', '.join(found['objects'])}"
    missing = list(dict.fromkeys(found["optimizers"]))
    if not found["is_loader_attached"]:
        missing.append("the loader of distrain.dataloader")
    if missing:
        return f"attach what is missing: {', '.join(missing)}. Attached are {', '.join(found['objects'])}"
    if OTHER_DATA in difference:
        return "the data set is another one in each start, or draws from a generator of its own: init(seed=…) seeds it"
    return (
        "something the training depends on is in no state_dict: an attribute of a module that is no buffer, a "
        f"scheduler, a counter, a generator of your own. Attached are {', '.join(found['objects'])}"
    )


def _left(left: Sequence[str], num_starts: int) -> Check:
    if not left:
        return Check(name="processes", standing="passed", why="none is left")
    whose = f"the ranks of {num_starts} starts" if num_starts > 1 else "the ranks"
    return Check(
        name="processes",
        standing="failed",
        why=f"{len(left)} left when {whose} had ended: {_some(left)}",
        todo="end what the script starts: wait() or terminate() it, close pools",
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
