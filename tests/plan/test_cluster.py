"""Where a process was started, from the variables that schedulers set."""

from __future__ import annotations

import pytest

from distrain.errors import UsageError
from distrain.plan import Program, cluster, detect, resolve

SCRIPT = Program(kind="script", target="train.py")

JOB = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "gpu[01-02]",
    "SLURM_NNODES": "2",
    "SLURM_TASKS_PER_NODE": "1(x2)",
}
STEP = {
    **JOB,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[01-02]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURMD_NODENAME": "gpu02",
}
A_TASK_A_RANK = {
    **STEP,
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "123.0;tcp://10.0.0.1,192.168.0.1:4567",
}
PODS = {
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "MASTER_ADDR": "job-master-0",
    "MASTER_PORT": "23456",
    "WORLD_SIZE": "3",
    "RANK": "2",
}
TPU = {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "t0,t1"}


@pytest.fixture(autouse=True)
def a_machine_without_gpus(monkeypatch):
    monkeypatch.setattr(detect, "visible_gpus", lambda environ: 0)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1", ["node1"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("r[1-2]n[09-10]", ["r1n09", "r1n10", "r2n09", "r2n10"]),
        ("a-b[1]-c,d", ["a-b1-c", "d"]),
        ("", []),
    ],
)
def test_host_lists(text, hosts):
    assert cluster.expand_hosts(text) == hosts


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (STEP, ("Slurm", 2, 1, "gpu01", None)),
        (
            {**STEP, "SLURM_NODEID": "0", "SLURMD_NODENAME": "gpu01", "SLURM_PROCID": "0"},
            ("Slurm", 2, 0, "gpu01", None),
        ),
        (JOB, ("Slurm", 1, 0, "gpu01", None)),
        (A_TASK_A_RANK, ("Slurm", 8, 5, "gpu01", (1, 4))),
        (OPEN_MPI, ("MPI", 4, 3, "10.0.0.1", (1, 2))),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MASTER_ADDR": "h"}, ("MPI", 2, 1, "h", None)),
        (PODS, ("Kubernetes", 3, 2, "job-master-0", None)),
        (TPU, ("TPU", 2, 1, "t0", None)),
    ],
    ids=["srun, a task a node", "on the first node", "no srun", "a task a rank", "open mpi", "pmi", "pods", "tpu"],
)
def test_the_place_is_found(environ, expected):
    found = cluster.find(environ)
    assert (found.scheduler, found.nnodes, found.node_rank, found.head, found.local_task) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_JOB_ID": "1"},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"},
        {**PODS, "LOCAL_RANK": "0"},
        {**PODS, "PET_NNODES": "3"},
    ],
)
def test_outside_of_jobs_there_is_none(environ):
    assert cluster.find(environ) is None


