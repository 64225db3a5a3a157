"""Where a process was started, from the variables that schedulers set."""

from __future__ import annotations

import re

import pytest

from distrain.errors import UsageError
from distrain.plan import Program, cluster, detect, resolve
from distrain.plan.cluster import tpu
from distrain.plan.cluster.hosts import expand_counts, expand_hosts

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
SCRIPT_OF_A_GROUPED_JOB = {
    "SLURM_JOB_ID": "2",
    "SLURM_HET_SIZE": "2",
    "SLURM_JOB_NODELIST": "n1",
    "SLURM_JOB_NODELIST_HET_GROUP_0": "n1",
    "SLURM_JOB_NODELIST_HET_GROUP_1": "n[2-3]",
    "SLURM_NTASKS": "1",
    "SLURM_TASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_NODEID": "0",
    "SLURM_LOCALID": "0",
    "SLURMD_NODENAME": "n1",
}
"""As Slurm 22.05 sets them; the same for the next."""


def a_step_of_a_grouped_job(hosts, num_tasks, rank, host):
    return {
        **SCRIPT_OF_A_GROUPED_JOB,
        "SLURM_STEP_ID": "2",
        "SLURM_STEP_NODELIST": hosts,
        "SLURM_STEP_NUM_TASKS": str(num_tasks),
        "SLURM_STEP_TASKS_PER_NODE": f"1(x{num_tasks})" if num_tasks > 1 else "1",
        "SLURM_PROCID": str(rank),
        "SLURM_NODEID": str(rank),
        "SLURMD_NODENAME": host,
    }


OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "123.0;tcp://10.0.0.1,192.168.0.1:4567",
}
OF_ONE_HOST = {"OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
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
    assert expand_hosts(text) == hosts


def test_counts_of_tasks():
    assert expand_counts("2(x3),1") == [2, 2, 2, 1]
    assert expand_counts("") == []


@pytest.mark.parametrize("text", ["n[01-", "n[a-b]", "n[3-1]", "n[]", "n]", "n[1"])
def test_what_is_no_list_of_hosts_is_an_error_that_names_the_variable(text):
    with pytest.raises(UsageError, match=re.escape(f"SLURM_STEP_NODELIST is {text!r}; Slurm writes a list of hosts")):
        cluster.find({**STEP, "SLURM_STEP_NODELIST": text})
    with pytest.raises(UsageError, match="SLURM_JOB_NODELIST is "):
        cluster.find({**JOB, "SLURM_JOB_NODELIST": text})


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


@pytest.mark.parametrize(
    ("environ", "scheduler"),
    [
        ({**STEP, **OPEN_MPI}, "MPI"),
        ({**STEP, **HYDRA}, "MPI"),
        ({**JOB, **OPEN_MPI}, "MPI"),
        ({**STEP, "PMI_RANK": "1", "PMI_SIZE": "2", "PMI_JOBID": "4711.0"}, "Slurm"),  # srun --mpi=pmi2
    ],
)
def test_processes_of_mpirun_in_an_allocation_are_one_world(environ, scheduler):
    found = cluster.find(environ)
    assert found.scheduler == scheduler
    if scheduler == "MPI":
        assert (found.nnodes, found.node_rank, found.head) == (4, 3, "gpu01")


def test_only_what_belongs_to_one_run_alone_is_its_id():
    key = {"OMPI_MCA_orte_precondition_transports": "87b6b4e9835a5822-9e6d9d317b04e406"}
    again = {**OPEN_MPI, "OMPI_MCA_ess_base_jobid": "83886081", "PMIX_NAMESPACE": "83886081"}
    ids = [cluster.find(each).run_id for each in (again, {**OPEN_MPI, **key}, {**again, **key})]
    assert ids[0] == ""
    assert len({*ids}) == 3
    for environ in (HYDRA, PODS, {**PODS, "PYTORCHJOB_NAME": "again"}, TPU):
        assert cluster.find(environ).run_id == ""
        plan = resolve(SCRIPT, {"device": "cpu"}, environ={**environ, "MASTER_ADDR": "h"})
        assert plan.meeting.run_id == "none"


def test_a_job_and_its_steps_have_ids_of_their_own_that_a_requeued_job_has_again():
    found = [cluster.find({**STEP, "SLURM_STEP_ID": step}) for step in ("0", "1", "4294967291")]
    assert [each.run_id for each in found] == ["slurm-4711.0", "slurm-4711.1", "slurm-4711"]
    assert len({each.port for each in found[:2]}) == 2
    assert cluster.find({**STEP, "SLURM_RESTART_COUNT": "1"}).run_id == "slurm-4711.0"
    array = cluster.find({**STEP, "SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "11"})
    assert array.run_id == "slurm-4700_11.0"


def test_derived_ports_are_none_that_linux_hands_out_or_torch_takes_by_default():
    for job in (1, 12500, 123456789, 4294901760):
        for step in (0, 1, 40):
            port = cluster.find({**STEP, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).port
            assert 20000 <= port < 29400


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (SCRIPT_OF_A_GROUPED_JOB, (1, 0, ("n1",), 3)),
        (a_step_of_a_grouped_job("n1", 1, 0, "n1"), (1, 0, ("n1",), 0)),
        (a_step_of_a_grouped_job("n[2-3]", 2, 1, "n3"), (2, 1, ("n2", "n3"), 0)),
        (a_step_of_a_grouped_job("n[1-3]", 3, 2, "n3"), (3, 2, ("n1", "n2", "n3"), 0)),
    ],
    ids=["the script", "group 0", "group 1", "both groups"],
)
def test_a_step_of_a_heterogeneous_job_is_on_its_own_hosts(environ, expected):
    found = cluster.find(environ)
    assert (found.nnodes, found.node_rank, found.hosts, found.only_here) == expected
    assert found.head == found.hosts[0]


@pytest.mark.parametrize(
    ("environ", "hosts", "tasks"),
    [
        (A_TASK_A_RANK, ("gpu01",) * 4 + ("gpu02",) * 4, tuple((task, 4) for task in range(4)) * 2),
        (
            {**A_TASK_A_RANK, "SLURM_DISTRIBUTION": "cyclic", "SLURM_PROCID": "3"},
            ("gpu01", "gpu02") * 4,
            tuple((task, 4) for task in (0, 0, 1, 1, 2, 2, 3, 3)),
        ),
        ({**A_TASK_A_RANK, "SLURM_DISTRIBUTION": "plane"}, (), ()),
        ({**A_TASK_A_RANK, "SLURM_PROCID": "2"}, (), ()),
        (OPEN_MPI, (), ()),
        ({**OPEN_MPI, **OF_ONE_HOST}, (), tuple((task, 4) for task in range(4))),
    ],
    ids=["block", "cyclic", "another order", "contradicted", "several hosts of mpirun", "one host"],
)
def test_where_the_other_tasks_are_is_told_where_it_is_known(environ, hosts, tasks):
    found = cluster.find(environ)
    assert (found.hosts, found.local_tasks) == (hosts, tasks)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({**A_TASK_A_RANK, "SLURM_STEP_TASKS_PER_NODE": "3(x2)"}, "Slurm's variables contradict each other: 8 tasks"),
        ({**A_TASK_A_RANK, "SLURM_STEP_TASKS_PER_NODE": "4(x"}, r"SLURM_STEP_TASKS_PER_NODE is '4\(x'"),
        (
            {**STEP, "SLURM_NODEID": "2", "SLURMD_NODENAME": "gpu09"},
            "contradict each other: SLURM_NODEID is 2, .* 2 nodes",
        ),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS is 'two'"),
        ({**STEP, "SLURM_JOB_ID": "abc"}, "SLURM_JOB_ID is 'abc'; the scheduler sets a whole number there."),
        ({**STEP, "SLURM_JOB_ID": "47²"}, "SLURM_JOB_ID is"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "4"}, "Open MPI's variables contradict each other"),
        ({**PODS, "RANK": "3"}, "Kubernetes' variables contradict each other: RANK=3, WORLD_SIZE=3"),
        ({**TPU, "TPU_WORKER_ID": "2"}, "TPU_WORKER_ID is 2 and TPU_WORKER_HOSTNAMES names 2 hosts"),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, "TPU_WORKER_HOSTNAMES names 2 hosts and TPU_WORKER_ID is not set"),
        ({**TPU, "TPU_WORKER_HOSTNAMES": "t0,t0"}, "TPU_WORKER_HOSTNAMES names t0 more than once"),
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
    assert (meeting.backend, meeting.endpoint, meeting.run_id) == ("c10d", "gpu01:24711", "slurm-4711.0")
    assert plan.settings["nnodes"].origin == "detected"
    assert plan.settings["nnodes"].detail == "Slurm job 4711, step 0, 2 nodes: gpu01, gpu02, one task a node"


