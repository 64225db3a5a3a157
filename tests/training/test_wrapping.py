import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

import distrain
from distrain.training.wrapping import bare


def test_alone_nothing_is_wrapped():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert distrain.prepare(model, optimizer, scheduler) == (model, optimizer, scheduler)
    assert distrain.prepare(model) is model


@pytest.mark.parametrize(
    ("objects", "error", "message"),
    [
        ([], TypeError, "nothing to prepare"),
        ([nn.DataParallel(nn.Linear(2, 1))], ValueError, "wrapped in DataParallel already"),
        (
            [torch.compile(nn.DataParallel(nn.Linear(2, 1)), backend="eager")],
            ValueError,
            "wrapped in DataParallel already",
        ),
        ([DataLoader([1])], TypeError, "distrain.dataloader"),
        (["model"], TypeError, "not str"),
        ([nn.Linear(2, 1, device="meta")], ValueError, "no values yet"),
        (
            [nn.Linear(2, 1), torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=1)],
            ValueError,
            "2 of the 2 parameters that SGD updates belong to none",
        ),
        (
            [nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, device="meta"))],
            ValueError,
            "spread over cpu, meta",
        ),
    ],
)
def test_misuse_is_refused(objects, error, message):
    with pytest.raises(error, match=message):
        distrain.prepare(*objects)


@pytest.mark.parametrize("option", [{"opt_level": "O2"}, {"amp_options": {"loss_scale": 2}}])
def test_what_is_apexs_alone_is_ignored_with_a_warning(option):
    (name,) = option
    with pytest.warns(UserWarning, match=f"{name} is ignored: it is apex's, and amp_mode is 'amp'"):
        distrain.prepare(nn.Linear(2, 1), amp_mode="amp", **option)


def test_an_average_of_a_wrapped_model_is_saved_without_the_wrappers():
    def net(wrap):
        return nn.Sequential(nn.Linear(2, 2), wrap(nn.Sequential(nn.Linear(2, 1), wrap(nn.BatchNorm1d(1)))))

    wrapped, plain = AveragedModel(net(nn.DataParallel)), AveragedModel(net(lambda module: module))
    assert bare(plain) is plain
    state = bare(wrapped).state_dict()
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
    again = AveragedModel(net(nn.DataParallel))
    bare(again).load_state_dict(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(wrapped.parameters(), again.parameters(), strict=True))
    assert bare(nn.DataParallel(plain)) is plain
