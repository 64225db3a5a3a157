"""The trainer on an XLA device, with the real torch_xla. One process has one device here, so a reduction over several
is seen with a stand-in, in the one test whose name says fake.
"""

import collections
import contextlib
import importlib
import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

import distrain
from distrain import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from distrain.errors import NonFiniteLossError, RuntimeStateError
from distrain.runtime import WorkerEnvironment
from distrain.runtime.devices import choose_device
from distrain.training import detached_loss
from tests.support.ranks import run_alone, run_ranks
from tests.training import xla_replicas

pytestmark = [pytest.mark.xla, pytest.mark.usefixtures("xla_device")]

BF16 = {"amp_mode": "amp", "amp_dtype": torch.bfloat16}


def parts(device="xla", *, make=torch.optim.SGD, dropout=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)).to(device)
    options = {"lr": 0.05, "momentum": 0.9} if make is torch.optim.SGD else {"lr": 0.05}
    return model, make(model.parameters(), **options)


def batches(num=6, *, bad=(), size=4):
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(size, 3, generator=generator), torch.randn(size, 1, generator=generator)) for _ in range(num)]
    for iteration in bad:
        data[iteration - 1][1].fill_(math.nan)
    return data


def weights(model):
    return [parameter.detach().cpu() for parameter in model.parameters()]


def train(device="xla", *, data=None, epochs=1, make=torch.optim.SGD, attach=lambda trainer: None, **options):
    """Train from the same start; return the losses, the norms of the gradients and the weights."""
    model, optimizer = parts(device, make=make)
    trainer = create_supervised_trainer(model, optimizer, mse_loss, device=device, **options)
    losses, norms = [], []

    @trainer.on(Events.ITERATION_COMPLETED)
    def follow():
        losses.append(trainer.state.output)
        norms.append(getattr(trainer.state, "grad_norm", None))

    attach(trainer)
    trainer.run(batches() if data is None else data, max_epochs=epochs)
    return losses, [norm.item() for norm in norms if norm is not None], weights(model)


def count(metric):
    """Return how often something has happened in torch_xla so far."""
    import torch_xla.core.xla_model as xm
    import torch_xla.debug.metrics as met

    xm.wait_device_ops()
    data = met.metric_data(metric)
    return data[0] if data else 0


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of torch_xla's functions, which do what they always do."""
    import torch_xla
    import torch_xla.core.xla_model as xm

    counter = collections.Counter()

    def watch(module, name):
        real = getattr(module, name)

        def counted(*args, **kwargs):
            counter[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    watch(torch_xla, "sync")
    for name in ("optimizer_step", "reduce_gradients", "all_reduce"):
        watch(xm, name)
    return counter


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"make": torch.optim.AdamW},
        {"gradient_accumulation_steps": 3},
        {"gradient_accumulation_steps": 3, "set_to_none": False},
        {"gradient_accumulation_steps": 3, "max_grad_norm": 0.05},
        {"max_grad_norm": math.inf, "nonfinite_loss": "skip"},
        {"gradient_accumulation_steps": 4, "accumulation_tail": "carry", "epochs": 3},
        {"gradient_accumulation_steps": 4, "accumulation_tail": "flush", "epochs": 3},
        {"gradient_accumulation_steps": 4, "accumulation_tail": "drop", "epochs": 3},
    ],
    ids=lambda options: "-".join(map(str, options)) or "plain",
)
def test_it_trains_as_on_the_cpu(options):
    expected_losses, expected_norms, expected = train("cpu", **options)
    losses, norms, found = train("xla", **options)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert norms == pytest.approx(expected_norms, rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tail", ["flush", "drop"])
def test_a_tail_whose_end_nobody_knew_is_treated_as_on_the_cpu(tail, calls):
    def cut_epochs(trainer):
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=[5, 9]), trainer.terminate_epoch)

    options = {"gradient_accumulation_steps": 3, "accumulation_tail": tail, "epochs": 2, "attach": cut_epochs}
    expected_losses, _, expected = train("cpu", **options)
    losses, _, found = train("xla", **options)
    assert len(losses) == 9
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert calls["optimizer_step"] == {"flush": 4, "drop": 2}[tail]
    assert calls["sync"] == {"flush": 9 + 2, "drop": 9}[tail]


