"""One run of a stage: its folder, its log, its curves and its results.

    out/<stage>/log.jsonl      one line per interval, every measured number
    out/<stage>/curves.png     the same, drawn
    out/<stage>/ckpt.pt        the newest checkpoint, always whole
    out/<stage>/results.json   what the stage achieved
    out/ppo/value.pt           the value model of the policy beside it
    out/<stage>/resume/        until the run is finished: what --resume needs (data/run/progress.py)

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

from data.run import checkpoint as disk
from data.run import curves, guards, lineage, processes, signals
from data.run.cli import UserError, check
from data.run.lock import lock, unlock
from data.run.processes import all_reduce, rank
from data.run.progress import Progress


def setup(cfg):
    """Check the flags, then set threads, precision and processes as they say."""
    check(cfg)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    for device in ("cpu", "cuda"):
        torch.set_autocast_enabled(device, cfg.bf16)
        torch.set_autocast_dtype(device, torch.bfloat16)
    # Products of fp32 on CUDA round their factors to 10 bits and add in fp32: several times faster.
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    # The cache of bfloat16 weights is emptied at the end of a context. Here none ends, so the
    # first step's weights would stay.
    torch.set_autocast_cache_enabled(False)
    if dist.is_torchelastic_launched() and not dist.is_initialized():
        device = choose_device(cfg.device)
        processes.join("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
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
    said = status.read_text(encoding="utf-8") if status.exists() else ""
    if peak := re.search(r"VmHWM:\s+(\d+) kB", said):
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
    run.latest        the newest value of every number that was logged
    run.lineage       what the run was made from (data/run/lineage.py)
    """

    def __init__(self, cfg, stage):
        setup(cfg)
        self.stage = in_round(stage, getattr(cfg, "round", 1))
        self.config = dataclasses.asdict(cfg)
        self.device = choose_device(cfg.device)
        torch.manual_seed(cfg.seed)
        self.folder = disk.make_folder(Path(cfg.out) / self.stage)
        if not rank():
            lock(self.folder)
        self.lineage = lineage.Lineage(cfg.mix_runs, self.say)
        self.progress = Progress(self.folder, self.config, self.lineage)
        self.once = self.progress.once
        self.started, self.history, self.latest, self.noted = time.time(), [], {}, {}
        self.tokens = self.skipped = self.bad_steps = self.saved_step = 0
        self.sample = ""

    def say(self, sentence):
        print(f"{self.stage}: {sentence}", flush=True)

    def show(self, sentence):
        """Say what the model writes by now; the next line of the log has it as `sample`."""
        self.say(sentence)
        self.sample = sentence

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

    def range(self, steps, supply=None, **parts):
        """The steps of the training loop, 0 ... steps-1; with --resume, those that are left.

        parts: by name, what the loop changes: models, optimizers, tensors. They are saved, and with
        --resume put back. supply: an iterator of which each step takes one; those of the steps
        before are passed over.
        """
        self.steps, self.parts, first = steps, parts, 0
        if state := self.progress.load("state"):
            first = self._restore(state)
            if supply is not None:
                for _ in range(first):
                    next(supply)
            self.say(f"goes on after step {first} of {steps}")
        else:
            for name in ("log.jsonl", "results.json"):
                if self.path(name).exists() and not rank():
                    os.replace(self.path(name), self.path(name.replace(".", ".prev.")))
            disk.keep(self.path("ckpt.pt"), "ckpt.prev.pt")
            self.clock = time.time()
            self._save_progress(0)
        self.loop_started, self.first = time.time(), first
        signals.in_loop = True
        try:
            yield from range(first, steps)
        finally:
            signals.in_loop = False
        if signals.asked:  # during the last save
            raise signals.Stopped("stopped after the last step")

    def _save_progress(self, step):
        """Keep what --resume needs to go on after so many steps.

        Before the first step that is nothing: all comes anew from the flags. After the last one no
        optimizer is needed, which takes two thirds of the room.
        """
        began = time.time()
        if not rank():
            parts = {name: part if isinstance(part, torch.Tensor) else part.state_dict()
                     for name, part in self.parts.items() if step
                     and (step < self.steps or not isinstance(part, torch.optim.Optimizer))}
            log = dict(history=self.history, latest=self.latest, noted=self.noted,
                       tokens=self.tokens, skipped=self.skipped, bad_steps=self.bad_steps,
                       sample=self.sample)
            self.progress.save("state", step=step, steps=self.steps, parts=parts, log=log,
                               clocks=(self.seconds, began - self.clock))
        self.saved_at, self.saving_took = time.time(), time.time() - began

    def _restore(self, state):
        """Put back what `_save_progress` kept -> the number of steps that are done."""
        done, all_steps = state["step"], state["steps"]
        if self.steps != all_steps and (self.steps <= done or done == all_steps):
            more = f"above that, or {all_steps}" if done < all_steps else f"{all_steps}"
            raise UserError(f"{done} steps are done: --resume needs --steps {more}")
        for name, saved in state["parts"].items():
            if isinstance(self.parts[name], torch.Tensor):
                self.parts[name].copy_(saved)
            else:
                self.parts[name].load_state_dict(saved)
        vars(self).update(state["log"])
        seconds, since_log = state["clocks"]
        self.started, self.clock = time.time() - seconds, time.time() - since_log
        self.saved_at, self.saving_took, self.saved_step = time.time(), 0.0, done
        # What was logged after the save is done again, and the last line may be cut.
        disk.write(self.path("log.jsonl"),
                   "".join(json.dumps(record) + "\n" for record in self.history))
        return done

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
        every = {**dict(also), **numbers}
        self.latest = {**self.latest, **every}
        self._guard(step, every)
        for name, value in every.items():
            if math.isfinite(value):
                self.noted.setdefault(name, []).append(value)
        if not self.due(step, self.config["log_every"]):
            return
        now = time.time()
        means = {name: sum(values) / len(values) for name, values in self.noted.items()}
        if self.tokens:
            means["tok/s"] = self.tokens / (now - self.clock)
        sample = {"sample": self.sample} if self.sample else {}
        record = dict(step=step + 1, seconds=round(self.seconds, 2), **means, **sample)
        self.history.append(record)
        disk.append(self.path("log.jsonl"), json.dumps(record))
        shown = "  ".join(f"{name} {value:,.0f}" if name == "tok/s" else f"{name} {value:.3f}"
                          for name, value in means.items() if name not in also or name in numbers)
        left = time_left(self.loop_started, step + 1 - self.first, self.steps - self.first)
        print(f"{self.stage} {step + 1:4d}/{self.steps}  {shown}  {left}", flush=True)
        self.noted, self.tokens, self.clock, self.sample = {}, 0, now, ""

    def _guard(self, step, numbers):
        """UserError for a number that is not finite; a single gradient that is not is passed over.

        gpt.optimizer_step has left out that step.
        """
        for sentence in guards.doubts(numbers):
            self.say(f"step {step + 1}: {sentence}")
        bad = guards.not_finite(numbers)
        if not bad:
            self.bad_steps = 0
            return
        name, value, remedy = bad
        self.bad_steps += 1
        if name == "grad_norm" and self.bad_steps == 1:
            self.skipped += 1
            self.say(f"step {step + 1}: {name} is {value}: this batch is left out, {self.skipped} "
                     "so far")
            return
        raise UserError(self._broken(step, f"{name} is {value}", remedy))

    def _broken(self, step, what, remedy):
        """The sentence that ends a run whose numbers are not finite."""
        remedy = remedy.replace("--lr", f"--lr (it is {self.config['lr']:g})")
        good = "this run has saved no checkpoint yet"
        if self.saved_step:
            good = f"the last good checkpoint is {self.path('ckpt.pt')} (step {self.saved_step})"
        return f"step {step + 1}: {what}: {remedy}; {good}"

    def about(self, step):
        """What a checkpoint says about itself: stage, steps, seconds of all stages, lineage."""
        seconds = {**self.lineage.seconds, self.stage: round(self.seconds, 1)}
        return dict(stage=self.stage, step=step + 1, seconds=seconds, seed=self.config["seed"],
                    **self.lineage.about())

    def time_to_save(self, step):
        """Whether to save after this step.

        After the last step, and every --save_every seconds, or less often, if saving would take
        more than a twentieth of the time. Also if a signal asks to stop.
        """
        self.stopping = processes.any_of(signals.asked)
        pause = self.config["save_every"] and max(self.config["save_every"], 20 * self.saving_took)
        return (self.stopping or step + 1 == self.steps
                or not rank() and time.time() - self.saved_at >= pause)

    def save(self, step, content, **others):
        """Put a checkpoint (bytes) in place, and keep what --resume needs to go on after this step.

        others: checkpoints beside it, as name=bytes for name.pt.
        Raises signals.Stopped if a signal has asked to stop, UserError for weights that the last
        update has broken.
        """
        for part in self.parts.values():
            if isinstance(part, torch.nn.Module):
                if not all(p.isfinite().all() for p in part.parameters()):
                    raise UserError(self._broken(step, "a weight is not finite", "lower --lr"))
        for name, other in others.items():
            disk.write(self.path(f"{name}.pt"), other)
        disk.write(self.path("ckpt.pt"), content)
        self.saved_step = step + 1
        self._save_progress(step + 1)
        if self.stopping:
            processes.any_of(False)  # the first process has saved
            raise signals.Stopped(f"stopped after step {step + 1} of {self.steps}")

    def draw(self, panels=curves.PANELS, records=None, along="step", name="curves.png"):
        """Draw records along one of their numbers.

        panels: one list of names per panel; records: dicts, by default the history. Behind that of
        the embedded world stands a healthy run.
        """
        known = records is None and not self.config["data"]
        figure = curves.draw({self.stage: records or self.history}, panels, along, self.stage,
                             curves.healthy(self.stage) if known else ())
        disk.write_figure(self.path(name), figure)

    def write_results(self, **results):
        """Write results.json, before anything that only shows them can fail."""
        flags = {name: value for name, value in self.config.items() if name != "resume"}
        made_from = dict(seed=self.config["seed"], **self.lineage.about())
        results = dict(stage=self.stage, memory_gb=peak_memory(), **results, skipped=self.skipped,
                       config=flags, made_from=made_from)
        disk.write(self.path("results.json"), json.dumps(results, indent=1))

    def finish(self):
        """Give back the folder, and say where everything is."""
        self.progress.finish()
        unlock(self.folder)
        print(f"\n{self.stage}: {self.seconds:.0f} s; ckpt.pt, log.jsonl, curves.png and "
              f"results.json are in {self.folder}")
