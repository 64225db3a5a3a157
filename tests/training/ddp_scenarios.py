"""The scenarios of `test_ddp_integration`, each a run of every rank.

Every scenario returns a dict of numbers, texts and tensors; what it means is said in the tests. Those that save do
so in the current folder.
"""

from __future__ import annotations

import contextlib
import logging

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from distrain import Events
from distrain.errors import NonFiniteLossError
from tests.training.ddp_world import (
    DDP_OPTIONS,
    Run,
    Sparse,
    Unsized,
    bad_at,
    batch,
    build,
    fake_apex,
    flat,
    plain_sgd,
    poisoned,
    reference,
    region_of,
    sgd,
    windows_of,
)

MECHANISMS = ("plain", "amp", "amp scaler", "apex")
HOW = ("carry", "flush", "drop")

TAILS = {
    # name: batches of an epoch, goal, iteration at which a handler ends the epoch, windows by tail
    "epochs": (7, {"max_epochs": 2}, None, {
        "carry": [(0, 1, 2), (3, 4, 5), (6, 0, 1), (2, 3, 4)],
        "flush": [(0, 1, 2), (3, 4, 5), (6,), (0, 1, 2), (3, 4, 5), (6,)],
        "drop": [(0, 1, 2), (3, 4, 5), (0, 1, 2), (3, 4, 5)],
    }),
    "epochs that fit": (6, {"max_epochs": 2}, None, dict.fromkeys(HOW, [(0, 1, 2), (3, 4, 5)] * 2)),
    "terminate_epoch": (6, {"max_epochs": 2}, 5, {
        "carry": [(0, 1, 2), (3, 4, 0), (1, 2, 3)],
        "flush": [(0, 1, 2), (3, 4), (0, 1, 2), (3, 4, 5)],
        "drop": [(0, 1, 2), (0, 1, 2), (3, 4, 5)],
    }),
    "max_iters": (7, {"max_iters": 5}, None, {
        "carry": [(0, 1, 2)],
        "flush": [(0, 1, 2), (3, 4)],
        "drop": [(0, 1, 2)],
    }),
}  # fmt: skip

UNEVEN = {
    # name: batches of rank 0 and rank 1 in each of two epochs, and the windows of one. The first window is not the
    # last on any rank: in the forward pass after it DDP sends the order of its buckets to all ranks.
    "both cut": ((5, 4), [[(0, 1, 2), (0, 1, 2)], [(3, 4), (3,)]]),
    "one cut": ((8, 6), [[(0, 1, 2), (0, 1, 2)], [(3, 4, 5), (3, 4, 5)], [(6, 7), ()]]),
}


def in_steps(windows, num_micro):
    return [window for start in range(0, windows, num_micro) for window in [range(start, start + num_micro)]]


def by_hand(num_micro, mechanism):
    """The loop one writes without us: DDP, `no_sync`, a scaler."""
    bare = build()
    model = DistributedDataParallel(bare)
    optimizer, scale = sgd(bare), torch.amp.GradScaler("cpu", enabled=mechanism == "amp scaler", init_scale=2.0**10)
    for index in range(8):
        closes = (index + 1) % num_micro == 0
        if index % num_micro == 0:
            optimizer.zero_grad()
        x, y = batch(dist.get_rank(), index)
        with contextlib.nullcontext() if closes else model.no_sync():
            with region_of(mechanism):
                loss = mse_loss(model(x), y)
            scale.scale(loss / num_micro).backward()
        if closes:
            scale.step(optimizer)
            scale.update()
    return flat(bare)


def training(mechanism, num_micro):
    amp = fake_apex()
    run = Run(num_micro=num_micro, mechanism=mechanism).over(range(8))
    expected, _ = reference(windows_of(*in_steps(8, num_micro)), mechanism=mechanism, num_micro=num_micro)
    return run.against(expected, by_hand=by_hand(num_micro, mechanism), calls=amp.calls)


def buckets():
    """A model of several buckets, which DDP arranges anew after its first reduction."""
    make = lambda: nn.Sequential(nn.Linear(3, 600), nn.ReLU(), nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 1))
    run = Run(num_micro=4, make=make, ddp={"bucket_cap_mb": 0.5}).over(range(8))
    expected, _ = reference(windows_of(*in_steps(8, 4)), make=make)
    return run.against(expected)


def all_communication():
    """Every operation of gloo during a run, whoever asked for it."""
    found = {}
    for name, options in {
        "carry": {},
        "flush": {"accumulation_tail": "flush"},
        "skip": {"nonfinite_loss": "skip"},
    }.items():
        run = Run(num_micro=4, options=options, counts=False).over(range(8))  # the first reduction arranges buckets
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
            run.over(range(8), max_epochs=2)
        found[name] = sorted(event.name for event in profile.events() if event.name.startswith("gloo:"))
    return {"found": found}


def tail(case, how, known):
    num, goal, ends_at, windows = TAILS[case]
    run = Run(num_micro=3, options={"accumulation_tail": how})
    if ends_at is not None:
        run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=ends_at), run.trainer.terminate_epoch)
    run.over(range(num), wrap=list if known else Unsized, **goal)
    return run.against(reference(windows_of(*windows[how]))[0], epoch_length=run.trainer.state.epoch_length)


def uneven(case, mechanism):
    lengths, windows = UNEVEN[case]
    run = Run(num_micro=3, mechanism=mechanism, options={"accumulation_tail": "flush"})
    run.over(range(lengths[dist.get_rank()]), wrap=Unsized, max_epochs=2)
    return run.against(reference(windows * 2, mechanism=mechanism, num_micro=3)[0])