@pytest.mark.parametrize("device", ["xla", "xla:0", torch.device("xla"), None])
def test_batches_go_to_the_device_and_the_model_stays(device, xla_device):
    model, optimizer = parts()
    trainer = create_supervised_trainer(
        model, optimizer, mse_loss, device=device, output_transform=lambda x, y, y_pred, loss: (x, y, y_pred, loss)
    )
    data = batches(1) if device is not None else [(x.to("xla"), y.to("xla")) for x, y in batches(1)]
    assert {each.device for each in trainer.run(data).output} == {xla_device}
    assert {parameter.device for parameter in model.parameters()} == {xla_device}


def test_what_the_user_gives_is_called_as_on_any_device(xla_device):
    seen = []

    def prepare_batch(batch, device, non_blocking):
        seen.append((device, non_blocking))
        return distrain.prepare_batch(batch["pair"], device, non_blocking)

    model, optimizer = parts()
    trainer = create_supervised_trainer(
        model,
        optimizer,
        mse_loss,
        "xla",
        True,
        prepare_batch,
        lambda x, y, y_pred, loss: (y_pred.shape, loss.device),
        model_fn=lambda model, x: {"out": model(x)},
        model_transform=lambda output: output["out"],
    )
    assert trainer.run([{"pair": batches(1)[0]}]).output == ((4, 1), xla_device)
    assert seen == [("xla", True)]


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_the_optimizer_steps_and_reduces_once_a_window(max_grad_norm, calls):
    model, optimizer = parts()
    trainer = create_supervised_trainer(
        model, optimizer, mse_loss, "xla", gradient_accumulation_steps=3, max_grad_norm=max_grad_norm
    )
    reduced, stepped = [], []
    optimizer.register_step_post_hook(lambda *_: stepped.append(trainer.state.iteration))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: reduced.append(calls["reduce_gradients"]))
    trainer.run(batches(8))
    assert stepped == [3, 6]
    assert reduced == [0, 0, 1, 1, 1, 2, 2, 2]
    # Clipping comes between the two halves of xm.optimizer_step.
    assert calls["optimizer_step"] == (2 if max_grad_norm is None else 0)
    assert calls["sync"] == 8


def test_the_tpu_step_alone_makes_an_engine(calls):
    model, optimizer = parts()
    step = distrain.supervised_training_step_tpu(model, optimizer, mse_loss, "xla", gradient_accumulation_steps=2)
    assert isinstance(Engine(step).run(batches(4)).output, float)
    assert calls["optimizer_step"] == 2


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ({}, 1),
        ({"output_transform": detached_loss}, 1),
        ({"gradient_accumulation_steps": 3, "max_grad_norm": 1.0}, 1),
        ({"gradient_accumulation_steps": 3, "set_to_none": False}, 1),
        ({"gradient_accumulation_steps": 4, "accumulation_tail": "flush"}, 1),
        ({"gradient_accumulation_steps": 4, "accumulation_tail": "drop"}, 1),
        (BF16, 1),
        ({"nonfinite_loss": "skip"}, 2),
    ],
    ids=lambda options: "-".join(map(str, options)) or "plain" if isinstance(options, dict) else "",
)
def test_a_micro_batch_is_one_graph_and_compiled_in_the_first_windows_only(options, runs):
    model, optimizer = parts(make=torch.optim.AdamW)
    (group,) = optimizer.param_groups
    trainer = create_supervised_trainer(model, optimizer, mse_loss, "xla", **options)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: group.update(lr=group["lr"] * 0.9))
    trainer.run(batches(6), max_epochs=2)
    compiled, executed = count("CompileTime"), count("ExecuteTime")
    trainer.run(batches(6), max_epochs=5)
    assert trainer.state.iteration == 30
    assert count("CompileTime") == compiled
    assert count("ExecuteTime") == executed + 18 * runs


