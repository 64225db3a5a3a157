"""Slurm's short forms: `gpu[01-03,7],login` for hosts, `2(x3),1` for the tasks on each."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["expand_counts", "expand_hosts"]


def expand_hosts(text: str) -> list[str]:
    """Return the hosts: `gpu[01-03,7],login` is gpu01, gpu02, gpu03, gpu7, login.

    Args:
        text: The list, also with several brackets in a name.

    Raises:
        ValueError: It is none.
    """
    return [host for part in _split(text) for host in _expand(part)]


def expand_counts(text: str) -> list[int]:
    """Return the number of tasks on each host: `2(x3),1` is 2, 2, 2, 1.

    Args:
        text: The list.

    Raises:
        ValueError: It is none.
    """
    counts: list[int] = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise ValueError(part)
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _split(text: str) -> Iterator[str]:
    """Yield what stands between the commas outside brackets."""
    depth, word = 0, ""
    for sign in text:
        depth += (sign == "[") - (sign == "]")
        if sign == "," and depth == 0:
            yield word
            word = ""
        else:
            word += sign
    if word:
        yield word


def _expand(part: str) -> Iterator[str]:
    found = re.fullmatch(r"([^\[\]]*)(?:\[([^\[\]]*)\](.*))?", part)
    if found is None:
        raise ValueError(part)
    before, inside, after = found.groups()
    if inside is None:
        yield before
        return
    for piece in inside.split(","):
        numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", piece)
        if numbers is None or int(numbers[1]) > int(numbers[2] or numbers[1]):
            raise ValueError(part)
        first, last = numbers[1], numbers[2] or numbers[1]
        for number in range(int(first), int(last) + 1):
            for rest in _expand(after):
                yield f"{before}{number:0{len(first)}d}{rest}"