def uneven_nan():
    """A nan in a tail that rank 1 has no part in."""
    run = Run(num_micro=3, options={"accumulation_tail": "flush", "nonfinite_loss": "skip"})
    get = lambda rank, index: poisoned(rank, index) if index == 7 else batch(rank, index)
    run.over(range((8, 6)[dist.get_rank()]), wrap=Unsized, get=get, max_epochs=2)
    return run.against(reference(windows_of(*[(0, 1, 2), (3, 4, 5)] * 2))[0])


def tail_with(make):
    """A tail of unknown length, with parameters that get no gradient, or sparse ones."""
    setting = {"make": make, "optimizer": plain_sgd if make is Sparse else sgd}
    ddp = {} if make is Sparse else {"find_unused_parameters": True}
    run = Run(num_micro=3, options={"accumulation_tail": "flush"}, ddp=ddp, counts=False, **setting)
    before = {n: p.clone() for n, p in run.bare.named_parameters() if "unused" in n or "frozen" in n}
    run.over(range(5), wrap=Unsized, max_epochs=1)
    touched = [name for name, value in before.items() if not torch.equal(run.bare.get_parameter(name), value)]
    return run.against(reference(windows_of((0, 1, 2), (3, 4)), **setting)[0], touched=touched)


class Halves(nn.Module):
    """Each rank uses a half of its own, so the other has no gradient there."""

    def __init__(self):
        super().__init__()
        self.halves = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])

    def forward(self, x):
        return self.halves[int(x[0, 0] > 5)](x)


class SparseHalves(Halves):
    def __init__(self):
        nn.Module.__init__(self)
        self.halves = nn.ModuleList([Sparse(), Sparse()])


def halves(make):
    """A tail where each rank has gradients of other parameters, dense or sparse."""

    def get(rank, index):
        x, y = batch(rank, index)
        x[0, 0] += 10 * rank
        return x, y

    setting = {"make": make, "optimizer": plain_sgd}
    run = Run(
        num_micro=3,
        options={"accumulation_tail": "flush"},
        ddp={"find_unused_parameters": True},
        counts=False,
        **setting,
    )
    run.over(range(2), wrap=Unsized, get=get)
    return run.against(reference(windows_of((0, 1)), get=get, **setting)[0])


def skipped(mechanism, num_micro):
    """Rank 1 alone sees a nan, at iteration 3."""
    fake_apex()
    run = Run(num_micro=num_micro, mechanism=mechanism, options={"nonfinite_loss": "skip"})
    said = []
    run.trainer.logger = logging.getLogger("of this trainer")
    run.trainer.logger.warning = lambda text, *args: said.append(text % args)
    run.over(range(8), get=bad_at((1, 2)))
    windows = [window for window in in_steps(8, num_micro) if 2 not in window]
    state = run.trainer.state.scaler.state_dict() if mechanism == "amp scaler" else None
    expected, _ = reference(windows_of(*windows), mechanism=mechanism)
    return run.against(expected, said=said, scaler=state)


def raised(mechanism, num_micro, ranks=(1,)):
    run = Run(num_micro=num_micro, mechanism=mechanism, options={"nonfinite_loss": "raise"})
    run.trainer.logger.setLevel(logging.CRITICAL)
    try:
        run.over(range(8), get=bad_at(*((rank, 5) for rank in ranks)))
    except NonFiniteLossError as error:
        text = str(error)
    windows = in_steps(8, num_micro)[: 5 // num_micro]
    expected, _ = reference(windows_of(*windows), mechanism=mechanism)
    return run.against(expected, text=text, iteration=run.trainer.state.iteration)


def forgotten_nan(how):
    """A nan in a window that is dropped, or that a new run leaves behind, is not held against the next one."""
    run = Run(num_micro=3, options={"accumulation_tail": how, "nonfinite_loss": "skip"})
    run.over(range(5), get=bad_at((1, 4)))
    run.over(range(3))
    return run.against(reference(windows_of((0, 1, 2), (0, 1, 2)))[0])


def clipped(mechanism, num_micro):
    run = Run(num_micro=num_micro, mechanism=mechanism, options={"max_grad_norm": 0.3})
    norms = []
    run.stepper.register_step_post_hook(lambda *_: norms.append(run.trainer.state.grad_norm))
    run.over(range(8))
    expected, norms_expected = reference(windows_of(*in_steps(8, num_micro)), mechanism=mechanism, max_norm=0.3)
    return run.against(expected, norms=torch.stack(norms), norms_expected=torch.stack(norms_expected))


def compiled():
    run = Run(num_micro=4, compiles=True).over(range(8))
    return run.against(reference(windows_of(*in_steps(8, 4)))[0])


def zeros_kept():
    """With set_to_none=False there are gradients at all times, zeros as a window begins; an epoch's end looks too."""
    run = Run(num_micro=4, options={"set_to_none": False, "accumulation_tail": "flush"})
    seen = []

    def look(module, args):
        gradients = [p.grad for p in run.bare.parameters()]
        if None not in gradients:
            seen.append((run.trainer.state.iteration, sum(g.count_nonzero().item() for g in gradients) == 0))

    run.bare.register_forward_pre_hook(look)
    run.over(range(8), max_epochs=2)
    return run.against(reference(windows_of(*in_steps(8, 4) * 2))[0], seen=seen)


def with_options(name):
    run = Run(num_micro=4, ddp=DDP_OPTIONS[name]).over(range(8))
    return run.against(reference(windows_of(*in_steps(8, 4)))[0])


def apex_tail():
    """A tail that gradients still scaled are in, as apex left them."""
    fake_apex()
    run = Run(num_micro=3, mechanism="apex", options={"accumulation_tail": "flush"})
    run.over(range(5), wrap=Unsized)
    return run.against(reference(windows_of((0, 1, 2), (3, 4)))[0])
