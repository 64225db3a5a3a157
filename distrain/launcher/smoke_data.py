"""Whether the ranks of a smoke test got disjoint samples, and all of them. Pure, and nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

__all__ = ["judge_data"]

Verdict = tuple[Literal["passed", "failed", "unknown"], str, str]
"""The standing, what was seen, and what to do."""

SHARD = "distrain.dataloader(dataset, …) gives each rank its own part, and so does torch's DistributedSampler"


def judge_data(data: Sequence[Mapping[str, Any] | None], ranks: Sequence[Mapping[str, Any]]) -> Verdict:
    """Compare what the ranks were fed with.

    Args:
        data: What each rank's loader gave, see `distrain.smoke.loaders`; None where no DataLoader was seen.
        ranks: The findings of each rank.
    """
    known = [each for each in data if each is not None]
    if len(known) < len(data):
        if known:
            who = ", ".join(str(rank) for rank, each in enumerate(data) if each is None)
            return "failed", f"no batch of a DataLoader was trained on by rank {who}", "let every rank train"
        batches = [[*each["batches"].values()] for each in ranks]
        return _by_content(batches, "the data come from no torch DataLoader", "use distrain.dataloader")
    reason = next((each["why_not"] for each in known if each["used"] is None), "")
    batches = [list(each["batches"]) for each in known]
    if reason:
        return _by_content(batches, reason, "see for yourself that each rank gets its own part of the data")
    probes = {each["probe"] for each in known}
    if len(probes) > 1 and "" not in probes:
        return "unknown", "each rank has a data set of its own; whether they overlap cannot be seen", ""
    return _by_index(known)


def _by_content(batches: Sequence[Sequence[str]], reason: str, todo: str) -> Verdict:
    """Judge by the first batches alone: equal ones are a failure, others prove nothing."""
    num = min(map(len, batches))
    if num == 0 or len(batches) == 1:
        return "unknown", reason, todo
    if all(each[:num] == batches[0][:num] for each in batches):
        return "failed", f"every rank got the same {num} batches ({reason})", SHARD
    return "unknown", f"{reason}; the first {num} batches of the ranks differ", todo


def _by_index(data: Sequence[Mapping[str, Any]]) -> Verdict:
    world_size = len(data)
    used = [set(each["used"]) for each in data]
    available: set[int] = set()
    for each in data:
        available.update(range(each["available"]) if isinstance(each["available"], int) else each["available"])
    everything = set().union(*used)
    given = sum(len(each["used"]) for each in data)
    twice = given - len(everything)
    missing = len(available - everything)
    total = f"{len(available):,}"
    if world_size > 1 and all(each == used[0] for each in used):
        return "failed", f"every rank gets the same {len(used[0]):,} of {total} samples", SHARD
    is_filled_up = twice > 0 and _is_filled_up(given, len(available), data)
    if twice and not is_filled_up:
        shared = given - sum(map(len, used))
        what = f"{twice - shared:,} of {total} samples go to several ranks" if twice > shared else ""
        again = f"{shared:,} come to a rank more than once in an epoch" if shared else ""
        split = "" if isinstance(data[0]["available"], int) else "; random_split needs the same generator on every rank"
        return "failed", "; ".join(filter(None, [what, again])), SHARD + split
    most_dropped = data[0]["batch_size"] * world_size
    is_dropped = any(each["drops_last"] for each in data) and missing < most_dropped
    if missing and not is_dropped:
        todo = "see that the sampler covers the whole data set over all ranks"
        return "failed", f"{missing:,} of {total} samples reach no rank in an epoch", todo
    asides = [
        f"{missing:,} are left out by drop_last" if missing else "",
        f"{twice} come twice, to fill the last batches up" if is_filled_up else "",
    ]
    whose = "each on one rank" if world_size > 1 else "each once"
    return "passed", "; ".join(filter(None, [f"{total} samples, {whose}", *asides])), ""


def _is_filled_up(given: int, num: int, data: Sequence[Mapping[str, Any]]) -> bool:
    """Whether samples come twice only to give each rank as many as the others, or as many whole batches."""
    world_size = len(data)
    if len({len(each["used"]) for each in data}) > 1:
        return False
    return any(given == -(-num // unit) * unit for unit in (world_size, world_size * data[0]["batch_size"]))
