"""The verdicts of a smoke test on findings that are made up: what real ranks cannot easily be brought to."""

from __future__ import annotations

import copy

import pytest

from distrain.launcher.smoke_checks import checks, table
from distrain.launcher.smoke_data import judge_data

RANK = {
    "rank": 0,
    "ended": "exit",
    "steps": 4,
    "losses": [[n, (1.0 / n).hex()] for n in range(1, 5)],
    "batches": {str(n): f"batch {n}" for n in range(1, 5)},
    "parameters": ["weight", "bias"],
    "without": [],
    "not_finite": {},
    "unstepped": [],
    "idle": [],
    "weights": [
        {"when": "start", "steps": 0, "names": ["weight", "bias"], "prints": ["a", "b"]},
        {"when": "end", "steps": 4, "names": ["weight", "bias"], "prints": ["c", "d"]},
    ],
    "checkpoint": {
        "objects": {"model": "Net"},
        "optimizers": [],
        "is_loader_attached": True,
        "others": {"StepLR": ["2 steps"], "AveragedModel": ["a", "b"]},
        "saved_at": 2,
        "resumed_at": None,
        "why_not": "",
    },
}
DATA = {"used": [], "available": 8, "why_not": "", "batch_size": 2, "drops_last": False, "probe": "p", "batches": []}


def ranks(num=2, **changes):
    return [{**copy.deepcopy(RANK), "rank": rank, **copy.deepcopy(changes)} for rank in range(num)]


def resumed(num=2, **changes):
    found = ranks(num, losses=RANK["losses"][2:], **changes)
    for each in found:
        each["checkpoint"]["resumed_at"] = 2
    return found


def data(*used, **changes):
    return [{**DATA, "used": list(each), **changes} for each in used]


GOOD_DATA = data(range(0, 8, 2), range(1, 8, 2))


def verdicts(starts, fed=GOOD_DATA, trouble="", left=()):
    return {each.name: each for each in checks(starts, fed, trouble=trouble, left=left)}


def test_all_is_well(golden):
    found = checks([ranks(), resumed()], GOOD_DATA, trouble="", left=[])
    assert {each.standing for each in found} == {"passed"}
    golden("smoke-passed.txt", table(found) + "\n")


def test_a_table_of_everything_that_can_be_said(golden):
    first = ranks(without=["head.weight"], unstepped=["tail"])
    first[1]["weights"][1]["prints"] = ["c", "x"]
    first[0]["losses"][2] = [3, float("inf").hex()]
    same = data(range(8), range(8))
    found = checks([first, []], same, trouble="root cause: rank 1 on h0: KeyError: 'x'", left=["sleep 9 (pid 7)"])
    golden("smoke-failed.txt", table(found) + "\n")


def test_a_rank_without_findings_leaves_nothing_to_compare():
    found = verdicts([[ranks()[0], None]], [None, None], trouble="root cause: rank 1 on h0: SIGSEGV")
    assert found["script"].standing == "failed"
    assert {found[name].standing for name in ("losses", "gradients", "weights", "data", "checkpoint")} == {"unknown"}


def test_one_rank_has_nobody_to_agree_with():
    found = verdicts([ranks(1), resumed(1)], data(range(8)))
    assert (found["weights"].standing, found["weights"].todo) == ("unknown", "--nproc 2")
    assert found["data"].why == "8 samples, each once"


def test_a_rank_that_takes_no_step():
    first = ranks()
    first[1]["steps"] = 0
    assert verdicts([first])["weights"].why == "rank 0 took 4 steps; rank 1 took 0 steps"


def test_parameters_that_are_spread_over_the_ranks_cannot_be_compared():
    first = ranks()
    for each in first:
        each["weights"][1]["prints"] = ["", "d"]
    assert verdicts([first])["weights"].standing == "unknown"


def test_ranks_that_begin_apart_have_failed_also_where_all_weights_end_as_nan():
    first = ranks()
    first[1]["weights"][0]["prints"] = ["x", "b"]
    assert verdicts([first])["weights"].why == (
        "1 of 2 parameters differ between the ranks, already before the first step: weight"
    )


def test_ranks_with_other_parameters():
    first = ranks()
    first[1]["weights"][1]["names"] = ["weight"]
    assert verdicts([first])["weights"].why == (
        "the parameters differ between the ranks, after 4 steps: their names are others"
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda rank: rank["checkpoint"].update(resumed_at=0),
            "rank 1: saved after iteration 2, resumed after iteration 0",
        ),
        (lambda rank: rank["checkpoint"].update(resumed_at=None), "rank 1: saved after iteration 2, resumed nowhere"),
        (
            lambda rank: rank["batches"].update({"4": "other"}),
            "rank 1: iteration 4 got other data than without the stop",
        ),
        (
            lambda rank: rank["losses"].__setitem__(0, [3, (0.5).hex()]),
            "rank 1: the loss of iteration 3 is 0.5, 0.3333333 without the stop; its data are the same",
        ),
        (
            lambda rank: rank["weights"][1].update(prints=["c", "y"]),
            "rank 1: other weights at the end than without the stop: bias",
        ),
        (lambda rank: rank["weights"][1].update(names=["x", "y"]), "rank 1: the second start has other parameters"),
        (
            lambda rank: rank["checkpoint"]["others"].update(StepLR=["1 step"]),
            "rank 1: other state at the end than without the stop: StepLR",
        ),
        (lambda rank: rank.update(checkpoint=None), "the second start has not attached the Checkpointer"),
    ],
)
def test_a_second_start_that_goes_another_way(change, why):
    second = resumed()
    change(second[1])
    found = verdicts([ranks(), second])["checkpoint"]
    assert (found.standing, found.why) == ("failed", why)


