"""Where and how precisely a program computes: threads, devices, bfloat16, memory."""

import contextlib
import copy
import functools
import math
import os
import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from data.run import processes
from data.run.cli import check
from data.run.system import UserError


THREADS = torch.get_num_threads()  # before any run has set another number


def setup(cfg):
    """Check the flags, set threads, precision and processes as they say -> the torch device."""
    global _bf16
    check(cfg)
    torch.set_num_threads(cfg.threads or min(THREADS, cpu_quota()))
    _bf16 = cfg.bf16
    # Products of fp32 on CUDA round their factors to 10 bits and add in fp32: several times faster.
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    device = choose_device(cfg.device)
    if device.startswith("mps") and cfg.bf16:
        raise UserError("--bf16 is for CPU and CUDA: leave it out with --device mps")
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        processes.join("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
    if processes.rank():
        sys.stdout = open(os.devnull, "w")
    return device


_bf16 = False  # as --bf16 says


def matrices(device):
    """A context in which matrix products are in bfloat16, with --bf16. Losses, heads and all of
    backward stay outside: autograd gives each gradient the type that its product had."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_bf16, cache_enabled=False)


@contextlib.contextmanager
def exact_products():
    """A context in which CUDA's products of fp32 do not round their factors (see `setup`)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def once_rounded(model):
    """With --bf16 a copy of a model that does not learn, whose matrices are rounded to bfloat16
    here and not in each forward pass: the same bits with a quarter fewer kernels."""
    if not _bf16:
        return model
    model = copy.deepcopy(model)
    for part in model.blocks.modules():
        if isinstance(part, torch.nn.Linear):
            part.to(torch.bfloat16)
    return model


def cpu_quota():
    """How many CPUs a container may use; of no container, very many."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup, or "max"
        return 10_000


def choose_device(name):
    """The torch device for --device: cpu, cuda, or auto."""
    if name == "cuda" or name == "auto" and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # torchrun's number of this process
    elif name == "auto":
        return "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0][:80]
        raise UserError(f"--device {name} cannot be used here ({why}): use --device cpu") from None
    return name


def prepare(model, cfg):
    """Apply --gradient_checkpointing and --compile to a model's blocks, once -> the model."""
    if not hasattr(model, "prepared"):
        model.prepared = True
        for block in model.blocks:
            if getattr(cfg, "gradient_checkpointing", False):
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
            if getattr(cfg, "compile", False):
                block.compile(dynamic=True)
    return model


def peak_memory():
    """The most memory this process has used, in GB; NaN on Windows, where it is unknown."""
    status = Path("/proc/self/status")
    text = status.read_text(encoding="utf-8") if status.exists() else ""
    if peak := re.search(r"VmHWM:\s+(\d+) kB", text):
        # Linux's ru_maxrss would be that of the process that started this one, if it is larger.
        return int(peak[1]) * 1024 / 1e9
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