def test_accumulation_with_a_policy_compiles_in_the_first_window_only():
    model, _ = parts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)  # without momentum, which begins with the second window
    trainer = create_supervised_trainer(
        model, optimizer, mse_loss, "xla", gradient_accumulation_steps=3, nonfinite_loss="skip"
    )
    compiled = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: compiled.append(count("CompileTime")))
    trainer.run(batches(9, size=5))  # a size of its own: what another test has compiled is not compiled again
    assert compiled[0] < compiled[2]
    assert set(compiled[2:]) == {compiled[2]}


def test_the_losses_of_all_iterations_add_up_without_compiling_anew():
    model, optimizer = parts()
    trainer = create_supervised_trainer(model, optimizer, mse_loss, "xla", output_transform=detached_loss)
    distrain.LossAggregator(every=3).attach(trainer)
    compiled = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: compiled.append(count("CompileTime")))
    trainer.run(batches(6), max_epochs=4)
    assert len(set(compiled[1:])) == 1
    losses, _, _ = train("cpu", epochs=4)
    assert trainer.state.metrics["loss"] == pytest.approx(sum(losses[-3:]) / 3, rel=1e-5)
    assert trainer.state.metrics["epoch_loss"] == pytest.approx(sum(losses[-6:]) / 6, rel=1e-5)


def test_the_default_output_is_a_number_and_the_detached_one_stays_on_the_device(xla_device):
    assert {type(loss) for loss in train()[0]} == {float}
    read = count("TransferFromDeviceTime")
    model, optimizer = parts()
    trainer = create_supervised_trainer(model, optimizer, mse_loss, "xla", output_transform=detached_loss)
    output = trainer.run(batches()).output
    assert count("TransferFromDeviceTime") == read
    assert (output.device, output.shape, output.requires_grad) == (xla_device, (), False)


def test_skip_leaves_out_the_step_of_a_window_with_a_bad_loss(caplog):
    model, optimizer = parts()
    trainer = create_supervised_trainer(
        model, optimizer, mse_loss, "xla", gradient_accumulation_steps=2, nonfinite_loss="skip"
    )
    stepped = []
    optimizer.register_step_post_hook(lambda *_: stepped.append(trainer.state.iteration))
    trainer.run(batches(8, bad=[3, 8]))
    assert stepped == [2, 6]
    assert all(each.isfinite().all() for each in weights(model))
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "The loss of iteration 3 is not finite. The optimizer's step of iteration 4 is left out.",
        "The loss of iteration 8 is not finite. The optimizer's step of iteration 8 is left out.",
    ]


def test_raise_raises_before_the_step():
    model, optimizer = parts()
    trainer = create_supervised_trainer(model, optimizer, mse_loss, "xla", nonfinite_loss="raise")
    before = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: before.extend(weights(model)))
    with pytest.raises(NonFiniteLossError, match="The loss of iteration 3 is not finite"):
        trainer.run(batches(4, bad=[3]))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_asking_whether_to_step_leaves_nothing_to_compute_twice():
    import torch_xla

    model, optimizer = parts()
    trainer = create_supervised_trainer(model, optimizer, mse_loss, "xla", nonfinite_loss="skip")
    recorded = []

    @optimizer.register_step_pre_hook
    def look(*_):
        gradients = [parameter.grad for parameter in model.parameters()]
        recorded.append(torch_xla._XLAC._get_xla_tensors_text(gradients))

    trainer.run(batches(2))
    assert len(recorded) == 2
    assert all("device_data" in text and "mm" not in text for text in recorded)


