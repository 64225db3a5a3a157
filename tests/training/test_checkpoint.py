import contextlib
import json
import random
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import TensorDataset

import distrain
from distrain.errors import CheckpointError
from distrain.training import checkpoint_files


class StopError(Exception):
    pass


def setting(
    folder,
    *,
    every=2,
    keep=3,
    seed=0,
    scaler=False,
    batch_size=4,
    cut_at=None,
    num_workers=0,
    is_loader_attached=True,
    drop_last=False,
    **more,
):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    x = torch.arange(60.0).reshape(20, 3) / 60
    loader = distrain.dataloader(
        TensorDataset(x, x.sum(1, keepdim=True)),
        batch_size,
        shuffle=True,
        seed=3,
        num_workers=num_workers,
        drop_last=drop_last,
    )
    options = {"amp_mode": "amp", "scaler": True, **more} if scaler else more
    trainer = distrain.create_supervised_trainer(model, optimizer, mse_loss, **options)
    if cut_at is not None:
        trainer.add_event_handler(
            distrain.Events.ITERATION_COMPLETED(once=cut_at), trainer.terminate_epoch, skip_epoch_completed=False
        )
    checkpointer = distrain.Checkpointer(every=every, keep=keep, directory=folder)
    attached = {"loader": loader} if is_loader_attached else {}
    checkpointer.attach(trainer, model=model, optimizer=optimizer, **attached)
    return model, loader, trainer, checkpointer


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".incarnations")


def run(folder, *, epochs=3, stop_at=None, terminate_at=None, **options):
    model, loader, trainer, checkpointer = setting(folder, **options)
    losses = {}

    @trainer.on(distrain.Events.ITERATION_COMPLETED)
    def follow():
        losses[trainer.state.iteration] = trainer.state.output
        if trainer.state.iteration == stop_at:
            raise StopError

    if terminate_at:
        trainer.add_event_handler(
            distrain.Events.ITERATION_COMPLETED(once=terminate_at), trainer.terminate, skip_completed=False
        )
    if stop_at:
        with pytest.raises(StopError):
            trainer.run(loader, max_epochs=epochs)
    else:
        trainer.run(loader, max_epochs=epochs)
    return model, losses, trainer, checkpointer


@pytest.mark.parametrize("scaler", [False, True])
@pytest.mark.parametrize("stop_at", [3, 5, 8, 14])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(tmp_path, stop_at, scaler):
    model, expected, _, _ = run(tmp_path / "whole", scaler=scaler)
    _, before, _, _ = run(tmp_path / "cut", stop_at=stop_at, scaler=scaler)
    again, after, trainer, checkpointer = run(tmp_path / "cut", seed=9, scaler=scaler)
    saved = int(checkpointer.resumed_from.name.removeprefix("step-"))
    assert saved == max(range(0, stop_at, 2))  # the handler that stops comes before the checkpoint of its iteration
    assert list(after) == list(range(saved + 1, 16))
    assert {**before, **after} == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert (trainer.state.iteration, trainer.state.epoch) == (15, 3)


@pytest.mark.usefixtures("sigchld")
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stop_at", [2, 5, 6, 8, 10, 14])
def test_a_deterministic_trainer_goes_on_with_the_next_batch_of_a_loader_that_keeps_its_place(
    tmp_path, stop_at, num_workers
):
    """Stops inside and at the end of the first epoch and of later ones."""
    options = {"deterministic": True, "every": 1, "num_workers": num_workers}
    model, expected, _, _ = run(tmp_path / "whole", **options)
    _, before, _, _ = run(tmp_path / "cut", terminate_at=stop_at, **options)
    again, after, trainer, _ = run(tmp_path / "cut", seed=9, **options)
    assert list(after) == list(range(stop_at + 1, 16))
    assert {**before, **after} == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert (trainer.state.iteration, trainer.state.epoch) == (15, 3)


def test_a_deterministic_trainer_moves_the_place_of_the_loader(tmp_path):
    _, loader, trainer, _ = setting(tmp_path, deterministic=True)
    trainer.run(loader, max_epochs=2)
    assert trainer.state.dataloader is loader
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 5)