def test_a_task_for_each_rank_starts_one_worker():
    plan = planned(A_TASK_A_RANK)
    assert (plan.nproc, plan.meeting.max_nodes, plan.meeting.node_rank) == (1, 8, 5)
    with pytest.raises(UsageError, match="--nproc: got '4', and Slurm starts a process for each rank already"):
        planned(A_TASK_A_RANK, nproc="4")


def test_a_single_node_of_an_allocation_needs_no_meeting():
    assert planned(JOB).meeting is None
    assert planned(STEP, standalone="1").meeting is None


def test_a_script_that_leaves_nodes_idle_is_told():
    (warning,) = planned(JOB).warnings
    assert warning.startswith(
        "the allocation has 2 nodes, and the run uses this one alone: distrain was not started on"
    )
    for said in ({"standalone": "1"}, {"nnodes": "1"}):
        assert planned(JOB, **said).warnings == ()
    assert planned({**JOB, "SLURM_JOB_NODELIST": "gpu01"}).warnings == ()


THREE = {**STEP, "SLURM_STEP_NODELIST": "gpu[01-03]", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "1(x3)"}


@pytest.mark.parametrize(("environ", "nnodes"), [(THREE, "2"), (THREE, "1:2"), (STEP, "1"), (A_TASK_A_RANK, "3")])
def test_fewer_nodes_than_were_started_are_refused(environ, nnodes):
    with pytest.raises(
        UsageError, match=r"--nnodes: got '.*', and Slurm has started \d processes .* give --standalone"
    ):
        planned(environ, nnodes=nnodes)
    assert planned(environ, standalone="1").meeting is None


@pytest.mark.parametrize(
    ("environ", "nnodes", "expected"),
    [(THREE, "3", (3, 3)), (THREE, "2:3", (2, 3)), (A_TASK_A_RANK, "2", (8, 8)), (A_TASK_A_RANK, "8", (8, 8))],
)
def test_as_many_as_were_started_may_be_said(environ, nnodes, expected):
    meeting = planned(environ, nnodes=nnodes).meeting
    assert (meeting.min_nodes, meeting.max_nodes) == expected


def test_a_launch_inside_a_worker_is_a_run_of_its_own():
    worker = {"RANK": "1", "TORCHELASTIC_RUN_ID": "x", "DISTRAIN_RUN_DIR": "/runs/x", "DISTRAIN_DEVICE": "cuda"}
    plan = planned({**STEP, **worker})
    assert (plan.meeting, plan.run_dir, plan.device) == (None, None, "cpu")
    assert str(planned(worker, run_dir="/mine").run_dir) == "/mine"
    assert str(planned({"DISTRAIN_RUN_DIR": "/runs/x"}).run_dir) == "/runs/x"


def test_the_hosts_of_a_slice_meet_at_the_first(monkeypatch):
    monkeypatch.setattr(detect, "visible_chips", lambda environ: (4, "4 TPU chips"))
    plan = planned(TPU)
    assert (plan.device, plan.nproc, plan.meeting.node_rank) == ("xla", 4, 1)
    assert (plan.meeting.min_nodes, plan.meeting.max_nodes, plan.meeting.endpoint) == (2, 2, "t0:29500")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"nnodes": "1:2"}, "--nnodes: got '1:2' for device xla, where a slice has all its hosts or none"),
        ({"nnodes": "3"}, "--nnodes: got '3', and the allocation has 2 (TPU host 1 of 2)"),
        ({"nnodes": "1"}, "--nnodes: got '1', and TPU has started 2 processes (TPU host 1 of 2)"),
        ({"xla_spmd": "1"}, "--xla-spmd: one process for all devices runs on one host so far, and there are 2 hosts"),
        ({"rdzv_backend": "static"}, "--rdzv-backend: got 'static' for device xla on 2 hosts (TPU host 1 of 2)"),
        (
            {"rdzv_conf": "store_type=file", "rdzv_endpoint": "/shared/store"},
            "--rdzv-conf: got 'store_type=file' for device xla on 2 hosts",
        ),
        ({"nproc": "1"}, "--nproc: got '1' for device xla on 2 hosts (TPU host 1 of 2), where torch_xla starts one"),
    ],
)
def test_what_the_hosts_of_a_slice_cannot_do(monkeypatch, flags, message):
    monkeypatch.setattr(detect, "visible_chips", lambda environ: (4, "4 TPU chips"))
    with pytest.raises(UsageError, match=re.escape(message)):
        planned(TPU, **flags)


METADATA = {
    "tpu-env": "ACCELERATOR_TYPE: 'v4-16'\nCHIPS_PER_HOST_BOUNDS: '2,2,1'\nWORKER_ID: '1'\nZONE: 'x'\n",
    "worker-network-endpoints": "unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.6",
}


