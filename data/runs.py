"""What every stage's run has in common: its flags, its log, its files, and its good manners.

    out/<stage>/log.jsonl      one line an interval, every measured number
    out/<stage>/curves.png     the same, drawn
    out/<stage>/ckpt.pt        the newest checkpoint, always whole
    out/<stage>/results.json   what the stage achieved

A second run in the same folder keeps the first one's checkpoint and log as ckpt.prev.pt and log.prev.jsonl.

A user's mistake is a UserError: one sentence and exit status 2, never a traceback.
"""

import argparse
import dataclasses
import difflib
import functools
import io
import json
import math
import os
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint


class UserError(Exception):
    """Something only the user can put right. The message is one sentence: what, where, and the remedy."""


def knob(default, help, least=None):
    """A dataclass field that is also a command-line flag; values below `least` are refused."""
    return field(default=default, metadata={"help": help, "least": least})


@dataclass
class Common:
    """The flags of every stage."""

    out: str = knob("out", "folder for results; each stage writes in its own folder there")
    data: str = knob("", "file to read instead of the embedded world")
    seed: int = knob(1, "random seed", least=0)
    device: str = knob("auto", "cpu, cuda, or auto: CUDA if there is any")
    threads: int = knob(0, "CPU threads; 0: all cores", least=0)
    log_every: int = knob(20, "steps between two lines of the log", least=1)
    micro_batch: int = knob(0, "rows (of reward.py prompts) in memory at once, for the same gradient; 0: the whole batch", least=0)
    memory: float = knob(0.0, "GB to stay below, by the estimate of data/memory.py, which then chooses --micro_batch", least=0)
    bf16: bool = knob(False, "matrix products in bfloat16; weights, sums and losses stay in fp32")
    compile: bool = knob(False, "torch.compile the transformer's blocks: slow to start, then faster on GPUs")
    gradient_checkpointing: bool = knob(False, "keep only the inputs of the blocks and compute the rest again in backward: less memory, a third more time")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        if typo := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            near = difflib.get_close_matches(typo[1], self._option_string_actions, 1)
            message = f"there is no flag {typo[1]}" + (f"; did you mean {near[0]}?" if near else "")
        self.exit(2, f"{self.prog}: {message} (python {self.prog} --help lists every flag)\n")


def parse(config, description, argv=None):
    """Read a dataclass of knobs from the command line, each under its exact name."""
    parser = _Parser(prog=Path(sys.argv[0]).name, description=description, allow_abbrev=False,
                     formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=110))
    for f in dataclasses.fields(config):
        help = f.metadata["help"]
        if "(default: " not in help:
            help += f" (default: {f.default if f.default != '' else 'none'})"
        how = {"action": "store_true"} if f.type is bool else {"type": f.type, "metavar": f.type.__name__.upper()}
        parser.add_argument(f"--{f.name}", default=f.default, help=help.replace("%", "%%"), **how)
    return config(**vars(parser.parse_args(argv)))


def main(config, train, description):
    """The command line of a stage: read the flags, train, and part politely whatever happens."""
    try:
        train(parse(config, description))
    except UserError as error:
        sys.exit(_say(error))
    except KeyboardInterrupt:
        print("\nStopped. What was saved before is whole.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left, as in `python gpt.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        sys.exit(_say(f"{error.filename or 'the output'} can not be written ({error.strerror}): "
                      "make room or choose another --out; what was saved before is whole"))
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "allocate memory" not in str(error):  # the CPU's
            raise
        sys.exit(_say("out of memory: choose a smaller --batch, or say with --memory how many GB there are"))


def _say(error):
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    return 2


