"""What the package's probe pickles: the same as script.py defines in `__main__`."""

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
