"""Where our trainer differs from ignite's on purpose: one test for each difference, which shows both."""

import inspect
import sys
import types

import pytest
import torch
from torch.nn.functional import mse_loss

import distrain
from tests.training.twins import MODELS, Pair, Record, Twin, batches, require_same


def twins(ignite, **what):
    return Twin(distrain, **what), Twin(ignite, **what)


def gradients(pairs, num=1):
    """Return the gradients of the mean of the pairs' losses, times `len(pairs) / num`, for the model as it begins."""
    torch.manual_seed(0)
    model = MODELS["mlp"]()
    for x, y in pairs:
        (mse_loss(model(x), y) / num).backward()
    return [p.grad for p in model.parameters()]


def held(twin):
    return [p.grad for p in twin.model.parameters()]


def are_close(ours, theirs):
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(ours, theirs, strict=True))


def test_the_positional_order_is_the_specifications(ignite):
    """The specification is older than ignite's `model_transform`, which came to stand in the middle."""
    ours, theirs = (inspect.signature(api.create_supervised_trainer).parameters for api in (distrain, ignite))
    positional = [name for name, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [name for name in theirs if name not in ("model_transform", "model_fn")]
    assert list(theirs).index("model_transform") == positional.index("output_transform")
    assert {ours[name].kind for name in ("model_transform", "model_fn")} == {inspect.Parameter.KEYWORD_ONLY}


def test_the_output_is_the_loss_itself(ignite):
    """ignite gives `loss / N * N`: another tensor, and for N = 3 at times another number."""
    outcomes = []
    for api in (distrain, ignite):
        losses, outputs = [], []
        model = MODELS["linear"]()
        trainer = api.create_supervised_trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            lambda y_pred, y, losses=losses: losses.append(mse_loss(y_pred, y)) or losses[-1],
            output_transform=lambda x, y, y_pred, loss, outputs=outputs: outputs.append(loss),
            gradient_accumulation_steps=3,
        )
        trainer.run(batches(30))
        outcomes.append([output is loss for output, loss in zip(outputs, losses, strict=True)])
        assert torch.allclose(torch.stack(outputs), torch.stack(losses), rtol=1e-6, atol=0)
    assert all(outcomes[0])
    assert not any(outcomes[1])


@pytest.mark.parametrize("create", ["create_supervised_trainer", "create_supervised_evaluator"])
def test_an_unknown_mode_is_refused(ignite, create):
    """ignite trains on in the parameters' own precision."""

    def call(api):
        model = MODELS["mlp"]()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        arguments = (model, optimizer, mse_loss) if create == "create_supervised_trainer" else (model,)
        return getattr(api, create)(*arguments, amp_mode="bf16")

    with pytest.raises(ValueError, match="amp_mode is 'bf16'; it must be None or one of 'amp', 'apex'"):
        call(distrain)
    assert call(ignite).run(batches(2)).iteration == 2


def test_fake_a_scaler_with_apex_is_ignored_with_a_warning(ignite, monkeypatch):
    """So the specification has it; ignite refuses it."""
    apex = types.ModuleType("apex")
    apex.amp = types.ModuleType("apex.amp")
    monkeypatch.setitem(sys.modules, "apex", apex)
    monkeypatch.setitem(sys.modules, "apex.amp", apex.amp)
    options = {"amp_mode": "apex", "scaler": True}
    with pytest.warns(UserWarning, match="scaler is ignored with amp_mode='apex'"):
        ours = Twin(distrain, **options)
    assert not hasattr(ours.trainer.state, "scaler")
    with pytest.raises(ValueError, match="scaler argument is True, but amp_mode is apex"):
        Twin(ignite, **options)


def test_a_scaler_of_ones_own_is_in_the_state_too(ignite):
    scaler = torch.amp.GradScaler("cpu")
    ours, theirs = twins(ignite, amp_mode="amp", scaler=scaler)
    assert ours.trainer.state.scaler is scaler
    assert not hasattr(theirs.trainer.state, "scaler")