def test_amp_computes_in_bfloat16_and_keeps_the_weights():
    model, optimizer = parts()
    trainer = create_supervised_trainer(
        model,
        optimizer,
        mse_loss,
        "xla",
        output_transform=lambda x, y, y_pred, loss: (y_pred.dtype, loss.dtype),
        gradient_accumulation_steps=2,
        **BF16,
    )
    assert trainer.run(batches(4)).output == (torch.bfloat16, torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    losses, _, _ = train("xla", **BF16)
    exact, _, _ = train("xla")
    assert losses != exact
    assert losses == pytest.approx(exact, rel=0.02)
    assert train("xla", amp_mode="amp", amp_dtype="bfloat16")[0] == losses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amp_mode": "amp"}, "amp_mode cannot be used with xla device.*amp_dtype=torch.bfloat16"),
        ({"amp_mode": "amp", "amp_dtype": torch.float16}, "amp_mode cannot be used with xla device"),
        ({"amp_mode": "apex"}, "amp_mode cannot be used with xla device"),
        ({"scaler": True}, "scaler argument is True, but amp_mode is None"),
        ({**BF16, "scaler": True}, "scaler argument is True, but bfloat16, which XLA computes in, needs none"),
    ],
)
def test_mixed_precision_that_xla_has_not_is_refused(options, message):
    for device in ("xla", None):
        with pytest.raises(ValueError, match=message):
            create_supervised_trainer(*parts(), mse_loss, device, **options)
    if "scaler" not in options:
        with pytest.raises(ValueError, match=message):
            create_supervised_evaluator(parts()[0], device="xla", **options)


@pytest.mark.parametrize("options", [{}, BF16], ids=["float32", "bfloat16"])
def test_the_evaluator_evaluates_one_graph_a_batch(options, calls, xla_device):
    def attach(engine, name):
        total = torch.zeros((), device=xla_device)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: total.add_(mse_loss(*engine.state.output)))
        engine.add_event_handler(Events.COMPLETED, lambda: engine.state.metrics.update({name: total.item()}))

    metric = type("Metric", (), {"attach": staticmethod(attach)})
    model, _ = parts(dropout=0.9)
    evaluator = create_supervised_evaluator(model, {"loss": metric}, "xla", **options)
    compiled = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: compiled.append(count("CompileTime")))
    data = batches(8)
    state = evaluator.run(data)
    y_pred, y = state.output
    assert (y_pred.device, y.device, y_pred.requires_grad) == (xla_device, xla_device, False)
    assert y_pred.dtype == (torch.bfloat16 if options else torch.float32)
    assert not model.training
    assert calls["sync"] == 8
    assert len(set(compiled[2:])) == 1
    reference = model.cpu()
    with torch.no_grad():
        expected = sum(mse_loss(reference(x), y).item() for x, y in data)
    assert state.metrics["loss"] == pytest.approx(expected, rel=0.02 if options else 1e-5)


def test_the_evaluation_steps_alone_make_engines(calls):
    model, _ = parts()
    step = distrain.supervised_evaluation_step(model, "xla")
    assert Engine(step).run(batches(2)).output[0].dtype == torch.float32
    step = distrain.supervised_evaluation_step_amp(model, "xla", amp_dtype=torch.bfloat16)
    assert Engine(step).run(batches(2)).output[0].dtype == torch.bfloat16
    assert calls["sync"] == 4


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}, {"accumulation_tail": "flush"}], ids=str)
def test_a_ddp_model_is_reduced_by_ddp_alone(options, calls):
    expected_losses, _, expected = train("cpu", data=batches(8), gradient_accumulation_steps=3, **options)
    flush = "accumulation_tail" in options
    windows = [3, 6, 8] if flush else [3, 6]
    with distrain.init(device="xla"):
        importlib.import_module("torch_xla.distributed.xla_backend")  # gloo takes no XLA tensor
        group = dist.new_group(backend="xla")
        ddp = DistributedDataParallel(parts()[0], process_group=group)
        calls.clear()
        for iteration, (x, y) in enumerate(batches(8), 1):
            with contextlib.nullcontext() if iteration in windows else ddp.no_sync():
                mse_loss(ddp(x.to("xla")), y.to("xla")).backward()
        reductions = calls["all_reduce"]
        model, _ = parts()
        ddp = DistributedDataParallel(model, process_group=group)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)
        stepped, losses = [], []
        trainer = create_supervised_trainer(ddp, optimizer, mse_loss, "xla", gradient_accumulation_steps=3, **options)
        optimizer.register_step_post_hook(lambda *_: stepped.append(trainer.state.iteration))
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(trainer.state.output))
        calls.clear()
        trainer.run(batches(8))
        found = weights(model)
    assert stepped == windows
    assert (calls["optimizer_step"], calls["reduce_gradients"]) == (0, 0)
    # DDP's own, which its process group asks for. At the end of an epoch the ranks say what is left to flush.
    assert calls["all_reduce"] == reductions + flush
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_several_processes_are_not_taken_for_one():
    environment = WorkerEnvironment(launched=True, rank=0, world_size=2, local_rank=0, local_world_size=2)
    with pytest.raises(RuntimeStateError, match="started 2 processes and torch_xla reduces over 1"):
        choose_device("xla", environment)


