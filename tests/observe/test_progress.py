import io

import torch

from distrain import Engine, Events, ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(file, *, epochs=2, **options):
    engine = Engine(lambda engine, batch: batch)

    @engine.on(Events.ITERATION_COMPLETED)
    def metric():
        engine.state.metrics["loss"] = 1 / engine.state.iteration
        engine.state.metrics["tensor"] = torch.tensor(2.5)
        engine.state.metrics["many"] = torch.zeros(3)

    ProgressBar(file=file, **options).attach(engine)
    engine.run(range(10), max_epochs=epochs)
    return file.getvalue()


def test_a_pipe_gets_one_line_an_epoch():
    lines = run(io.StringIO()).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("epoch 2/2  iteration 10/10  loss 0.05  tensor 2.5  ")
    assert lines[1].endswith(" it/s")


def test_a_pipe_gets_a_line_each_interval_as_well():
    lines = run(io.StringIO(), every_s=0.0, epochs=1).splitlines()
    assert [line.split("  ")[1] for line in lines] == [f"iteration {n}/10" for n in [*range(1, 11), 10]]


def test_a_terminal_gets_a_bar():
    text = run(Terminal())
    assert "epoch 1/2" in text
    assert "10/10" in text
    assert "loss 0.05" in text
    assert "\r" in text