def test_without_variables_a_slice_is_known_from_the_metadata_server(monkeypatch):
    monkeypatch.setattr(detect, "has_tpu_chips", lambda: True)
    found = tpu.placement({}, METADATA.get)
    assert (found.nnodes, found.node_rank, found.head, found.hosts) == (2, 1, "10.0.0.5", ("10.0.0.5", "10.0.0.6"))
    assert tpu.placement({}, {}.get) is None
    for environ in ({"TPU_SKIP_MDS_QUERY": "1"}, {"PJRT_DEVICE": "CPU"}):
        assert tpu.placement(environ, METADATA.get) is None
    with pytest.raises(UsageError, match="the TPU's metadata say that this is host 2 and name 2 hosts"):
        tpu.placement({}, {**METADATA, "tpu-env": "WORKER_ID: 2"}.get)
    with pytest.raises(UsageError, match="the TPU's metadata name its hosts as 'h0'"):
        tpu.placement({}, {**METADATA, "worker-network-endpoints": "h0"}.get)


def test_one_host_of_a_slice_can_be_used_alone(monkeypatch):
    monkeypatch.setattr(detect, "visible_chips", lambda environ: (4, "4 TPU chips"))
    plan = planned({**TPU, "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1"}, standalone="1")
    assert (plan.device, plan.nproc, plan.meeting, plan.placement) == ("xla", 4, None, None)
    alone = {"TPU_SKIP_MDS_QUERY": "true", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    assert plan.slice_env == {**alone, "TPU_HOST_BOUNDS": "1,1,1"}
    monkeypatch.setattr(detect, "has_tpu_chips", lambda: True)
    of_type = {"TPU_ACCELERATOR_TYPE": "v4-16", "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1"}
    assert tpu.this_host_alone({}, METADATA.get) == {**of_type, **alone, "TPU_HOST_BOUNDS": "1,1,1"}
    assert tpu.this_host_alone({}, {**METADATA, "worker-network-endpoints": "a:b:10.0.0.5"}.get) == {}
    assert tpu.this_host_alone({**TPU, "TPU_PROCESS_BOUNDS": "1,1,1"}, METADATA.get) == {}
    assert planned(TPU, standalone="1", device="cpu").slice_env == {}


def test_nobody_is_asked_on_a_machine_without_tpu_chips(monkeypatch):
    monkeypatch.setattr(detect, "has_tpu_chips", lambda: False)
    assert tpu.placement({"PJRT_DEVICE": "TPU"}, lambda name: pytest.fail(f"asked for {name}")) is None


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        (STEP, {"nnodes": "4"}, "--nnodes: got '4', and the allocation has 2"),
        (JOB, {"nnodes": "2"}, "--nnodes: got '2', and distrain was started on one node only"),
        (STEP, {"node_rank": "2"}, "--node-rank: got 2 with at most 2 nodes; valid are 0 to 1."),
        (
            {},
            {"node_rank": "1"},
            "--node-rank: got 1, and the run has one node, number 0. Say how many there are: --nnodes",
        ),
        ({}, {"node_rank": "1", "master_addr": "h"}, "--node-rank: got 1, and the run has one node"),
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
        ({}, {"nnodes": "1:2", "rdzv_endpoint": "h:0"}, "the nodes are to meet at h:0, and port 0 stands for any"),
        ({}, {"nnodes": "2", "master_addr": "h", "master_port": "0"}, "the nodes are to meet at h:0, and port 0"),
        (
            {},
            {"nnodes": "2", "rdzv_endpoint": "h", "rdzv_conf": "a"},
            "--rdzv-conf: got 'a'; give settings as key=value",
        ),
        ({}, {"rdzv_conf": "node_timeout=abc"}, "--rdzv-conf: node_timeout: got 'abc'; give a number of seconds above"),
        ({}, {"rdzv_conf": "node_timeout=0"}, "--rdzv-conf: node_timeout: got '0'"),
        ({}, {"rdzv_conf": "x=1,join_timeout=1.5"}, "--rdzv-conf: join_timeout: got '1.5'; give a whole number"),
        ({}, {"rdzv_backend": "c10"}, "--rdzv-backend: got 'c10'; valid are c10d, static, etcd, etcd-v2. Did you mean"),
        ({"PET_RDZV_BACKEND": "zeus"}, {}, "PET_RDZV_BACKEND: got 'zeus'; valid are"),
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