def test_a_world_of_one_has_the_xla_device_seeded_and_prepares_nothing(xla_device):
    drawn = []
    for _ in range(2):
        with distrain.init(device="xla", seed=7) as world:
            model, optimizer = parts()
            assert distrain.prepare(model, optimizer) == (model, optimizer)
            drawn.append(torch.rand(4, device=world.device).cpu())
            world.barrier()
            assert (world.device, world.world_size) == (xla_device, 1)
    assert torch.equal(*drawn)


class StopError(Exception):
    pass


def run_with_checkpoints(folder, *, stop_at=None, seed=0, **options):
    model, optimizer = parts(make=torch.optim.AdamW, dropout=0.5)
    distrain.runtime.seed_everything(seed)
    x = torch.arange(60.0).reshape(20, 3) / 60
    loader = distrain.dataloader(TensorDataset(x, x.sum(1, keepdim=True)), 4, shuffle=True, seed=3)
    trainer = create_supervised_trainer(model, optimizer, mse_loss, "xla", **options)
    checkpointer = distrain.Checkpointer(every=2, directory=folder)
    checkpointer.attach(trainer, model=model, optimizer=optimizer, loader=loader)
    losses = {}

    @trainer.on(Events.ITERATION_COMPLETED)
    def follow():
        losses[trainer.state.iteration] = trainer.state.output
        if trainer.state.iteration == stop_at:
            raise StopError

    if stop_at:
        with pytest.raises(StopError):
            trainer.run(loader, max_epochs=3)
    else:
        trainer.run(loader, max_epochs=3)
    return losses, weights(model), trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"gradient_accumulation_steps": 3, "accumulation_tail": "flush", "max_grad_norm": 0.1},
        {"gradient_accumulation_steps": 3, "nonfinite_loss": "skip", **BF16},
    ],
    ids=["plain", "accumulation", "flush", "bfloat16"],
)
@pytest.mark.parametrize("stop_at", [3, 9])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(tmp_path, stop_at, options):
    expected, whole, _ = run_with_checkpoints(tmp_path / "whole", **options)
    before, _, _ = run_with_checkpoints(tmp_path / "cut", stop_at=stop_at, **options)
    after, found, trainer = run_with_checkpoints(tmp_path / "cut", seed=9, **options)
    saved = stop_at - 1
    assert list(after) == list(range(saved + 1, 16))
    assert {**before, **after} == expected
    assert all(torch.equal(a, b) for a, b in zip(whole, found, strict=True))
    assert trainer.state.iteration == 15


def test_a_checkpoint_is_read_without_torch_xla(tmp_path):
    run_with_checkpoints(tmp_path, gradient_accumulation_steps=4)
    program = """
        import sys, torch
        content = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
        assert content["windows"][0]["held"] == 3
        assert {each.device.type for each in content["objects"]["model"].values()} == {"cpu"}
        assert "torch_xla" not in sys.modules
    """
    run_alone(tmp_path, program, [str(tmp_path / "step-00000015" / "state.pt")]).check()


