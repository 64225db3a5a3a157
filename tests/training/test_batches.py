import dataclasses
import subprocess
import sys
from array import array
from collections import ChainMap, OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from types import SimpleNamespace

import pytest
import torch

from distrain.training import prepare_batch, to_device
from distrain.training.batches import num_samples

Point = namedtuple("Point", "a b")


@dataclasses.dataclass
class Pair:
    x: torch.Tensor
    name: str


def test_nests_keep_their_types_and_move():
    t = torch.ones(2)
    nest = {"a": [t, (t, "text", None, 3)], "b": Point(t, 1), "c": OrderedDict(d=t), "e": Pair(t, "n")}
    moved = to_device(nest, "meta")
    assert [type(moved[k]) for k in "abce"] == [list, Point, OrderedDict, Pair]
    tensors = [moved["a"][0], moved["a"][1][0], moved["b"].a, moved["c"]["d"], moved["e"].x]
    assert {each.device.type for each in tensors} == {"meta"}
    assert moved["a"][1][1:] == ("text", None, 3)
    assert moved["e"].name == "n"


@pytest.mark.parametrize("outer", [deque, UserList, lambda items: Point(*items, 0), lambda items: UserDict(a=items[0])])
@pytest.mark.parametrize("inner", [lambda t: deque([t]), lambda t: Pair(t, "n"), lambda t: Point(t, 0), lambda t: t])
def test_every_kind_of_nest_moves_inside_every_other(outer, inner):
    nest = outer([inner(torch.ones(2))])
    moved = to_device(nest, "meta")
    assert type(moved) is type(nest)
    held = next(iter(moved.values() if isinstance(moved, UserDict) else moved))
    if isinstance(held, deque):
        held = held[0]
    tensor = held if isinstance(held, torch.Tensor) else held[0] if isinstance(held, Point) else held.x
    assert tensor.device.type == "meta"


def test_sequences_that_cannot_be_made_anew_stay():
    assert to_device([range(3), array("f", [1.0])], "meta") == [range(3), array("f", [1.0])]


def test_an_object_that_moves_itself_does():
    class Own:
        def to(self, device):
            return device

    assert to_device((Own(), UserList([Own()])), "meta") == ("meta", ["meta"])


def test_what_is_there_already_is_not_copied():
    x, y = torch.ones(2), torch.zeros(2)
    assert prepare_batch((x, y))[0] is x
    assert prepare_batch([x, y], "cpu", True)[1] is y


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Has a field that `__init__` does not take, an argument that is no field, and work in `__post_init__`."""

    x: torch.Tensor
    seed: dataclasses.InitVar[int]
    mask: torch.Tensor = dataclasses.field(init=False)
    unset: torch.Tensor = dataclasses.field(init=False)

    def __post_init__(self, seed):
        object.__setattr__(self, "mask", torch.full((2,), seed))


def test_a_dataclass_keeps_what_its_init_does_not_take():
    value = Prepared(torch.ones(2), seed=3)
    object.__setattr__(value, "mask", torch.zeros(2))
    moved = to_device(value, "meta")
    assert (moved.x.device.type, moved.mask.device.type) == ("meta", "meta")
    assert value.mask.tolist() == [0, 0]
    assert not hasattr(moved, "unset")


class Labelled(list):
    def __init__(self, items, label):
        super().__init__(items)
        self.label = label


def test_a_nest_keeps_what_it_carries_beside_its_items():
    t = torch.ones(1)
    by_default = to_device(defaultdict(list, a=t), "meta")
    assert (type(by_default), by_default["a"].device.type, by_default["b"]) == (defaultdict, "meta", [])
    assert to_device(deque([t, t], maxlen=4), "meta").maxlen == 4
    labelled = to_device(Labelled([t], "kept"), "meta")
    assert (type(labelled), labelled.label, labelled[0].device.type) == (Labelled, "kept", "meta")
    assert to_device(ChainMap({"a": t}, {"b": t}), "meta")["b"].device.type == "meta"


@pytest.mark.parametrize("kind", [set, frozenset])
def test_sets_and_namespaces_move_too(kind):
    (moved,) = to_device(kind([torch.ones(1)]), "meta")
    assert moved.device.type == "meta"
    assert to_device(SimpleNamespace(x=torch.ones(1), n=1), "meta").x.device.type == "meta"


@pytest.mark.parametrize(
    "nest", [Pair(torch.ones(1), "n"), [torch.ones(1)], {"a": [Point(torch.ones(1), 0)]}, deque([1]), {1, 2}], ids=repr
)
def test_a_nest_of_which_nothing_moves_is_the_same_object(nest):
    assert to_device(nest, "cpu") is nest


def test_a_mapping_is_no_pair():
    with pytest.raises(TypeError, match=r"The batch is a dict with the keys \['x', 'y'\].*picks x and y"):
        prepare_batch({"x": torch.ones(1), "y": torch.ones(1)})


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (SimpleNamespace(x=torch.ones(7)), 7),
        (torch.ones(3, 2), 3),
        (("id", torch.ones(4)), 4),
        ({"a": [torch.ones(5)]}, 5),
        (Pair(torch.ones(6), "n"), 6),
        ((torch.tensor(1.0), torch.ones(2)), 2),
    ],
)
def test_samples_are_counted(batch, expected):
    assert num_samples(batch) == expected


def test_a_batch_without_a_tensor_cannot_be_counted():
    with pytest.raises(TypeError, match="there is no tensor in it"):
        num_samples({"a": "text"})


@pytest.mark.slow
def test_importing_the_rooms_brings_nothing_heavy_beside_torch():
    code = """
import sys, torch
before = set(sys.modules)
import distrain.runtime, distrain.training, distrain.observe
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"distrain", "torch", "tqdm"}
