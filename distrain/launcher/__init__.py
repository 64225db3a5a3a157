"""Starting the workers: supervisor, fork server, torch's elastic agent, and the worker's bootstrap.

supervisor            torch-free; the process the user started
   └─ fork server     imports torch once, has one thread and no CUDA context
        ├─ agent      torch.distributed.elastic's, forked; asks the fork server for workers
        └─ rank 0 … rank N-1
"""