def looked_at(folder, stop_at=None, **options):
    """Return the losses of a run whose loader others read too: before it, inside its epochs and at their ends."""
    _, loader, trainer, _ = setting(folder, **options)
    losses = {}
    held = iter(loader)
    next(held)

    @trainer.on(distrain.Events.ITERATION_COMPLETED)
    def follow():
        losses[trainer.state.iteration] = trainer.state.output
        if trainer.state.iteration == stop_at:
            raise StopError

    trainer.add_event_handler(distrain.Events.ITERATION_COMPLETED(every=3), lambda: list(loader))
    trainer.add_event_handler(distrain.Events.ITERATION_COMPLETED(every=4), lambda: next(iter(loader)))
    trainer.add_event_handler(distrain.Events.EPOCH_COMPLETED, lambda: list(loader))
    with contextlib.suppress(StopError):
        trainer.run(loader, max_epochs=3)
    return losses


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("stop_at", [4, 6, 10])
def test_other_passes_over_the_trainers_loader_leave_its_place_alone(tmp_path, stop_at, deterministic):
    options = {"every": 1, "deterministic": deterministic}
    expected = looked_at(tmp_path / "whole", **options)
    before = looked_at(tmp_path / "cut", stop_at, **options)
    after = looked_at(tmp_path / "cut", seed=9, **options)
    assert {**before, **after} == expected
    assert min(after) == stop_at


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("stop_at", [2, 3, 4, 7, 8, 9])
def test_after_an_epoch_cut_short_the_run_goes_on_in_its_epoch_and_at_its_place(tmp_path, stop_at, deterministic):
    """Epochs of five, the first cut after three: what was done says another epoch than the one it was."""
    options = {"cut_at": 3, "every": 1, "deterministic": deterministic}
    model, expected, whole, _ = run(tmp_path / "whole", **options)
    _, before, _, _ = run(tmp_path / "cut", stop_at=stop_at, **options)
    again, after, trainer, _ = run(tmp_path / "cut", seed=9, **options)
    assert list(expected) == list(range(1, 14))
    if stop_at != 3:  # stopped before the cut was carried out, that epoch goes on
        assert {**before, **after} == expected
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        assert (trainer.state.iteration, trainer.state.epoch) == (whole.state.iteration, whole.state.epoch) == (13, 3)


def test_after_an_epoch_cut_short_a_due_checkpoint_is_not_taken_for_one_at_an_epochs_end(tmp_path):
    """The tenth iteration is the second of the third epoch there."""
    run(tmp_path, cut_at=3, every=5, keep=9)
    assert names(tmp_path) == ["step-00000005", "step-00000010", "step-00000013"]


def test_a_last_epoch_that_is_cut_without_its_end_is_over(tmp_path):
    _, loader, trainer, _ = setting(tmp_path, every=1)
    trainer.add_event_handler(distrain.Events.ITERATION_COMPLETED(once=3), trainer.terminate_epoch)
    trainer.run(loader, max_epochs=1)
    assert run(tmp_path, epochs=1)[1] == {}


def test_a_deterministic_run_goes_on_with_its_seed_where_epochs_have_another_length(tmp_path):
    _, _, before, _ = run(tmp_path, epochs=1, deterministic=True)
    _, losses, trainer, _ = run(tmp_path, epochs=3, batch_size=2, deterministic=True)
    assert list(losses) == list(range(11, 31))
    assert trainer.state.seed == before.state.seed


def test_on_ignites_engine_it_goes_on_by_the_number_of_iterations(tmp_path, ignite):
    def run(**goal):
        engine, seen = ignite.Engine(lambda engine, batch: batch), []
        engine.add_event_handler(ignite.Events.ITERATION_COMPLETED, lambda: seen.append(engine.state.iteration))
        distrain.Checkpointer(every=2, directory=tmp_path).attach(engine)
        engine.run([0] * 5, **goal)
        return engine.state.epoch, seen

    assert run(max_epochs=1)[0] == 1
    assert names(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]
    assert run(max_epochs=2) == (2, [6, 7, 8, 9, 10])


def test_the_newest_are_kept_and_no_draft(tmp_path):
    run(tmp_path, keep=2)
    assert names(tmp_path) == ["step-00000014", "step-00000015"]
    meta = json.loads((tmp_path / "step-00000015" / "meta.json").read_text())
    assert (meta["step"], meta["epoch"], meta["world_size"]) == (15, 3, 1)


def test_a_finished_run_is_not_run_again_but_can_be_made_longer(tmp_path):
    run(tmp_path, epochs=2)
    assert run(tmp_path, epochs=2)[1] == {}
    assert list(run(tmp_path, epochs=3)[1]) == [11, 12, 13, 14, 15]


