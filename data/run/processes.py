"""Several processes that compute what one would: `torchrun --nproc_per_node 2 ppo.py`.

Every process holds the whole batch and draws the same random numbers. Each works on its share of
the micro-batches, and gradients are summed over all processes. A loss is weighted by the
micro-batch's share of the whole batch, so neither the size of micro-batches nor the number of
processes changes the result. The first process alone writes files.
"""

import os

import torch
import torch.distributed as dist

_store = None  # what the processes share beside the group: it outlives a process that dies


def join(backend):
    """Begin to work with the processes that torchrun has started."""
    global _store
    _store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, store=dist.PrefixStore("group", _store), rank=rank,
                            world_size=size)


def speaks():
    """Whether this process is the one to say what ended them all: the first that asks."""
    if _store is None:
        return os.environ.get("RANK", "0") == "0"
    try:
        return _store.add("said", 1) == 1
    except RuntimeError:  # torchrun itself is gone
        return False


def lost(error):
    """Whether an exception says that another process is gone."""
    return world() > 1 and (isinstance(error, dist.DistError) or "peer" in str(error)
                            or "gloo" in str(error))


def any_of(flag):
    """Whether a flag is set in any process -> bool, when every process has come here."""
    return bool(all_reduce(torch.tensor(float(flag))))


def world():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def micro_batches(batch, size=0):
    """Split a batch (a tensor or a list) -> list of the micro-batches of this process.

    Each has at most `size` rows; 0: as many as there are. One process works on all of them in turn.
    """
    size = min(size or len(batch), -(-len(batch) // world()))
    return [batch[i:i + size] for i in range(0, len(batch), size)][rank()::world()]


def all_reduce(tensor):
    """Sum a tensor over all processes, in place -> the tensor."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_gather(numbers):
    """Sum a dict's numbers over all processes -> dict. A process without rows has no numbers."""
    if world() == 1:
        return dict(numbers)
    every = [None] * world()
    dist.all_gather_object(every, dict(numbers))
    return {name: sum(found.get(name, 0.0) for found in every) for name in max(every, key=len)}