def test_an_array_task_and_a_heterogeneous_job():
    array = cluster.find({**STEP, "SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "11"})
    assert array.run_id == "slurm-4700_11"
    groups = {
        **STEP,
        "SLURM_HET_SIZE": "2",
        "SLURM_JOB_NODELIST_HET_GROUP_0": "cpu1",
        "SLURM_JOB_NODELIST_HET_GROUP_1": "gpu[01-02]",
        "SLURM_STEP_NUM_TASKS": "3",
    }
    found = cluster.find(groups)
    assert (found.nnodes, found.node_rank, found.head) == (3, 2, "cpu1")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({**A_TASK_A_RANK, "SLURM_STEP_TASKS_PER_NODE": "3(x2)"}, "Slurm's variables contradict each other: 8 tasks"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS is 'two'"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "4"}, "Open MPI's variables contradict each other"),
        ({**PODS, "RANK": "3"}, "Kubernetes' variables contradict each other: RANK=3, WORLD_SIZE=3"),
        ({**TPU, "TPU_WORKER_ID": "2"}, "TPU_WORKER_ID is 2 and TPU_WORKER_HOSTNAMES names 2 hosts"),
    ],
)
def test_contradictions_are_errors(environ, message):
    with pytest.raises(UsageError, match=message):
        cluster.find(environ)


def planned(environ, **flags):
    return resolve(SCRIPT, flags, environ=environ)


def test_inside_an_allocation_no_flag_is_needed():
    plan = planned(STEP)
    meeting = plan.meeting
    assert (meeting.min_nodes, meeting.max_nodes, meeting.node_rank) == (2, 2, 1)
    assert (meeting.backend, meeting.endpoint, meeting.run_id) == ("c10d", "gpu01:24711", "slurm-4711")
    assert plan.settings["nnodes"].origin == "detected"
    assert plan.settings["nnodes"].detail == "Slurm job 4711, 2 nodes: gpu01, gpu02, one task a node"


def test_a_task_for_each_rank_starts_one_worker():
    plan = planned(A_TASK_A_RANK)
    assert (plan.nproc, plan.meeting.max_nodes, plan.meeting.node_rank) == (1, 8, 5)
    with pytest.raises(UsageError, match="--nproc: got '4', and Slurm starts a process for each rank already"):
        planned(A_TASK_A_RANK, nproc="4")


def test_a_single_node_of_an_allocation_needs_no_meeting():
    assert planned(JOB).meeting is None
    assert planned(STEP, standalone="1").meeting is None


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        (STEP, {"nnodes": "4"}, "--nnodes: got '4', and the allocation has 2"),
        (JOB, {"nnodes": "2"}, "--nnodes: got '2', and distrain was started on one node only"),
        (STEP, {"node_rank": "2"}, "--node-rank: got 2 with at most 2 nodes; valid are 0 to 1."),
        ({}, {"nnodes": "2"}, "several nodes need a place to meet: give --rdzv-endpoint HOST:PORT"),
        ({}, {"nnodes": "2:1"}, "--nnodes: got '2:1'; the fewest must be at least 1 and no more than the most."),
        ({}, {"nnodes": "two"}, "--nnodes: got 'two'; give a number of nodes, or the fewest and the most, as 1:4."),
        ({}, {"nnodes": "2", "rdzv_endpoint": "h:x"}, "--rdzv-endpoint: got 'h:x'; give HOST:PORT"),
        ({}, {"nnodes": "2", "rdzv_endpoint": "h:99999"}, "--rdzv-endpoint: got 'h:99999'; give HOST:PORT"),
        (
            {},
            {"nnodes": "2", "master_addr": "h", "master_port": "99999"},
            "--master-port: got 99999; a port is at most",
        ),
        (
            {},
            {"nnodes": "2", "rdzv_endpoint": "h", "rdzv_conf": "a"},
            "--rdzv-conf: got 'a'; give settings as key=value",
        ),
    ],
)
def test_what_contradicts_the_allocation_or_itself_is_refused(environ, flags, message):
    with pytest.raises(UsageError, match=message):
        planned(environ, **flags)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"nnodes": "2", "rdzv_endpoint": "h:1"}, ("c10d", "h:1", None)),
        ({"nnodes": "2", "rdzv_endpoint": "h"}, ("c10d", "h:29400", None)),
        ({"nnodes": "2", "rdzv_endpoint": "[::1]:5"}, ("c10d", "[::1]:5", None)),
        ({"nnodes": "2", "master_addr": "h", "node_rank": "1"}, ("c10d", "h:29500", 1)),
        ({"nnodes": "2", "master_addr": "h", "master_port": "7", "node_rank": "0"}, ("c10d", "h:7", 0)),
        ({"nnodes": "2", "rdzv_backend": "static", "rdzv_endpoint": "h", "node_rank": "1"}, ("static", "h:29500", 1)),
        ({"rdzv_backend": "c10d", "rdzv_endpoint": "h:1"}, ("c10d", "h:1", None)),
        ({"master_port": "7"}, ("c10d", "127.0.0.1:7", None)),
        ({"rdzv_backend": "etcd-v2", "rdzv_endpoint": "h:1"}, ("etcd-v2", "h:1", None)),
    ],
)
def test_where_the_nodes_meet(flags, expected):
    meeting = planned({}, **flags).meeting
    assert (meeting.backend, meeting.endpoint, meeting.node_rank) == expected


@pytest.mark.parametrize(
    "flags", [{}, {"standalone": "1"}, {"rdzv_backend": "c10d"}, {"nnodes": "1:1"}, {"rdzv_endpoint": "localhost:0"}]
)
def test_one_node_meets_nobody(flags):
    assert planned({}, **flags).meeting is None
