"""Options of sbatch, read before sbatch is asked: a mistake is said where the job is submitted, in our own words.

Only what no release of Slurm takes is refused. Nothing is asked of Slurm here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from distrain.errors import UsageError
from distrain.schedulers.slurm.script import seconds_of

__all__ = ["check_options", "gives", "gpus_of", "nodes_of", "value_of"]

_NODES = re.compile(r"(\d+)([kKmM]?)(?:-(\d+)([kKmM]?)(?::\d+)?)?", re.ASCII)
_FACTOR = {"": 1, "k": 1024, "m": 1024**2}

_SHORTEST = {"array": "ar", "gpus-per-node": "gpus-per-n", "output": "ou", "partition": "part"}
"""How far sbatch takes an abbreviation of a long option, as getopt_long(3) does: as long as no other begins so."""

_ENDLESS = ("infinite", "unlimited", "0", "-1")
"""Time limits that stand for the partition's own."""

_FORMS = {
    "gpus_per_node": (r"(?:[^:\s]+:)?\d+(?:,[^:\s]+:\d+)*", "a number of GPUs, such as 8 or a100:8"),
    "cpus_per_task": (r"0*[1-9]\d*", "a whole number of at least 1"),
    "mem": (r"\d+[kKmMgGtT]?[bB]?", "a size, such as 64G"),
    "array": (r"\d+(?:-\d+(?::\d+)?)?(?:,\d+(?:-\d+(?::\d+)?)?)*(?:%\d+)?", "indices, such as 0-9, 1,3,5 or 0-99%4"),
}


def check_options(options: Mapping[str, str]) -> None:
    """Refuse values that sbatch cannot take.

    Args:
        options: Option of sbatch, as in `gpus_per_node`, to its value.

    Raises:
        UsageError: One of them.
    """
    for name, text in options.items():
        if not text.strip():
            raise UsageError(f"--{name.replace('_', '-')}: got {text!r}; give a value, or leave the option out.")
        form, what = _FORMS.get(name, ("", ""))
        if form and not re.fullmatch(form, text, re.ASCII):
            raise UsageError(f"--{name.replace('_', '-')}: got {text!r}; give {what}.")
    if "time" in options and options["time"].lower() not in _ENDLESS and seconds_of(options["time"]) is None:
        raise UsageError(
            f"--time: got {options['time']!r}; give minutes, hours:minutes:seconds, days-hours or "
            "days-hours:minutes:seconds, such as 90, 4:00:00 or 2-12."
        )
    if "nodes" in options:
        nodes_of(options["nodes"])


def nodes_of(text: str) -> tuple[int, int]:
    """Return the fewest and the most nodes.

    Args:
        text: The value of --nodes: `4`, `2-4`, or of newer releases `2,4` and `2-8:2`.

    Raises:
        UsageError: It is neither.
    """
    parts = [_NODES.fullmatch(part) for part in text.split(",")]
    sizes: list[int] = []
    for part in filter(None, parts):
        low = int(part[1]) * _FACTOR[part[2].lower()]
        high = low if part[3] is None else int(part[3]) * _FACTOR[part[4].lower()]
        sizes += [low, high] if 0 < low <= high else [0]
    if all(parts) and min(sizes) > 0:
        return min(sizes), max(sizes)
    raise UsageError(
        f"--nodes: got {text!r}; give a number of nodes of at least 1, or the fewest and the most, as 2-4."
    )


def gpus_of(text: str) -> int | None:
    """Return how many GPUs each node gets; None where the text does not tell.

    Args:
        text: The value of --gpus-per-node.
    """
    if not re.fullmatch(_FORMS["gpus_per_node"][0], text, re.ASCII):
        return None
    return sum(int(each.rpartition(":")[2]) for each in text.split(","))


def value_of(words: Sequence[str], long: str, short: str = "") -> str | None:
    """Return the value that words for sbatch give to an option, the last one's; None where it is not among them.

    Args:
        words: The words.
        long: The option's long name, without dashes.
        short: Its letter, "" without one.
    """
    value = None
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        if not gives(word, long, short):
            continue
        if word.startswith("--"):
            _, equals, text = word.partition("=")
            value = text if equals else after
        else:
            value = word[2:] or after
    return value


def gives(word: str, long: str, short: str = "") -> bool:
    """Return whether sbatch reads a word as this option, under its name, an abbreviation of that, or its letter.

    Args:
        word: The word.
        long: The option's long name, without dashes.
        short: Its letter, "" without one.
    """
    if word.startswith("--"):
        name = word[2:].partition("=")[0]
        return long.startswith(name) and name.startswith(_SHORTEST.get(long, long))
    return bool(short) and word.startswith(f"-{short}")