def test_another_trainer_that_goes_on_from_the_first_ones_checkpoint_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTRAIN_RUN_DIR", str(tmp_path))
    with distrain.init(device="cpu"):
        for number in range(2):
            trainer = distrain.create_supervised_trainer(*tiny(), mse_loss)
            says = pytest.warns(RuntimeWarning, match=r"Another trainer .*step-00000001 .* directory of its own")
            with says if number else contextlib.nullcontext():
                distrain.Checkpointer().attach(trainer)
            trainer.run([(torch.zeros(1, 3), torch.zeros(1, 1))], max_epochs=1)


def test_a_goal_behind_the_checkpoint_is_refused(tmp_path):
    run(tmp_path, epochs=2)
    with pytest.raises(CheckpointError, match=r"step-00000010, which has done 2 epochs.*max_epochs=1. Ask for 2 or"):
        run(tmp_path, epochs=1)
    _, loader, trainer, _ = setting(tmp_path)
    with pytest.raises(CheckpointError, match=r"has done 10 iterations.*max_iters=9. Ask for 10 or"):
        trainer.run(loader, max_iters=9)


def test_plain_torch_reads_a_model_from_a_checkpoint(tmp_path):
    model, *_ = run(tmp_path, epochs=1)
    again = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    again.load_state_dict(torch.load(tmp_path / "step-00000005" / "state.pt")["objects"]["model"])
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_without_every_it_saves_at_each_epoch(tmp_path):
    run(tmp_path, every=None)
    assert names(tmp_path) == ["step-00000005", "step-00000010", "step-00000015"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "no meta"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, damage):
    _, expected, _, _ = run(tmp_path)
    state = tmp_path / "step-00000015" / "state.pt"
    data = bytearray(state.read_bytes())
    if damage == "truncate":
        state.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        with zipfile.ZipFile(state) as archive:
            largest = max(archive.infolist(), key=lambda info: info.file_size)
            content = archive.read(largest)
        data[data.index(content) + len(content) // 2] ^= 255  # not in the padding between the parts
        state.write_bytes(data)
    elif damage == "empty":
        state.write_bytes(b"")
    else:
        (state.parent / "meta.json").unlink()
    with pytest.warns(RuntimeWarning, match="step-00000015 is damaged .*set aside as damaged-step"):
        _, again, _, checkpointer = run(tmp_path)
    assert checkpointer.resumed_from == tmp_path / "step-00000014"
    assert again == {15: expected[15]}
    assert any(name.startswith("damaged-step-00000015") for name in names(tmp_path))


def test_when_none_can_be_read_it_does_not_start_anew_in_silence(tmp_path):
    run(tmp_path, keep=1)
    (tmp_path / "step-00000015" / "state.pt").write_bytes(b"x")
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match="None of the 1 checkpoints"):
        setting(tmp_path)


