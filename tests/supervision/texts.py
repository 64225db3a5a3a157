"""What torch 2.13.0 says when a peer is lost, and when it is not.

The texts of gloo, the store and the DataLoader were collected from two ranks on one host, with the ports they had; those
of NCCL and CUDA are quoted from the issues named beside them.
"""

# ruff: noqa: E501 - the texts stand as they are

_GLOO = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp"
_GLHF = "Check the logs of the remote worker before reporting an error. GLHF! 🏖️"

CLOSED = f"{_GLOO}/pair.cc:553] Connection closed by peer [127.0.0.1]:6810. This is typically caused by a remote worker crashing. {_GLHF}"
RESET = f"{_GLOO}/pair.cc:537] Read error [127.0.0.1]:1460: Connection reset by peer. This is typically caused by a remote worker hanging or bugs in the application. {_GLHF}"
LATE = f"{_GLOO}/unbound_buffer.cc:78] Timed out waiting 2000ms for recv operation to complete"
MONITORED = f"[Rank 0]: Rank 1 failed to pass monitoredBarrier in 1000 ms\n Original exception: \n{_GLOO}/unbound_buffer.cc:78] Timed out waiting 1000ms for recv operation to complete"
UNUSED = "Expected to have finished reduction in the prior iteration before starting a new one. This error indicates that your module has parameters that were not used in producing loss. You can enable unused parameter detection by passing the keyword argument `find_unused_parameters=True` to `torch.nn.parallel.DistributedDataParallel`, and by \nmaking sure all `forward` function outputs participate in calculating loss. "
SHAPES = "[1]: params[0] in this process with sizes [4, 5] appears not to match sizes of the same param in process 0."
NO_BYTES = "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?"
IN_USE = "The server socket has failed to listen on any local network address. port: 33877, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
EXITED = "DataLoader worker (pid 10857) exited unexpectedly with exit code 1. Details are lost due to multiprocessing. Rerunning with num_workers=0 may give better error trace."
MISMATCH = [
    "terminate called after throwing an instance of 'gloo::EnforceNotMet'",
    "  what():  [enforce fail at /__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:456] op.preamble.length <= op.nbytes. 4004 vs 4. Received data size doesn't match expected size. Is there a distributed collective mismatch in your code?",
]
# NVIDIA/nccl#2076
NCCL_REMOTE = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, remote process exited or there was a network error, NCCL version 2.21.5\nncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\nLast error:\nsocketProgressOpt: Call to recv from 172.17.0.2<33759> failed : Connection reset by peer"
# NVIDIA/nccl#1514
NCCL_INTERNAL = "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1275, internal error, NCCL version 2.14.3\nncclInternalError: Internal check failed.\nLast error:\nNet : Connection closed by remote peer user<50260>"
# NVIDIA/Megatron-LM#935
WATCHDOG = [
    "terminate called after throwing an instance of 'c10::DistBackendError'",
    "  what():  [PG 1 Rank 1] Process group watchdog thread terminated with exception: [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=199, OpType=_REDUCE_SCATTER_BASE, NumelIn=7098994688, NumelOut=443687168, Timeout(ms)=600000) ran for 600060 milliseconds before timing out.",
]
# pytorch/pytorch#111187
NCCL_CUDA = "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1331, unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.18.1"
CUDA_OOM = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.12 GiB is free."
)
ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect."
