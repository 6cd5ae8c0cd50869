"""One run of a stage: its folder, its log, its curves and its results.

    out/<stage>/log.jsonl      one line per interval, every measured number
    out/<stage>/curves.png     the same, drawn
    out/<stage>/ckpt.pt        the newest checkpoint, always whole
    out/<stage>/results.json   what the stage achieved

A second run in the same folder keeps the first one's checkpoint and log as ckpt.prev.pt and
log.prev.jsonl.
"""

import dataclasses
import functools
import json
import math
import os
import re
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from data.run.checkpoint import write, write_figure
from data.run.cli import UserError, check
from data.run.processes import all_reduce, rank


def setup(cfg):
    """Check the flags, then set threads, precision and processes as they say."""
    check(cfg)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    for device in ("cpu", "cuda"):
        torch.set_autocast_enabled(device, cfg.bf16)
        torch.set_autocast_dtype(device, torch.bfloat16)
    # The cache of bfloat16 weights is emptied at the end of a context. Here none ends, so the
    # first step's weights would stay.
    torch.set_autocast_cache_enabled(False)
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        device = choose_device(cfg.device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
    if rank():
        sys.stdout = open(os.devnull, "w")


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


def in_round(stage, round):
    """The name of a stage and of its folder: "ppo", in later rounds "ppo-2", "ppo-3", ..."""
    return stage if round == 1 else f"{stage}-{round}"


def time_left(began, done, total):
    """The time a task still needs, as "1:23 left", at its average speed since `began`."""
    seconds = int((time.time() - began) / done * (total - done))
    return f"{seconds // 60}:{seconds % 60:02d} left"


def peak_memory():
    """The most memory this process has used, in GB; NaN on Windows, where it is unknown."""
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        # Linux's ru_maxrss would be that of the process that started this one, if it is larger.
        return int(peak[1]) * 1024 / 1e9
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Run:
    """One run of a stage: it seeds, then logs, saves checkpoints, draws curves, writes results.

    run.device        where the models go
    run.path(name)    a file in out/<stage>/
    run.history       the records logged so far, a list of dicts
    """

    def __init__(self, cfg, stage):
        setup(cfg)
        self.stage = in_round(stage, getattr(cfg, "round", 1))
        self.config = dataclasses.asdict(cfg)
        self.device = choose_device(cfg.device)
        torch.manual_seed(cfg.seed)
        self.folder = Path(cfg.out) / self.stage
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {self.folder} ({error.strerror}): "
                            "choose another --out") from None
        self.started, self.history, self.saved = time.time(), [], False
        self.noted, self.tokens = {}, 0

    def say(self, sentence):
        print(f"{self.stage}: {sentence}", flush=True)

    def prepare(self, *models):
        """Apply --gradient_checkpointing and --compile to the blocks of models that learn."""
        for block in (block for model in models for block in model.blocks):
            if self.config["gradient_checkpointing"]:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
            if self.config["compile"]:
                block.compile(dynamic=True)

    def path(self, name):
        return self.folder / name

    def earlier(self, stage, round=1):
        """The checkpoint of an earlier stage of the same run."""
        return self.folder.parent / in_round(stage, round) / "ckpt.pt"

    def range(self, steps):
        """The steps of the training loop, 0 ... steps-1; clock and log start with the first."""
        if self.path("log.jsonl").exists() and not rank():
            os.replace(self.path("log.jsonl"), self.path("log.prev.jsonl"))
        self.steps = steps
        self.loop_started = self.clock = time.time()
        return range(steps)

    @property
    def seconds(self):
        return time.time() - self.started

    def due(self, step, every):
        """Whether what happens every so many steps is due after this one; after the last it is."""
        return (step + 1) % every == 0 or step + 1 == self.steps

    def log(self, step, tokens=0, loss=None, also=(), **numbers):
        """Note a step's numbers; every `log_every` steps their means become a line of the log.

        tokens: how many were trained on, for the throughput. loss: a scalar tensor, this process's
        part of the loss. also: a dict of numbers for log.jsonl only, not for the screen.
        """
        if loss is not None:
            numbers = dict(loss=all_reduce(loss.detach()).item(), **numbers)
        self.tokens += tokens
        for name, value in {**dict(also), **numbers}.items():
            self.noted.setdefault(name, []).append(value)
        if not self.due(step, self.config["log_every"]):
            return
        now = time.time()
        means = {name: sum(values) / len(values) for name, values in self.noted.items()}
        if self.tokens:
            means["tok/s"] = self.tokens / (now - self.clock)
        record = dict(step=step + 1, seconds=round(self.seconds, 2), **means)
        self.history.append(record)
        if not rank():
            with open(self.path("log.jsonl"), "a") as file:
                file.write(json.dumps(record) + "\n")
        shown = "  ".join(f"{name} {value:,.0f}" if name == "tok/s" else f"{name} {value:.3f}"
                          for name, value in means.items() if name not in also or name in numbers)
        left = time_left(self.loop_started, step + 1, self.steps)
        print(f"{self.stage} {step + 1:4d}/{self.steps}  {shown}  {left}", flush=True)
        self.noted, self.tokens, self.clock = {}, 0, now

    def about(self, step, earlier=()):
        """What a checkpoint says about itself: stage, steps, seconds of this and earlier stages."""
        seconds = {**dict(earlier).get("seconds", {}), self.stage: round(self.seconds, 1)}
        return dict(stage=self.stage, step=step + 1, seconds=seconds)

    def save(self, content):
        """Put a checkpoint (bytes) in place; the previous run's last one is kept beside it."""
        keep = None if self.saved else self.path("ckpt.prev.pt")
        write(self.path("ckpt.pt"), content, keep)
        self.saved = True

    def draw(self, panels, records=None, along="step", name="curves.png"):
        """Draw records along one of their numbers.

        panels: one list of names per panel; records: dicts, by default the history.
        """
        from matplotlib.figure import Figure  # it needs no screen, unlike pyplot; slow to import

        records = self.history if records is None else records
        recorded = {name for record in records for name in record}
        panels = [[name for name in names if name in recorded] for names in panels]
        panels = [names for names in panels if names]
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(4.2 * columns, 3 * rows), layout="constrained")
        for i, names in enumerate(panels):
            axes = figure.add_subplot(rows, columns, i + 1)
            for line in names:
                points = [(r[along], r[line]) for r in records if line in r]
                axes.plot(*zip(*points), label=line, marker="." if len(points) < 30 else None)
            axes.set_xlabel(along)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=.3)
            axes.legend(frameon=False, fontsize=8)
        figure.suptitle(self.stage)
        write_figure(self.path(name), figure)

    def finish(self, **results):
        """Write results.json and say where everything is."""
        results = dict(stage=self.stage, memory_gb=peak_memory(), **results, config=self.config)
        write(self.path("results.json"), json.dumps(results, indent=1))
        print(f"\n{self.stage}: {self.seconds:.0f} s; ckpt.pt, log.jsonl, curves.png and "
              f"results.json are in {self.folder}")