def test_what_does_not_fit_is_said(tmp_path):
    model, _, trainer, _ = run(tmp_path)
    other = nn.Linear(7, 1)
    checkpointer = distrain.Checkpointer(directory=tmp_path)
    with pytest.raises(CheckpointError, match=r"state of model in .* does not fit"):
        checkpointer.attach(trainer, model=other)
    with pytest.raises(CheckpointError, match="of another optimizer than SGD: it has no dampening, momentum"):
        checkpointer.attach(trainer, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(CheckpointError, match="no state for ema; it holds loader, model, optimizer"):
        checkpointer.attach(trainer, ema=model)
    with pytest.raises(ValueError, match="'trainer' is taken"):
        checkpointer.attach(trainer, trainer=model)
    with pytest.raises(TypeError, match="thing is a int"):
        checkpointer.attach(trainer, thing=3)
    with pytest.raises(CheckpointError, match=r"call distrain.init\(\) first"):
        distrain.Checkpointer().attach(trainer, model=model)
    with pytest.raises(ValueError, match="keep is 0"):
        distrain.Checkpointer(keep=0)


def test_inside_an_epoch_another_batch_size_goes_on_with_what_is_left(tmp_path):
    """2 of 5 batches of 4 were had when it was saved, so 12 of 20 samples are left: the last 6 batches of 10."""
    run(tmp_path, stop_at=3)
    _, losses, trainer, _ = run(tmp_path, batch_size=2, epochs=2)
    assert list(losses) == list(range(5, 21))
    assert trainer.state.epoch == 2
    assert trainer.place == (2, 0)


def test_where_nothing_of_an_epoch_is_left_to_divide_the_next_one_begins(tmp_path):
    """4 of 5 batches of 4 were had: no batch of 8 is left, and the epoch's last 4 samples are, as of any, left out."""
    run(tmp_path, stop_at=5, drop_last=True)
    _, losses, trainer, _ = run(tmp_path, batch_size=8, drop_last=True, epochs=2)
    assert list(losses) == [3, 4]
    assert trainer.state.epoch == 2
    run(tmp_path / "ended", stop_at=5, drop_last=True)
    _, losses, trainer, _ = run(tmp_path / "ended", batch_size=8, drop_last=True, epochs=1)
    assert losses == {}
    assert (trainer.state.epoch, trainer.place) == (1, (1, 0))


def test_inside_an_epoch_a_loader_that_is_not_attached_does_not_divide_what_is_left(tmp_path):
    run(tmp_path, stop_at=3, is_loader_attached=False)
    with pytest.raises(CheckpointError, match=r"after 2 of its 5 iterations, and an epoch has 10 now .* Attach"):
        run(tmp_path, batch_size=2, is_loader_attached=False)


def test_at_an_epochs_end_another_batch_size_goes_on(tmp_path):
    run(tmp_path, epochs=1)
    _, losses, trainer, _ = run(tmp_path, epochs=2, batch_size=2, keep=1)
    assert list(losses) == list(range(11, 21))
    assert trainer.state.epoch == 2
    assert names(tmp_path) == ["step-00000020"]


def test_fewer_steps_an_epoch_do_not_confuse_which_is_the_newest(tmp_path):
    run(tmp_path, epochs=2, batch_size=2)
    run(tmp_path, epochs=3, batch_size=10, keep=2)
    assert names(tmp_path) == ["step-00000006", "step-00000020"]
    assert run(tmp_path, epochs=3, batch_size=10)[3].resumed_from.name == "step-00000006"


def test_random_states_come_back(tmp_path):
    _, _, trainer, checkpointer = setting(tmp_path)
    checkpointer.save(trainer)
    expected = (random.random(), np.random.rand(), torch.rand(1))
    random.seed(0)
    np.random.seed(0)
    _, loader, trainer, _ = setting(tmp_path)
    drawn = []

    @trainer.on(distrain.Events.EPOCH_STARTED)
    def draw():
        drawn.append((random.random(), np.random.rand(), torch.rand(1)))
        trainer.terminate()

    trainer.run(loader, max_epochs=1)
    assert drawn == [expected]


def drawing(folder, event, stop_at=None):
    """Train where something else draws random numbers, too, before the run (event None) or at one of its events."""
    _, loader, trainer, _ = setting(folder)
    losses = {}
    if event is None:
        losses[0] = torch.rand(1).item()
    else:
        trainer.add_event_handler(event, lambda: torch.manual_seed(trainer.state.epoch))

    @trainer.on(distrain.Events.ITERATION_COMPLETED)
    def follow():
        losses[trainer.state.iteration] = trainer.state.output
        if trainer.state.iteration == stop_at:
            raise StopError

    with pytest.raises(StopError) if stop_at else contextlib.nullcontext():
        trainer.run(loader, max_epochs=3)
    return losses


@pytest.mark.parametrize("stop_at", [4, 11])  # inside an epoch and at the end of one
@pytest.mark.parametrize("event", [None, distrain.Events.STARTED, distrain.Events.EPOCH_STARTED])
def test_what_is_drawn_before_the_first_iteration_is_as_in_the_first_start(tmp_path, event, stop_at):
    before = drawing(tmp_path / "cut", event, stop_at)
    assert {**before, **drawing(tmp_path / "cut", event)} == drawing(tmp_path / "whole", event)


def scheduled(folder, stop_before=None):
    """Train with a scheduler that is stepped by a handler attached behind the checkpointer."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
    trainer = distrain.create_supervised_trainer(model, optimizer, mse_loss)
    checkpointer = distrain.Checkpointer(every=1, directory=folder)
    checkpointer.attach(trainer, model=model, optimizer=optimizer, scheduler=scheduler)

    @trainer.on(distrain.Events.ITERATION_COMPLETED(event_filter=lambda _, step: step % 4 != 0))
    @trainer.on(distrain.Events.EPOCH_COMPLETED)
    def step():
        scheduler.step()

    @trainer.on(distrain.Events.ITERATION_STARTED(once=stop_before or 99))
    def stop():
        raise StopError

    batches = [(torch.full((2, 3), float(number)), torch.ones(2, 1)) for number in range(4)]
    trainer.run(batches[trainer.state.iteration % 4 if stop_before is None else 0 :], max_epochs=3, epoch_length=4)
    return scheduler.get_last_lr()


@pytest.mark.filterwarnings("ignore:The run goes on inside an epoch")
@pytest.mark.parametrize("stop_before", [3, 5, 6])
def test_what_handlers_do_that_were_attached_later_belongs_to_the_checkpoint(tmp_path, stop_before):
    whole = scheduled(tmp_path / "whole")
    with pytest.raises(StopError):
        scheduled(tmp_path / "cut", stop_before)
    assert scheduled(tmp_path / "cut") == whole == pytest.approx([0.5 * 0.7**12])


class Kept:
    """Something with a state of its own."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"best": [self.value]}

    def load_state_dict(self, state):
        self.value = state["best"][0]


def keeping(folder, value):
    kept = Kept(value)
    trainer = distrain.create_supervised_trainer(*tiny(), mse_loss)
    checkpointer = distrain.Checkpointer(directory=folder)
    checkpointer.attach(trainer, kept=kept)
    return kept, trainer


def tiny():
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


BATCH = [(torch.ones(2, 3), torch.ones(2, 1))]


@pytest.mark.parametrize(
    "value", [np.float64(0.5), np.bool_(True), np.arange(3), np.random.default_rng(0).bit_generator.state], ids=repr
)
def test_numbers_and_arrays_of_numpy_come_back(tmp_path, value):
    keeping(tmp_path, value)[1].run(BATCH)
    kept, _ = keeping(tmp_path, None)
    assert repr(kept.value) == repr(value)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (tiny, r"kept\['best'\]\[0\] is a function, which cannot be read back as plain data"),
        (zipfile.Path, r"kept\['best'\]\[0\] is a type"),
        (StopError(), r"kept\['best'\]\[0\] is a .*StopError"),
        (lambda: 0, r"kept\['best'\]\[0\] is a function"),
    ],
    ids=["function", "class", "object", "lambda"],
)
def test_what_could_not_be_read_again_is_not_saved(tmp_path, value, what):
    _, trainer = keeping(tmp_path, value)
    with pytest.raises(CheckpointError, match=rf"step-00000001 could not be written: {what}"):
        trainer.run(BATCH)
    assert names(tmp_path) == []


