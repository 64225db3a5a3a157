"""The Python stacks of all ranks, compared and shown: who stands where, and who is the odd one out."""

from __future__ import annotations

import linecache
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distrain.supervision import places
from distrain.supervision.dumps import Dump
from distrain.supervision.frames import Frame, fold, is_library, short_path
from distrain.supervision.places import Place
from distrain.supervision.process_state import ProcessState

__all__ = ["Group", "group", "odd_ones_out", "ranks_in_words", "render", "whereabouts"]

_COLLECTIVES = ("torch/distributed/distributed_c10d.py", "torch/distributed/_functional_collectives.py")
_MAY_WAIT = ("torch/distributed/", "torch/nn/parallel/distributed.py", "torch/autograd/graph.py", "torch/_tensor.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks whose main threads stand at the same place.

    Args:
        ranks: In ascending order.
        dump: The stacks of the first of them; None when these ranks gave none.
        is_stopped: Whether a signal had stopped these processes.
    """

    ranks: tuple[int, ...]
    dump: Dump | None
    is_stopped: bool = False

    @property
    def waits_for_others(self) -> bool:
        """Whether its innermost calls are a collective or a backward pass, which other ranks must take part in."""
        return _waiting_in(self.dump.frames if self.dump else ()) is not None

    @property
    def place(self) -> Place:
        """The same in few words."""
        return Place(
            ranks=self.ranks,
            is_stopped=self.is_stopped,
            is_known=self.dump is not None,
            waits_for_others=self.waits_for_others,
            mark=places.mark_of(self.dump.frames if self.dump else ()),
        )


def group(by_rank: Mapping[int, Dump | None], stopped: Collection[int] = ()) -> list[Group]:
    """Return the ranks in groups of the same main stack (file, line and function of every frame), largest first.

    Args:
        by_rank: Each rank's dump; None when it gave none, as a stopped process does.
        stopped: The ranks whose processes a signal had stopped.
    """
    members: dict[tuple[bool, tuple[Frame, ...] | None], list[int]] = {}
    for rank in sorted(by_rank):
        dump = by_rank[rank]
        members.setdefault((rank in stopped, dump.frames if dump else None), []).append(rank)
    groups = [
        Group(ranks=tuple(ranks), dump=by_rank[ranks[0]], is_stopped=is_stopped)
        for (is_stopped, _), ranks in members.items()
    ]
    return sorted(groups, key=lambda each: (-len(each.ranks), each.ranks))


def odd_ones_out(groups: Sequence[Group]) -> tuple[int, ...]:
    """Return the ranks that the others probably wait for, () when the stacks do not tell.

    Args:
        groups: As `group` returns them.
    """
    return places.odd_ones_out([each.place for each in groups])


def _last_run(frames: Sequence[Frame]) -> Sequence[Frame]:
    """The library frames below the user's last one."""
    users = [n for n, frame in enumerate(frames) if not is_library(frame.file)]
    return frames[users[-1] + 1 :] if users else frames


def _waiting_in(frames: Sequence[Frame]) -> Frame | None:
    """The library's frame that waits for other ranks, None when none does.

    DDP reduces inside the backward pass, whose only Python frame is autograd's, and waits for the rest before the
    next forward pass. There the frame must be the innermost, since wrapped modules run inside such frames too.
    """
    run = [frame for frame in _last_run(frames) if short_path(frame.file) != "torch/distributed/c10d_logger.py"]
    if run and short_path(run[-1].file).startswith(_MAY_WAIT):
        return run[-1]
    return next((frame for frame in reversed(run) if short_path(frame.file).startswith(_COLLECTIVES)), None)


def _doing(dump: Dump | None) -> str:
    """What the main thread is in, in a few words, "" when its frames say all."""
    run = _last_run(dump.frames) if dump else ()
    if waiting := _waiting_in(dump.frames if dump else ()):
        return f"waiting in {waiting.function} ({short_path(waiting.file)})"
    if any(short_path(frame.file) == "torch/utils/data/dataloader.py" for frame in run):
        return "waiting for a worker of its DataLoader"
    return f"in {run[-1].function} ({short_path(run[-1].file)})" if run else ""


def whereabouts(dump: Dump) -> str:
    """Return where a main thread stands, as the rest of a sentence: the user's innermost frame, and what it does below.

    Args:
        dump: The stacks of one process.
    """
    users = [frame for frame in dump.frames if not is_library(frame.file)]
    place = f"in {users[-1].function} (line {users[-1].line} of {Path(users[-1].file).name})" if users else ""
    return ", ".join(filter(None, [place, _doing(dump)])) or "outside of Python"


def render(
    groups: Sequence[Group],
    states: Mapping[int, ProcessState | None],
    odd: Collection[int] | None = None,
    *,
    why_none: str = "",
) -> str:
    """Return the stacks of all ranks as text: who stands where, the odd ones named, library frames folded.

    Of each group the main thread is shown, and the other threads of its first rank that run code of the user's.

    Args:
        groups: As `group` returns them.
        states: What each rank's process was doing before it was asked for its stack; may lack ranks.
        odd: The odd ranks, where more is known than these groups; None finds them here.
        why_none: Why ranks give no stacks, where that is known ahead.
    """
    odd = odd_ones_out(groups) if odd is None else odd
    return "\n".join(
        line for each in groups for line in _render_group(each, states, odd=each.ranks[0] in odd, why_none=why_none)
    )


def _render_group(each: Group, states: Mapping[int, ProcessState | None], *, odd: bool, why_none: str) -> Iterator[str]:
    known = [state for rank in each.ranks if (state := states.get(rank))]
    words = dict.fromkeys(state.words for state in known if odd or state.state != "S")
    title = ranks_in_words(each.ranks) + (
        ", the odd one out" if odd and len(each.ranks) == 1 else ", the odd ones out" * odd
    )
    title += f" ({', '.join(words)})" if words else ""
    doing = _doing(each.dump)
    yield f"{title}, {doing}:" if doing else f"{title}:"
    if each.dump is None or not each.dump.threads:
        yield f"  no Python stack was given{f': {why_none}' if why_none else ''}"
        return
    if each.dump.fatal:
        yield f"  {each.dump.fatal}"
    yield from (f"  {line}" for line in fold(_with_code(each.dump.frames)) or ["no Python frame"])
    for thread in each.dump.threads:
        if not thread.is_main and (thread.is_users or (each.dump.fatal and thread.is_current)):
            crashed = ", which crashed" if each.dump.fatal and thread.is_current else ""
            yield f"  thread {thread.title}{crashed}:"
            yield from (f"    {line}" for line in fold(_with_code(thread.frames)))


def _with_code(frames: Sequence[Frame]) -> Iterator[Frame]:
    for frame in frames:
        linecache.checkcache(frame.file)
        code = "" if is_library(frame.file) else linecache.getline(frame.file, frame.line).strip()
        yield replace(frame, code=code or frame.code)


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Return `rank 3` or `ranks 0-2, 5`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank{'s' if len(ranks) > 1 else ''} {text}"