def test_amp_on_a_cpu_computes_in_mixed_precision(ignite):
    """ignite enters the region of CUDA, which torch then disables with a warning."""
    ours, theirs = twins(ignite, amp_mode="amp", output_transform=lambda x, y, y_pred, loss: y_pred.dtype)
    assert ours.trainer.run(batches(1)).output == torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="CUDA is not available"):
            theirs.trainer.run(batches(1))
        assert theirs.trainer.state.output == torch.float32


@pytest.mark.parametrize("number", [2.5, 2.0, True], ids=str)
def test_the_number_of_micro_batches_is_a_whole_one(ignite, number):
    """A window of 2.5 iterations ends with every fifth, and ignite divides by 2.5."""
    with pytest.raises(TypeError, match=f"gradient_accumulation_steps is {number}; it must be a whole number"):
        Twin(distrain, gradient_accumulation_steps=number)
    assert Twin(ignite, gradient_accumulation_steps=number).trainer.run(batches(2)).iteration == 2


def test_a_window_resumed_without_its_first_gradients_steps_with_the_mean_of_the_others(ignite):
    """ignite divides by N, however many it has."""
    data = batches(6)
    seen = []
    for twin in twins(ignite, gradient_accumulation_steps=4):
        twin.trainer.load_state_dict({"iteration": 6, "epoch_length": 6, "max_epochs": 2})
        before = twin.learnt()["weights"]
        twin.on("ITERATION_COMPLETED", once=8)(lambda trainer: trainer.terminate())
        twin.trainer.run(data)
        assert not torch.equal(before["0.weight"], twin.model[0].weight)
        seen.append(held(twin))
    assert are_close(seen[0], gradients(data[:2], num=2))
    assert are_close(seen[1], gradients(data[:2], num=4))


def test_a_window_does_not_go_on_over_an_iteration_that_was_left_out(ignite):
    """Here the second of three has no backward pass; ignite goes on with the first, and divides two by three."""
    data = batches(5)
    seen = []
    for twin in twins(ignite, gradient_accumulation_steps=3):
        twin.on("ITERATION_STARTED", once=2)(lambda trainer: trainer.terminate_epoch())
        twin.on("ITERATION_COMPLETED", once=3)(lambda trainer: trainer.terminate())
        twin.trainer.run(data, max_epochs=2)
        seen.append(held(twin))
    assert are_close(seen[0], gradients(data[:1]))
    assert are_close(seen[1], gradients([data[0], data[0]], num=3))


def test_a_jump_of_the_iteration_begins_a_window(ignite):
    data = batches(6)
    seen = []
    for twin in twins(ignite, gradient_accumulation_steps=3):

        @twin.on("ITERATION_COMPLETED", once=1)
        def jump(trainer):
            trainer.state.iteration += 3

        @twin.on("ITERATION_COMPLETED", once=6)
        def stop(trainer):
            trainer.terminate()

        twin.trainer.run(data)
        seen.append(held(twin))
    assert are_close(seen[0], gradients(data[1:3], num=2))
    assert are_close(seen[1], gradients(data[:3], num=3))


@pytest.mark.parametrize(
    "nest",
    [Record, lambda x: [x, 3], lambda x: {"x": x, "no": None}, lambda x: Pair(x, Record(x))],
    ids=["dataclass", "number", "None", "dataclass in a named tuple"],
)
def test_batches_may_hold_more_than_ignites(ignite, nest):
    batch = (nest(torch.ones(2)), torch.ones(2))
    x, y = distrain.prepare_batch(batch, "meta")
    first = x["x"] if isinstance(x, dict) else x[0] if isinstance(x, list) else x.first
    assert first.is_meta
    assert y.is_meta
    assert type(x) is type(batch[0])
    with pytest.raises(TypeError, match="x must contain"):
        ignite._prepare_batch(batch, "meta")


def test_what_stays_where_it_is_is_not_built_anew(ignite):
    x = {"a": torch.ones(2)}
    assert distrain.prepare_batch((x, x["a"]))[0] is x
    theirs = ignite._prepare_batch((x, x["a"]))[0]
    assert theirs is not x
    require_same(x, theirs)