def test_a_deterministic_trainer_draws_the_same_also_when_resumed():
    def run(*, epochs, state=None, seed=0):
        model, optimizer = parts(dropout=0.5)
        distrain.runtime.seed_everything(seed)
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        trainer = create_supervised_trainer(model, optimizer, mse_loss, "xla", deterministic=True)
        if state is not None:
            trainer.load_state_dict(state["trainer"])
        losses = []
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(trainer.state.output))
        trainer.run(batches(4), max_epochs=epochs)
        state = {
            "model": {name: each.cpu() for name, each in model.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "trainer": trainer.state_dict(),
        }
        return losses, state

    expected, _ = run(epochs=4)
    before, state = run(epochs=2)
    state["trainer"]["max_epochs"] = 4
    after, _ = run(epochs=4, state=state, seed=5)
    assert before + after == expected
    assert run(epochs=2, seed=5)[0] != before


def test_without_an_xla_device_torch_xla_is_not_imported(tmp_path):
    program = """
        import sys, torch, distrain
        with distrain.init(device="cpu", seed=0):
            model = torch.nn.Linear(3, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            trainer = distrain.create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss)
            distrain.Checkpointer(every=1, directory="checkpoints").attach(trainer, model=model, optimizer=optimizer)
            trainer.run([(torch.ones(2, 3), torch.ones(2, 1))])
        assert "torch_xla" not in sys.modules
    """
    run_alone(tmp_path, program).check()


@pytest.fixture(scope="module")
def two_fake_replicas(tmp_path_factory):
    """Return what each of two processes saw that take themselves for replicas, the one of rank 0 first."""
    folder = tmp_path_factory.mktemp("replicas")
    out = run_ranks(folder, Path(__file__).with_name("xla_replicas.py")).check().stdout
    ranks = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert len(ranks) == 2
    return sorted(ranks, key=lambda each: each["rank"])


def test_two_fake_replicas_reduce_once_a_window_and_decide_together(two_fake_replicas):
    def whole(num=6, **options):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        data = [(torch.randn(8, 3), torch.randn(8, 1)) for _ in range(6)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = create_supervised_trainer(model, optimizer, mse_loss, gradient_accumulation_steps=3, **options)
        trainer.run(data[:num])
        return torch.cat([each.reshape(-1) for each in weights(model)]).tolist()

    one, other = two_fake_replicas
    names = ("plain", "clipped", "skipped")
    assert all(one[name] == other[name] for name in names)
    plain, clipped, skipped = (one[name] for name in names)
    assert (plain["steps"], clipped["steps"], skipped["steps"]) == ([3, 6], [3, 6], [3])
    assert plain["reductions"] == clipped["reductions"] == [2, 2]
    assert skipped["reductions"] == [1, 2, 1]  # the decision, the gradients, the decision
    assert plain["weights"] == pytest.approx(whole(), rel=1e-5)
    assert clipped["weights"] == pytest.approx(whole(max_grad_norm=0.1), rel=1e-5)
    assert skipped["weights"] == pytest.approx(whole(num=3), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Another trainer of this script")
def test_a_script_on_two_fake_replicas_is_one_process_on_all_data_also_when_resumed(
    two_fake_replicas, tmp_path, monkeypatch
):
    monkeypatch.setenv("DISTRAIN_RUN_DIR", str(tmp_path))
    with distrain.init(device="cpu"):
        expected = {"script": xla_replicas.script("cpu", 0, 8, 2), "resumed": xla_replicas.script("cpu", 0, 8, 3)}
    one, other = two_fake_replicas
    for name, first in (("script", 1), ("resumed", 13)):
        assert one[name]["weights"] == other[name]["weights"]
        assert one[name]["weights"] == pytest.approx(expected[name]["weights"], rel=1e-4, abs=1e-6)
        assert list(map(int, one[name]["losses"])) == list(expected[name]["losses"])
        assert min(expected[name]["losses"]) == first
        means = list(expected[name]["losses"].values())
        assert list(one[name]["losses"].values()) == pytest.approx(means, rel=1e-4, abs=1e-6)
        assert set(other[name]["losses"].values()) == {None}  # rank 0 has the mean over both
