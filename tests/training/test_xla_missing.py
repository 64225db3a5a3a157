import importlib.util

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import distrain
from distrain.errors import RuntimeStateError
from distrain.runtime import xla

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch_xla") is not None, reason="torch_xla is installed")


def parts():
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_without_torch_xla_it_says_what_to_install():
    message = r"In order to run on TPU, please install PyTorch XLA: `pip install distrain\[xla\]`"
    for device in ("xla", torch.device("xla", 0)):
        with pytest.raises(RuntimeError, match=message):
            distrain.create_supervised_trainer(*parts(), mse_loss, device=device)
        with pytest.raises(RuntimeError, match=message):
            distrain.create_supervised_evaluator(parts()[0], device=device)
        with pytest.raises(RuntimeStateError, match=message):
            distrain.init(device=device)
    with pytest.raises(ModuleNotFoundError, match=r"torch_xla cannot be imported, please install PyTorch XLA\."):
        distrain.supervised_training_step_tpu(*parts(), mse_loss)


def test_a_torch_xla_that_does_not_fit_torch_counts_as_missing(tmp_path, monkeypatch):
    (tmp_path / "torch_xla.py").write_text("raise ImportError('undefined symbol: _ZN5torch4lazy')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not xla.is_installed()
    assert not xla.is_in_use()
    with pytest.raises(RuntimeError, match="brings the torch_xla and the torch that fit each other"):
        distrain.create_supervised_trainer(*parts(), mse_loss, device="xla")