def check(cfg, demands=()):
    """Refuse flags below their bounds, or against the demands of a stage; then set threads, precision and processes."""
    for f in dataclasses.fields(cfg):
        value, least = getattr(cfg, f.name), f.metadata["least"]
        if value != value:
            raise UserError(f"--{f.name} must be a number")
        if None not in (least, value) and value < least:
            raise UserError(f"--{f.name} must be at least {least}")
    for good, sentence in [(cfg.seed < 2 ** 64, "--seed must be less than 2^64"),
                           (cfg.memory < float("inf"), "--memory must be a number of GB"), *demands]:
        if not good:
            raise UserError(sentence)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    for device in ("cpu", "cuda"):
        torch.set_autocast_enabled(device, cfg.bf16)
        torch.set_autocast_dtype(device, torch.bfloat16)
    torch.set_autocast_cache_enabled(False)  # it would keep the first step's weights: it is emptied where a context ends, and here none does
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        device = choose_device(cfg.device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
    if rank():
        sys.stdout = open(os.devnull, "w")


# ---- several processes ----------------------------------------------------------------------------
# `torchrun --nproc_per_node 2 ppo.py`: every process holds the whole batch and draws the same random numbers, works on its
# share of the rows, and adds its gradient to the others'. As losses are sums over the whole batch's count, the result is
# that of one process. The first process alone writes files.


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def add_up(tensor):
    """The sum of a tensor over all processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def add_up_all(numbers):
    """The sums of a dict's numbers over all processes; one that had no rows has no numbers."""
    if world() == 1:
        return numbers
    every = [None] * world()
    dist.all_gather_object(every, dict(numbers))
    return {name: sum(found.get(name, 0.0) for found in every) for name in max(every, key=len)}


def write(path, content, keep=None):
    """Write bytes or str to a file that is either old or new, whole in both cases. The old one is kept as `keep`."""
    if rank():
        return
    path = Path(path)
    half = path.with_name(path.name + ".tmp")
    try:
        with open(half, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(half, path)
    except OSError as error:
        half.unlink(missing_ok=True)
        error.filename = str(path)
        raise


def write_figure(path, figure):
    """Write a matplotlib Figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, bbox_inches="tight")  # else labels at the left edge may be cut
    write(path, picture.getvalue())


def time_left(began, done, total):
    """What remains of a task, as "1:23 left", if its speed stays what it was since the time `began`."""
    seconds = int((time.time() - began) / done * (total - done))
    return f"{seconds // 60}:{seconds % 60:02d} left"


def in_round(stage, round):
    """What a stage and its folder are called: "ppo", in later rounds "ppo-2", "ppo-3", ..."""
    return stage if round == 1 else f"{stage}-{round}"


def hint(stage, round=1):
    """What makes a checkpoint that is missing."""
    return f"run python {stage}.py{f' --round {round}' if round > 1 else ''} first"


def newest_policy(out, flag):
    """The path of the newest checkpoint in a folder of stages that can answer; flag: that which names another."""
    found = [p for p in Path(out).glob("*/ckpt.pt") if not p.parent.name.startswith("reward")]
    if not found:
        raise UserError(f"no checkpoint in {out}: run python gpt.py first, or name one with {flag}")
    return max(found, key=lambda p: p.stat().st_mtime)


def peak_memory():
    """GB that this process has taken at most; NaN on Windows, which does not say so here."""
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024 / 1e9  # Linux's ru_maxrss would be that of the process that started this one, if larger
    try:
        import resource
    except ImportError:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def choose_device(name):
    if name == "cuda" or name == "auto" and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # torchrun's number of this process
    elif name == "auto":
        return "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} can not be used here ({str(error).splitlines()[0][:80]}): use --device cpu") from None
    return name


class Run:
    """One run of a stage: seeds and threads at the start, then log lines, checkpoints, curves and results.

    run.device        where the models go
    run.path(name)    a file in out/<stage>/
    run.history       the records logged so far, a list of dicts
    """

    def __init__(self, cfg, stage, demands=()):
        """demands: pairs (condition, sentence) about the flags; the first condition that is false is a UserError."""
        check(cfg, demands)
        self.stage, self.config = in_round(stage, getattr(cfg, "round", 1)), dataclasses.asdict(cfg)
        self.device = choose_device(cfg.device)
        torch.manual_seed(cfg.seed)
        self.folder = Path(cfg.out) / self.stage
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can not make the folder {self.folder} ({error.strerror}): choose another --out") from None
        self.started, self.history, self.saved = time.time(), [], False
        self.noted, self.tokens = {}, 0
        self.micro_batch = cfg.micro_batch

    def prepare(self, stage, models, rows=1, further=0):
        """Let models be as --gradient_checkpointing and --compile say, and --memory choose the micro-batch for the first one's shape.

        With --memory, rows: how many rows one element of a batch has; further: models beside those of data/memory.py.
        """
        for block in (block for model in models for block in model.modules() if type(block).__name__ == "Block"):
            if self.config["gradient_checkpointing"]:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
            if self.config["compile"]:
                block.compile(dynamic=True)
        if self.config["memory"]:
            from data import memory  # it needs gpt, which needs this file
            config, bf16, checkpointing = models[0].config, self.config["bf16"], self.config["gradient_checkpointing"]
            fitting = memory.rows_that_fit(config, stage, self.config["memory"], bf16, checkpointing, further) // rows
            if not fitting:
                one = memory.row(config, stage, config.block_size, bf16, checkpointing)
                least = (memory.models(config, stage, bf16, further) + rows * one) / 1e9
                raise UserError(f"--memory {self.config['memory']:g} is too little: this stage takes at least {least:.2g} GB")
            self.micro_batch = min(fitting, self.config["batch"])
            print(f"{self.stage}: at most {self.micro_batch} rows in memory at once", flush=True)

    def path(self, name):
        return self.folder / name

    def earlier(self, stage, round=1):
        """The checkpoint of an earlier stage of the same run."""
        return self.folder.parent / in_round(stage, round) / "ckpt.pt"

    def range(self, steps):
        """The steps of the training loop, 0 ... steps-1; the clock and the log start with the first."""
        if self.path("log.jsonl").exists() and not rank():
            os.replace(self.path("log.jsonl"), self.path("log.prev.jsonl"))
        self.steps = steps
        self.loop_started = self.clock = time.time()
        return range(steps)

    @property
    def seconds(self):
        return time.time() - self.started

    def due(self, step, every):
        """Whether something that happens every so many steps happens after this one (0 is the first step)."""
        return (step + 1) % every == 0 or step + 1 == self.steps

    def log(self, step, tokens=0, also=(), **numbers):
        """Take note of a step's numbers; every `log_every` steps their means become a line on the screen and in log.jsonl.

        tokens: how many were trained on, for the throughput. also: a dict of numbers for log.jsonl only.
        """
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
        print(f"{self.stage} {step + 1:4d}/{self.steps}  {shown}  {time_left(self.loop_started, step + 1, self.steps)}", flush=True)
        self.noted, self.tokens, self.clock = {}, 0, now

    def about(self, step, earlier):
        """What a checkpoint says of itself: stage, steps taken, seconds of this stage and those before it."""
        seconds = {**earlier.get("seconds", {}), self.stage: round(self.seconds, 1)}
        return dict(stage=self.stage, step=step + 1, seconds=seconds)

    def save(self, content):
        """Put a checkpoint (bytes) in place; the last one of the run before is kept beside it."""
        write(self.path("ckpt.pt"), content, keep=None if self.saved else self.path("ckpt.prev.pt"))
        self.saved = True

    def draw(self, panels, records=None, along="step", name="curves.png"):
        """Draw records (dicts; by default the history) along one of their numbers. panels: one list of names a panel."""
        from matplotlib.figure import Figure  # without pyplot no screen is needed; imported late, as it is slow

        records = self.history if records is None else records
        panels = [[name for name in names if any(name in r for r in records)] for names in panels]
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
        print(f"\n{self.stage}: {self.seconds:.0f} s; ckpt.pt, log.jsonl, curves.png and results.json are in {self.folder}")