def test_one_flipped_bit_anywhere_does_not_keep_the_one_before_from_being_taken(tmp_path):
    _, loader, trainer, _ = setting(tmp_path)
    trainer.run(loader, max_epochs=1)
    path = tmp_path / "step-00000005" / "state.pt"
    whole = path.read_bytes()
    outside = len(whole) - 3000  # in the archive's directory there are no checksums
    for bit in range(outside * 8, len(whole) * 8, 397):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        problem = checkpoint_files.problem_of(path.parent)
        assert problem or checkpoint_files.read(path.parent), bit
    path.write_bytes(whole)
    assert checkpoint_files.problem_of(path.parent) is None


def test_data_that_begin_anew_inside_an_epoch_are_warned_of(tmp_path):
    _, loader, trainer, _ = setting(tmp_path, every=3)
    trainer.add_event_handler(distrain.Events.ITERATION_COMPLETED(once=4), interrupted)
    with pytest.raises(StopError):
        trainer.run(loader, max_epochs=1)
    _, loader, trainer, _ = setting(tmp_path, is_loader_attached=False)
    with pytest.warns(
        RuntimeWarning, match="goes on inside an epoch, after iteration 3 of it, and its data begin anew"
    ):
        trainer.run(loader, max_epochs=1)


def interrupted():
    raise StopError


def test_attached_to_a_trainer_that_runs_it_saves_from_there_on(tmp_path):
    model, optimizer = tiny()
    trainer = distrain.create_supervised_trainer(model, optimizer, mse_loss)
    checkpointer = distrain.Checkpointer(every=1, directory=tmp_path)

    @trainer.on(distrain.Events.ITERATION_STARTED(once=2))
    def attach():
        checkpointer.attach(trainer, model=model, optimizer=optimizer)

    trainer.run(BATCH * 3, max_epochs=1)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
