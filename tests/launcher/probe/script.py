"""The probe as a plain script: `script.py FOLDER [SECTION,…]` writes FOLDER/<rank>.json."""

INITIAL_NAMES = sorted(globals())

import sys

HAS_CALLER = sys._getframe().f_back is not None

import facts

import dataclasses
import enum

import torch


@dataclasses.dataclass
class Thing:
    number: int


class Colour(enum.Enum):
    RED = 1


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x)


def measure(x):
    return x + 1


if __name__ == "__main__":
    facts.write(sys.argv[1], facts.collect(globals(), sys.argv[2].split(",") if len(sys.argv) > 2 else None))
