"""Options that speak of the same thing under several names: the one from the stronger source counts.

That a flag beats a variable, and a variable a profile, is settled for each option by itself in `sources`. Here it is
settled between them, so that a profile's `standalone = true` does not beat the flag `--nnodes 2`. Between equals
torchrun's order holds. What loses is named.
"""

from __future__ import annotations

from collections.abc import Mapping

from distrain.plan.sources import Given, is_stronger

__all__ = ["ANY_PORT_HERE", "without_overruled"]

ANY_PORT_HERE = ("localhost:0", "127.0.0.1:0")
"""How torchrun's users say that a single node may meet wherever it likes."""


def without_overruled(found: Mapping[str, Given]) -> tuple[dict[str, Given], list[str]]:
    """Return what was given without the options that another one overrules, and a warning for each of those.

    Args:
        found: What was given, by option.
    """
    left, warnings = dict(found), []

    def drop(loser: str, winner: Given, why: str) -> None:
        warnings.append(f"{left[loser].where} ({left[loser].text}) is ignored: {winner.where} {why}")
        del left[loser]

    several = [name for name in ("nnodes", "rdzv_endpoint", "master_addr") if _means_several(name, found)]
    alone = found.get("standalone")
    if alone is not None:
        winner = next((found[name] for name in several if is_stronger(found[name], alone)), None)
        if winner is not None:
            warnings.append(f"{alone.where} is ignored: {winner.where} ({winner.text}) is stronger")
            del left["standalone"]
        else:
            for name in several:
                drop(name, alone, "means this node alone")
    local, ranks = found.get("local_ranks_filter"), found.get("log_ranks")
    if local is not None and ranks is not None and is_stronger(local, ranks):
        if ranks.text == "all":
            del left["log_ranks"]
        else:
            drop("log_ranks", local, "is stronger")
    return left, warnings


def _means_several(name: str, found: Mapping[str, Given]) -> bool:
    meaning_one = {"nnodes": ("1", "1:1"), "rdzv_endpoint": ANY_PORT_HERE}
    return name in found and found[name].text not in meaning_one.get(name, ())