@pytest.mark.parametrize(
    ("batch", "attached", "todo"),
    [
        ("other", True, "the data set is another one in each start"),
        ("other", False, "attach what is missing: the loader of distrain.dataloader. Attached are model"),
        ("batch 3", True, "something the training depends on is in no state_dict"),
    ],
)
def test_what_to_do_depends_on_what_differs(batch, attached, todo):
    first, second = ranks(), resumed()
    second[0]["batches"]["3"] = batch
    second[0]["losses"][0] = [3, (0.5).hex()]
    first[0]["checkpoint"]["is_loader_attached"] = attached
    assert verdicts([first, second])["checkpoint"].todo.startswith(todo)


def test_states_that_come_and_go_are_not_compared():
    second = resumed()
    second[0]["checkpoint"]["others"] = {"AveragedModel": ["c"]}
    assert verdicts([ranks(), second])["checkpoint"].standing == "passed"


def test_what_to_do_about_state_that_was_forgotten():
    second = resumed()
    second[0]["checkpoint"]["others"]["StepLR"] = ["1 step"]
    assert verdicts([ranks(), second])["checkpoint"].todo == (
        "attach it as well, as in scheduler=… or average=…. Attached are model"
    )


def test_an_optimizer_without_a_step_is_told():
    assert verdicts([ranks(idle=["Adam of 2 parameters"])])["gradients"].why.endswith(
        "; not exercised, without a step: Adam of 2 parameters"
    )


def test_weights_that_differ_where_a_parameter_gets_no_gradient():
    first = ranks(without=["bias"])
    first[1]["weights"][1]["prints"] = ["c", "x"]
    assert verdicts([first])["weights"].todo.startswith("mend the gradients first")


def test_a_checkpoint_of_a_script_that_failed_later_is_not_judged():
    found = verdicts([ranks(), [None, None]], trouble="root cause: …")["checkpoint"]
    assert (found.standing, found.why) == (
        "unknown",
        "saved after iteration 2; the script failed before it had gone on",
    )


@pytest.mark.parametrize(
    ("used", "changes", "standing", "why"),
    [
        ([range(0, 8, 2), range(1, 8, 2)], {}, "passed", "8 samples, each on one rank"),
        ([range(8), range(8)], {}, "failed", "every rank gets the same 8 of 8 samples"),
        ([[0, 1, 2, 3], [3, 4, 5, 6, 7]], {}, "failed", "1 of 8 samples go to several ranks"),
        ([[0, 1, 2, 0], [3, 4, 5, 6, 7]], {}, "failed", "1 come to a rank more than once in an epoch"),
        ([[0, 1, 2], [4, 5, 6]], {}, "failed", "2 of 8 samples reach no rank in an epoch"),
        (
            [[0, 1, 2], [4, 5, 6]],
            {"drops_last": True},
            "passed",
            "8 samples, each on one rank; 2 are left out by drop_last",
        ),
        ([[0], [4]], {"drops_last": True}, "failed", "6 of 8 samples reach no rank in an epoch"),
        (
            [[0, 2, 4, 6], [1, 3, 5, 0]],
            {"available": 7},
            "passed",
            "7 samples, each on one rank; 1 come twice, to fill the last batches up",
        ),
        (
            [[0, 1, 4, 0], [2, 3, 1, 2]],
            {"available": 5},
            "passed",
            "5 samples, each on one rank; 3 come twice, to fill the last batches up",
        ),
        (
            [[0, 1, 4], [2, 3, 1, 2]],
            {"available": 5},
            "failed",
            "1 of 5 samples go to several ranks; 1 come to a rank more than once in an epoch",
        ),
        ([[10, 11], [12, 13]], {"available": [10, 11, 12, 13]}, "passed", "4 samples, each on one rank"),
        ([[0], [1]], {"used": None, "why_not": "it is a stream"}, "unknown", "it is a stream"),
    ],
)
def test_which_samples_reach_which_rank(used, changes, standing, why):
    assert judge_data(data(*used, **changes), ranks())[:2] == (standing, why)


def test_a_rank_that_was_fed_by_no_loader():
    assert judge_data([GOOD_DATA[0], None], ranks())[:2] == (
        "failed",
        "no batch of a DataLoader was trained on by rank 1",
    )
