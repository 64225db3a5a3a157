from unittest.mock import Mock

import pytest
from torch import nn

from distrain.training.modes import into_training


class Frozen(nn.Sequential):
    """Keeps its batch norm in evaluation mode, as people write it."""

    calls = 0

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        self.calls += 1
        return self


def model():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout()))


def modes(model):
    return [module.training for module in model.modules()]


def test_it_is_what_train_does():
    each = model().eval()
    into = into_training(each)
    into()
    assert all(modes(each))
    each.eval()
    into()
    assert all(modes(each))


@pytest.mark.parametrize("path", ["0", "1", "2", "2.0"])
def test_a_part_put_into_evaluation_mode_comes_back(path):
    each = model()
    into = into_training(each)
    into()
    each.get_submodule(path).eval()
    into()
    assert all(modes(each))


def test_a_model_with_a_train_of_its_own_is_asked_each_time():
    each = Frozen(nn.Linear(2, 2), nn.BatchNorm1d(2))
    into = into_training(each)
    for _ in range(3):
        into()
    assert each.calls == 3
    assert modes(each) == [True, True, False]
    outer = nn.Sequential(each)
    into = into_training(outer)
    for _ in range(3):
        into()
    assert each.calls == 6


def test_a_train_that_was_replaced_is_called_each_time():
    each = model()
    each.train = Mock(wraps=each.train)
    into = into_training(each)
    for _ in range(3):
        into()
    assert each.train.call_count == 3


def test_what_was_added_is_seen_after_an_evaluation():
    each = model()
    into = into_training(each)
    into()
    each.append(nn.Dropout().eval())
    each.eval()
    into()
    assert all(modes(each))
    each[3].eval()
    into()
    assert all(modes(each))


def test_something_that_only_has_train():
    each = Mock(spec=["train"])
    into = into_training(each)
    into()
    into()
    assert each.train.call_count == 2
