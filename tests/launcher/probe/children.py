"""The probe's children: every way to start one, from a script, with what is defined in `__main__`."""

import concurrent.futures
import json
import multiprocessing
import os
import sys

import facts
import torch
import torch.multiprocessing
from torch.utils.data import DataLoader, Dataset

METHODS = ("fork", "spawn", "forkserver")


class Squares(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.tensor([index * index, int(os.environ["RANK"]), int(os.getppid() == PARENT or PARENT == 0)])


PARENT = 0 if __name__ == "__mp_main__" else os.getpid()


def look(queue, tensor):
    tensor.add_(1)
    queue.put(
        {
            "argv": sys.argv,
            "path": sys.path,
            "main": [sys.modules["__main__"].__name__, getattr(sys.modules["__main__"], "__file__", "absent")],
            "this module": __name__,
            "start method": multiprocessing.get_start_method(allow_none=True),
            "process": [multiprocessing.current_process().name, multiprocessing.current_process().daemon],
            "parent": multiprocessing.parent_process().pid == os.getppid() or "by way of a server",
            "rank": os.environ["RANK"],
            "threads": torch.get_num_threads(),
            "session": os.getsid(0) == os.getsid(os.getppid()),
            "cwd": os.getcwd(),
        }
    )


def square(number):
    return number * number


def shout(index, folder):
    with open(os.path.join(folder, f"shout-{index}"), "w") as file:
        file.write(f"{index} of {os.environ['RANK']}, {torch.get_num_threads()} threads")


def attempt(function, *args):
    try:
        return function(*args)
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"


def by_process(method):
    context = torch.multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    tensor = torch.zeros(2).share_memory_()
    process = context.Process(target=look, args=(queue, tensor))
    process.start()
    found = queue.get()
    process.join()
    return {**found, "exit code": process.exitcode, "shared tensor": tensor.tolist()}


def by_loader(method):
    loader = DataLoader(Squares(), batch_size=2, num_workers=2, multiprocessing_context=method)
    return [batch.tolist() for batch in loader]


def by_pool(method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(square, range(4))


def by_executor(method):
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        return list(executor.map(square, range(3)))


def by_torch(folder):
    torch.multiprocessing.spawn(shout, args=(folder,), nprocs=2)
    texts = []
    for index in range(2):
        path = os.path.join(folder, f"shout-{index}")
        with open(path) as file:
            texts.append(file.read())
        os.remove(path)
    return texts


def by_manager():
    with multiprocessing.Manager() as manager:
        shared = manager.dict(answer=42)
        return dict(shared)


def start_method_can_be_set():
    found = [multiprocessing.get_start_method(allow_none=True)]
    for method in METHODS:
        multiprocessing.set_start_method(method, force=method != "fork")
        found.append(multiprocessing.get_start_method())
    return [*found, attempt(multiprocessing.set_start_method, "spawn")]


def main(folder, kinds):
    found = {}
    if "set" in kinds:
        found["set_start_method"] = attempt(start_method_can_be_set)
    for method in METHODS:
        if method in kinds:
            found[f"{method} process"] = attempt(by_process, method)
            found[f"{method} loader"] = attempt(by_loader, method)
            found[f"{method} executor"] = attempt(by_executor, method)
    if "fork" in kinds:
        found["fork pool"] = attempt(by_pool, "fork")
        found["manager"] = attempt(by_manager)
    if "torch" in kinds:
        found["torch spawn"] = attempt(by_torch, folder)
    facts.write(folder, json.loads(json.dumps(found)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","))
