import re

import pytest

from tests.support.ranks import run_ranks
from tests.training.test_checkpoint import names

# The ranks signal themselves, each at an iteration of its own: `rank:iteration:signal`, any number of them.
PROGRAM = """
    import hashlib, os, signal, sys, time
    import torch, distrain
    from torch.utils.data import TensorDataset

    folder, num_micro, plan = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    came = []
    if "own" in plan:
        signal.signal(signal.SIGTERM, lambda *_: came.append("TERM"))
    with distrain.init(seed=0) as world:
        model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        model, optimizer = distrain.prepare(model, optimizer)
        x = torch.arange(120.0).reshape(40, 3) / 120
        loader = distrain.dataloader(TensorDataset(x, x.sum(1, keepdim=True)), 2, shuffle=True, seed=3)
        trainer = distrain.create_supervised_trainer(
            model, optimizer, torch.nn.functional.mse_loss, gradient_accumulation_steps=num_micro
        )
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        checkpointer = distrain.Checkpointer(every=1000, directory=folder)
        checkpointer.attach(trainer, model=model, optimizer=optimizer, loader=loader, scheduler=scheduler)
        trainer.add_event_handler(distrain.Events.EPOCH_COMPLETED, lambda: scheduler.step())

        @trainer.on(distrain.Events.ITERATION_STARTED)
        def strike():
            for each in plan:
                if each == "slow":
                    time.sleep(0.05)
                elif each != "own":
                    rank, at, name = each.split(":")
                    if (int(rank), int(at)) == (world.rank, trainer.state.iteration):
                        os.kill(os.getpid(), getattr(signal, name))

        try:
            trainer.run(loader, max_epochs=6 if "slow" not in plan else 1000)
        except distrain.errors.StoppedBySignal as end:
            os.write(1, f"rank {world.rank} stopped at {end.step} with {end.code}\\n".encode())
            raise
        else:
            weights = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().tobytes()
            digest = hashlib.sha256(weights).hexdigest()
            os.write(1, f"rank {world.rank} ended at {trainer.state.iteration} with {digest} {came}\\n".encode())
"""


def train(folder, num_micro, *plan, code=0):
    return run_ranks(folder, PROGRAM, args=[str(folder / "checkpoints"), str(num_micro), *plan]).check(code)


def stops(done):
    found = re.findall(r"rank (\d) stopped at (\d+) with (\d+)", done.stdout)
    assert {rank for rank, _, _ in found} == {"0", "1"}, done.stdout + done.stderr
    (end,) = {(int(step), int(code)) for _, step, code in found}
    return end


def ends(done):
    found = re.findall(r"rank (\d) (ended at 60 with .*)", done.stdout)
    assert {rank for rank, _ in found} == {"0", "1"}, done.stdout + done.stderr
    (end,) = {text for _, text in found}
    return end


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_micro", "plan", "code"),
    [
        pytest.param(4, ["0:14:SIGINT", "1:17:SIGTERM"], 75, marks=pytest.mark.deep),
        pytest.param(1, ["0:7:SIGTERM", "1:7:SIGTERM"], 75, marks=pytest.mark.deep),
        pytest.param(1, ["0:7:SIGINT", "1:12:SIGINT"], 130, marks=pytest.mark.deep),
        pytest.param(4, ["1:10:SIGTERM", "0:10:SIGTERM"], 75, marks=pytest.mark.deep),
    ],
)
def test_both_stop_after_the_same_iteration_and_go_on_to_the_very_same_end(tmp_path, num_micro, plan, code):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = ends(train(tmp_path / "whole", num_micro))
    done = train(tmp_path / "cut", num_micro, *plan, code=1)  # torchrun's own, whatever its workers end with
    step, exit_code = stops(done)
    assert exit_code == code
    came = [int(each.split(":")[1]) for each in plan]
    # On a slow machine the second rank learns of the first one's signal before its own comes.
    assert min(came) <= step <= max(came) + num_micro
    name = "SIGTERM" if code == 75 else "SIGINT"
    assert f"distrain: {name}: stopped after step {step}, saved in {tmp_path}/cut/checkpoints/" in done.stderr
    assert names(tmp_path / "cut" / "checkpoints") == [f"step-{step:08d}"]
    assert ends(train(tmp_path / "cut", num_micro)) == whole


@pytest.mark.slow
@pytest.mark.parametrize("num_micro", [1, pytest.param(4, marks=pytest.mark.deep)])
def test_a_signal_to_one_rank_stops_all(tmp_path, num_micro):
    assert stops(train(tmp_path, num_micro, "1:10:SIGTERM", "slow", code=1))[1] == 75


@pytest.mark.deep
def test_with_a_handler_of_the_users_the_run_goes_on(tmp_path):
    done = train(tmp_path, 1, "own", "0:7:SIGTERM", "1:7:SIGTERM")
    assert "['TERM']" in ends(done)


def test_a_second_signal_ends_at_once(tmp_path):
    done = run_ranks(
        tmp_path, PROGRAM, args=[str(tmp_path / "checkpoints"), "1", "0:10:SIGTERM", "0:10:SIGTERM", "slow"]
    )
    assert done.returncode == 1
    assert re.search(r"exitcode\s*: -15", done.stderr), done.stderr
    assert "stopped at" not in done.stdout
