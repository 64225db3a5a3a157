"""The trainer on two and on three real ranks, DDP over gloo. `ddp_scenarios` is what they run."""

import pytest
import torch
import torch.distributed as dist

import distrain
from tests.training import ddp_resuming, ddp_scenarios
from tests.training.ddp_scenarios import HOW, MECHANISMS, TAILS, UNEVEN
from tests.training.ddp_world import DDP_OPTIONS, Net, Sparse

pytestmark = pytest.mark.distributed(nproc=2)

three = pytest.mark.distributed(nproc=3)


def saw(scenario, *args):
    """Return what each rank saw in a scenario."""
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, scenario(*args))
    return found


def trained(scenario, *args, tolerance=1e-6):
    """Return the same, of one whose weights agree with each other bit for bit and with the reference."""
    found = saw(scenario, *args)
    first = found[0]
    assert all(torch.equal(each["weights"], first["weights"]) for each in found)
    assert torch.allclose(first["weights"], first["expected"], rtol=0, atol=tolerance)
    return found


@pytest.fixture(autouse=True)
def in_a_folder_that_all_share(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ranks(world):
    torch.manual_seed(0)


def named(mechanisms):
    """Parametrise by mechanism; apex is a stand-in, and the test's name says so."""
    return pytest.mark.parametrize(
        "mechanism", [pytest.param(m, id=m.replace("apex", "fake apex")) for m in mechanisms]
    )


def closing(num_micro, num=8):
    return list(range(num_micro, num + 1, num_micro))


@pytest.mark.parametrize("num_micro", [1, 2, 4])
@named(MECHANISMS)
def test_training_is_the_loop_by_hand_bit_for_bit_and_one_process_on_all_data(ranks, mechanism, num_micro):
    """There is one reduction a window, and none before its last micro-batch."""
    for each in trained(ddp_scenarios.training, mechanism, num_micro):
        assert torch.equal(each["weights"], each["by_hand"])
        assert each["reductions"] == each["steps"] == closing(num_micro)


@three
@named(MECHANISMS)
def test_three_ranks(ranks, mechanism):
    for each in trained(ddp_scenarios.training, mechanism, 2):
        assert torch.allclose(each["weights"], each["by_hand"], rtol=0, atol=1e-6)
        assert each["reductions"] == closing(2)


@three
def test_three_ranks_flush_a_tail_of_unknown_length(ranks):
    assert trained(ddp_scenarios.tail, "epochs", "flush", False)[2]["steps"] == [3, 6, 7, 10, 13, 14]


@pytest.mark.parametrize("num_micro", [1, 2, 4])
def test_fake_apex_comes_before_ddp_and_unscales_at_the_end_of_a_window(ranks, num_micro):
    for each in saw(ddp_scenarios.training, "apex", num_micro):
        first, *passes = each["calls"]
        assert first == "initialize"
        # One more delayed pass, of nothing, says before the last that older gradients are still scaled.
        window = ["delayed"] * num_micro + ["unscaled"] if num_micro > 1 else ["unscaled"]
        assert passes == window * (8 // num_micro)


def test_fake_apex_flushes_gradients_that_are_still_scaled(ranks):
    assert trained(ddp_scenarios.apex_tail)[0]["steps"] == [3, 5]


def test_a_model_of_several_buckets_reduces_each_once_a_window(ranks):
    # The first reduction has one bucket fewer: DDP arranges them anew after it.
    for each in trained(ddp_scenarios.buckets):
        assert len(each["reductions"]) > len(set(each["reductions"]))
        assert set(each["reductions"]) == {4, 8}


def test_nothing_else_communicates(ranks):
    """In an epoch of two windows DDP reduces twice; `flush` asks once more at its end, `skip` once a window."""
    for each in saw(ddp_scenarios.all_communication):
        assert {name: len(events) for name, events in each["found"].items()} == {"carry": 2, "flush": 3, "skip": 4}
        assert {event for events in each["found"].values() for event in events} == {"gloo:all_reduce"}


@pytest.mark.parametrize("known", [True, False], ids=["sized", "unsized"])
@pytest.mark.parametrize("case", TAILS)
def test_a_tail_is_the_true_average_of_what_it_holds(ranks, case, known):
    for how in HOW:
        for each in trained(ddp_scenarios.tail, case, how, known):
            assert len(each["steps"]) == len(TAILS[case][3][how])


@pytest.mark.parametrize("mechanism", ["plain", "amp scaler"])
@pytest.mark.parametrize("case", UNEVEN)
def test_ranks_whose_data_ends_at_different_times_flush_the_average_over_all(ranks, case, mechanism):
    found = trained(ddp_scenarios.uneven, case, mechanism)
    assert [len(each["steps"]) for each in found] == [2 * len(UNEVEN[case][1])] * 2


def test_a_nan_in_a_tail_that_one_rank_has_no_part_in(ranks):
    assert [len(each["steps"]) for each in trained(ddp_scenarios.uneven_nan)] == [4, 4]


def test_a_flushed_tail_leaves_parameters_without_gradients_alone(ranks):
    for each in trained(ddp_scenarios.tail_with, lambda: Net(extra=True)):
        assert each["touched"] == []


def test_a_flushed_tail_of_sparse_gradients(ranks):
    trained(ddp_scenarios.tail_with, Sparse)


@pytest.mark.parametrize("make", [ddp_scenarios.Halves, ddp_scenarios.SparseHalves])
def test_a_flushed_tail_of_different_gradients_on_each_rank(ranks, make):
    trained(ddp_scenarios.halves, make)


@pytest.mark.parametrize("num_micro", [1, 4])
@named(["plain", "amp scaler", "apex"])
def test_a_nan_on_one_rank_leaves_the_windows_step_out_on_all(ranks, mechanism, num_micro):
    left_out = 3 if num_micro == 1 else 4
    found = trained(ddp_scenarios.skipped, mechanism, num_micro)
    for each in found:
        assert each["steps"] == [end for end in closing(num_micro) if end != left_out]
    text = f"on rank 1 (iteration 3); the other ranks' are. The optimizer's step of iteration {left_out} is left out."
    assert [each["said"] for each in found] == [[f"The loss is not finite {text}"], []]
    assert found[0]["scaler"] == found[1]["scaler"]


@pytest.mark.parametrize("num_micro", [1, 4])
@pytest.mark.parametrize("mechanism", ["plain", "amp scaler"])
def test_a_nan_on_one_rank_raises_the_same_error_on_all(ranks, mechanism, num_micro):
    found = trained(ddp_scenarios.raised, mechanism, num_micro)
    assert found[0]["text"] == found[1]["text"]
    assert "The loss is not finite on rank 1 (iteration 6); the other ranks' are." in found[0]["text"]
    assert [each["iteration"] for each in found] == [6 if num_micro == 1 else 8] * 2


def test_a_nan_on_all_ranks_does_not_call_any_finite(ranks):
    for each in trained(ddp_scenarios.raised, "plain", 4, (0, 1)):
        assert "not finite on rank 0 (iteration 6), rank 1 (iteration 6). No rank has stepped" in each["text"]


@pytest.mark.parametrize("how", ["carry", "drop"])
def test_a_nan_in_a_window_that_is_given_up_is_forgotten(ranks, how):
    assert trained(ddp_scenarios.forgotten_nan, how)[0]["steps"] == [3, 3]


@pytest.mark.parametrize("num_micro", [1, 4])
@pytest.mark.parametrize("mechanism", ["plain", "amp scaler"])
def test_the_reported_norm_is_that_of_the_averaged_unscaled_gradient(ranks, mechanism, num_micro):
    found = trained(ddp_scenarios.clipped, mechanism, num_micro)
    assert torch.equal(found[0]["norms"], found[1]["norms"])
    assert torch.allclose(found[0]["norms"], found[0]["norms_expected"], rtol=1e-6)
    assert found[0]["norms"].min() > 0.3  # so that clipping has something to do


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("mechanism", ["plain", "amp scaler"])
def test_a_run_resumed_inside_a_window_is_the_uninterrupted_one(ranks, mechanism, how):
    for stop in (3, 6, 8):  # six is an epoch's end
        for each in trained(ddp_resuming.resumed_after, mechanism, how, stop, tolerance=0):
            assert each["same"] == {"losses": True, "optimizer": True, "scaler": True, "first": stop + 1}


@pytest.mark.parametrize("name", DDP_OPTIONS)
def test_options_of_ddp_resume_inside_a_window(ranks, name):
    # With a static graph the first micro-batch reduces, so the sum has another order.
    exact = name != "static graph"
    for each in trained(ddp_resuming.resumed_with, name, tolerance=0 if exact else 1e-6):
        assert each["same"] == {"losses": True, "optimizer": exact, "scaler": True, "first": 8}


def test_fake_apex_resumes_inside_a_window(ranks):
    for each in trained(ddp_resuming.apex_resumed, tolerance=0):
        assert each["same"] == {"losses": True, "optimizer": True, "scaler": True, "first": 8}
        assert each["loaded"] == {"loss_scaler0": {"loss_scale": 8.0, "unskipped": 2}}


def test_a_nan_before_the_checkpoint_counts_after_it(ranks):
    for each in trained(ddp_resuming.nan_resumed, tolerance=0):
        assert each["same"] == {"losses": True, "optimizer": True, "scaler": True, "first": 8}


def test_each_rank_of_a_deterministic_run_goes_on_with_its_own_seed_and_random_states(ranks):
    found = trained(ddp_resuming.deterministic_resumed, tolerance=0)
    for each in found:
        resumed, whole = each["losses"]
        assert resumed == whole
        assert len(set(each["seeds"])) == 1
    assert found[0]["seeds"] != found[1]["seeds"]


def test_resumed_without_its_gradients_a_window_is_the_mean_of_what_it_holds(ranks):
    assert trained(ddp_resuming.without_gradients)[0]["steps"] == [4, 8, 12]


@three
def test_another_world_size_warns_and_goes_on(monkeypatch):
    with distrain.init(seed=0) as world:
        ddp_resuming.before_another_world()
    if world.rank == 2:
        return
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with distrain.init(seed=0):
        found = trained(ddp_resuming.in_another_world)
    assert [each["steps"] for each in found] == [[8, 12]] * 2
    (said,), nothing = [each["said"] for each in found]
    assert "gradients of 2 micro-batches on 3 ranks, and there are 2 ranks now" in said
    assert nothing == []


def test_a_checkpoint_where_one_rank_alone_is_inside_a_window(ranks):
    assert [each["held"] for each in trained(ddp_resuming.saved_unevenly)] == [0, 2]


@pytest.mark.parametrize("name", DDP_OPTIONS)
def test_options_of_ddp_accumulate(ranks, name):
    for each in trained(ddp_scenarios.with_options, name):
        assert each["reductions"] == ([1, 4, 8] if name == "static graph" else [4, 8])


@pytest.mark.deep
def test_a_compiled_ddp_model_does_not_reduce_before_the_last_micro_batch(ranks):
    for each in trained(ddp_scenarios.compiled):
        assert each["reductions"] == [4, 8]


def test_without_set_to_none_gradients_are_zeros_when_a_window_begins(ranks):
    for each in trained(ddp_scenarios.zeros_kept):
        assert [iteration for iteration, _ in each["seen"]] == list(range(2, 17))
        assert [iteration for iteration, zero in each["seen"] if zero] == [5, 9, 13]


def after_steps(model, numbers):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for number in numbers:
        draw = torch.Generator().manual_seed(1000 * number + dist.get_rank())
        optimizer.zero_grad()
        model(torch.randn(8, 64, generator=draw)).pow(2).mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@three
@pytest.mark.parametrize(
    "options", [{}, {"find_unused_parameters": True}, {"static_graph": True}, {"bucket_cap_mb": 0.03}]
)
def test_among_three_ranks_a_resumed_model_goes_on_to_the_very_same_weights(ranks, options):
    """DDP alone begins with other buckets than it goes on with, and three numbers add up otherwise in another order."""

    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(6)])

    whole = distrain.prepare(model(), ddp_options=options)
    after_steps(whole, range(3))
    saved = {name: value.clone() for name, value in whole.module.state_dict().items()}
    expected = after_steps(whole, range(3, 6))

    resumed = distrain.prepare(model(), ddp_options=options)
    resumed.module.load_state_dict(saved)
    assert all(map(torch.equal, after_steps(resumed, range(3, 6)), expected))
