"""Several processes that compute what one would: `torchrun --nproc_per_node 2 ppo.py`.

Every process knows the whole batch, draws the same random numbers, and computes its own rows.
Gradients are summed once a step. A part of a batch is weighted by its share of the whole batch, so
neither the size of parts nor the number of processes changes the result. The first alone writes.
"""

import ctypes
import os
import signal
import sys

import torch
import torch.distributed as dist

_store = None  # shared by the processes beside the group: it outlives a process that dies


def join(backend):
    """Begin to work with the processes that torchrun has started."""
    global _store
    if sys.platform == "linux":  # end with torchrun, even if that is killed
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    _store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, store=dist.PrefixStore("group", _store), rank=rank,
                            world_size=size)


def reports_error():
    """True for the first process that asks, so that only one prints the error."""
    if _store is None:  # some job scripts export RANK and start no other process
        return os.environ.get("RANK", "0") == "0" or not dist.is_torchelastic_launched()
    try:
        return _store.add("reported", 1) == 1
    except RuntimeError:  # torchrun itself is gone
        return False


def peer_died(error):
    """True for an exception that says that another process is gone."""
    return world() > 1 and (isinstance(error, dist.DistError) or "peer" in str(error)
                            or "gloo" in str(error))


def world():
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def any_of(flag):
    """True if a flag is set in any process; every process waits here for the others."""
    return bool(all_reduce(torch.tensor(float(flag))))


def all_reduce(*tensors):
    """Sum tensors of one type over all processes, in place, in one message -> the first."""
    if world() > 1:
        flat = torch.cat([x.flatten() for x in tensors])
        dist.all_reduce(flat)
        for x, total in zip(tensors, flat.split([x.numel() for x in tensors])):
            x.copy_(total.view_as(x))
    return tensors[0]
