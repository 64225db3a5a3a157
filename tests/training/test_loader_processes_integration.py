"""DataLoader's processes bear the signals of a run that can be stopped, and do not outlive the rank."""

import pytest

from tests.support.ranks import run_alone

PROGRAM = """
    import multiprocessing, os, signal, sys
    import torch, distrain
    from torch.utils.data import DataLoader, TensorDataset

    def main(how, method):
        with distrain.init(seed=0) as world:
            model = torch.nn.Linear(3, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            dataset = TensorDataset(torch.ones(40, 3), torch.ones(40, 1))
            options = {"num_workers": 1, "multiprocessing_context": method}
            loader = distrain.dataloader(dataset, 2, persistent_workers=True, **options)
            trainer = distrain.create_supervised_trainer(model, optimizer, torch.nn.functional.mse_loss)
            checkpointer = distrain.Checkpointer(directory="checkpoints")
            checkpointer.attach(trainer, model=model, optimizer=optimizer, loader=loader)
            half_read = []

            @trainer.on(distrain.Events.ITERATION_COMPLETED(once=5))
            def strike():
                half_read.append(iter(DataLoader(dataset, 2, **options)))
                next(half_read[0])
                children = multiprocessing.active_children()
                for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
                    for child in children:
                        os.kill(child.pid, number)
                if how == "raises":
                    raise ValueError("on purpose")
                if how == "stops":
                    os.kill(os.getpid(), signal.SIGTERM)

            trainer.run(loader, max_epochs=2)
            print("trained", trainer.state.iteration, len(multiprocessing.active_children()), flush=True)

    if __name__ == "__main__":
        main(*sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("how", "method", "code"),
    [
        ("ends", "fork", 0),
        pytest.param("raises", "fork", 1, marks=pytest.mark.deep),
        pytest.param("stops", "fork", 75, marks=pytest.mark.deep),
        pytest.param("stops", "spawn", 75, marks=pytest.mark.deep),
    ],
)
def test_they_bear_a_signal_while_the_trainer_runs_and_end_with_the_rank(tmp_path, how, method, code):
    done = run_alone(tmp_path, PROGRAM, [how, method], deadline_s=60).check(code)
    assert ("trained 40 2" in done.stdout) == (how == "ends")
    assert "DataLoader worker" not in done.stderr
    assert ("ValueError: on purpose" in done.stderr) == (how == "raises")
