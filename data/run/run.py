"""One run of a stage: its folder, its log, its checkpoints, and how it continues if interrupted.

    out/<stage>/log.jsonl      one line per interval, every measured number
    out/<stage>/curves.png     the same, drawn
    out/<stage>/ckpt.pt        the newest checkpoint, always whole
    out/<stage>/results.json   what the stage achieved
    out/ppo/value.pt           the value model of the policy beside it
    out/<stage>/resume/        until the run is finished, for --resume: began.json, the flags;
                               state.pt, the loop after some step; <name>.jsonl, collected answers

What a step draws follows from its number, so a run that was killed at any moment ends with --resume
as one that was never stopped. A second run in the same folder keeps the first one's checkpoint and
log as ckpt.prev.pt and log.prev.jsonl.
"""

import dataclasses
import json
import math
import random
import shutil
import time
from pathlib import Path

import torch

from data.run import curves, disk, system
from data.run.cli import MAY_CHANGE
from data.run.device import peak_memory, prepare, setup
from data.run.lineage import Lineage
from data.run.processes import any_of, rank
from data.run.system import UserError

# In the order in which a step computes them: the first that is not finite is nearest to the cause.
REMEDIES = {"score": "the reward model is broken: train it again with python reward.py",
            "kl": "the policy or the SFT model is broken: make it again, or lower --lr",
            **dict.fromkeys(("policy_loss", "value_loss", "loss", "grad_norm", "valid_loss"),
                            "lower --lr"), "ptx_loss": "lower --lr or --ptx"}

CHUNK = 2000  # prompts whose answers are collected before they are saved
ANEW = "leave out --resume to begin a new one"
REDO = "remove it, and --resume does that part again"


def seed_for(*what):
    """A seed that follows from what is drawn: seed_for(1, "ppo", 7) for step 7."""
    return random.Random(" ".join(map(str, what))).getrandbits(63)


def in_round(stage, round):
    """The name of a stage and of its folder: "ppo", in later rounds "ppo-2", "ppo-3", ..."""
    return stage if round == 1 else f"{stage}-{round}"


def time_left(seconds, done, total):
    """The time a task still needs, as "1:23 left", if `done` of it took so many seconds."""
    left = int(seconds / done * (total - done))
    return f"{left // 60}:{left % 60:02d} left"


class Run:
    """One run of a stage.

    device          where the models go
    path(name)      a file in out/<stage>/
    first           the number of steps that an interrupted run has done
    history         the records logged so far, a list of dicts
    latest          the newest value of every number that was logged
    lineage         what the run was made from (data/run/lineage.py)
    """

    LOG = ("history", "latest", "pending", "tokens", "skipped", "bad_steps", "sample")

    def __init__(self, cfg, stage):
        self.device = setup(cfg)
        self.cfg, self.stage = cfg, in_round(stage, getattr(cfg, "round", 1))
        self.folder = disk.make_folder(Path(cfg.out) / self.stage)
        self.resume = self.folder / "resume"
        self.lineage = Lineage(cfg.mix_runs, self.say)
        self.began = time.monotonic()
        self.history, self.latest, self.pending, self.sample = [], {}, {}, ""
        self.tokens = self.skipped = self.bad_steps = self.total = self.saved_step = 0
        self.saving_took = 0.0
        self.flags = json.loads(json.dumps(dataclasses.asdict(cfg)))
        del self.flags["resume"]
        if not rank():
            system.lock(self.folder)
            for half in [*self.folder.glob("*.tmp"), *self.resume.glob("*.tmp")]:  # left by a kill
                half.unlink(missing_ok=True)
        resuming = cfg.resume and self._is_unfinished()
        any_of(False)  # all processes have looked
        if not rank() and not resuming:
            self._begin()
        any_of(False)  # the first process has begun
        self.state = self._read_state() if resuming else {}
        self.first = self.state.get("step", 0)
        system.resumable = True
        torch.manual_seed(cfg.seed)

    def say(self, sentence):
        print(f"{self.stage}: {sentence}", flush=True)

    def show(self, sentence):
        """Say what the model writes by now; the next line of the log has it as `sample`."""
        self.say(sentence)
        self.sample = sentence

    def path(self, name):
        return self.folder / name

    def keep(self, name, text, own=True):
        """Write a text of the embedded world to the stage's folder, and note its lineage."""
        self.lineage.text(f"{self.stage}/{name}", text)
        if own:
            disk.write(self.path(name), text)

    def reads(self, path):
        """A path that this run reads; UserError if it is the checkpoint that it will write."""
        if Path(path).resolve() == self.path("ckpt.pt").resolve():
            raise UserError(f"{path} is what this run will write: copy it, and name the copy, or "
                            "choose another --out")
        return path

    def earlier(self, stage, round=1):
        """The checkpoint of an earlier stage of the same run."""
        return self.folder.parent / in_round(stage, round) / "ckpt.pt"

    @property
    def seconds(self):
        return time.monotonic() - self.began

    # ---- what --resume needs ---------------------------------------------------------------------

    def _begin(self):
        """An unfinished run is kept as resume.prev until a run is finished."""
        if (self.resume / "began.json").exists() and len([*self.resume.iterdir()]) > 1:
            previous = self.resume.with_name("resume.prev")
            shutil.rmtree(previous, ignore_errors=True)
            self.resume.rename(previous)
            self.say(f"{self.folder} holds an unfinished run, and a new one begins; to continue "
                     f"the old one, stop this one, and rename {previous.name} to resume")
        shutil.rmtree(self.resume, ignore_errors=True)  # of a finished run that was killed here
        disk.make_folder(self.resume)
        disk.write(self.resume / "began.json", json.dumps(self.flags, indent=1))

    def _is_unfinished(self):
        """True if there is a run to resume, False if none has begun; Finished if it is finished."""
        if (self.resume / "began.json").exists():
            return True
        if self.path("results.json").exists():
            self._check_flags(disk.read_json(self.path("results.json"))["config"])
            raise system.Finished(f"{self.stage}: nothing to resume in {self.folder}: that run is "
                                  f"finished; {ANEW}")
        self.say(f"nothing to resume in {self.folder}: a new run begins")
        return False

    def _read_state(self):
        """What an interrupted run has saved; UserError if it is of other flags."""
        self._check_flags(disk.read_json(self.resume / "began.json", remedy=ANEW))
        path = self.resume / "state.pt"
        with disk.reading(path, REDO, blame_memory=False):
            state = disk.load(path) if path.exists() else {}
            if state:
                self._check_flags(state["flags"])
                if not 0 <= state["step"] <= state["total"] <= 10 ** 9:
                    raise ValueError("its number of steps is impossible")
            return state

    def _check_flags(self, began):
        differ = [f"--{name} {value} (it began with {began.get(name)})"
                  for name, value in self.flags.items()
                  if name not in MAY_CHANGE and value != began.get(name)]
        if differ:
            raise UserError("--resume needs the flags that the run began with, and these differ: "
                            + ", ".join(differ))

    def _write_state(self, step):
        """After the last step the optimizer, two thirds of the file, is not needed; at step 0 the
        flags determine everything."""
        loop = {name: x.state_dict() for name, x in self.loop.items()
                if 0 < step < self.total or step and not isinstance(x, torch.optim.Optimizer)}
        state = dict(step=step, total=self.total, flags=self.flags, loop=loop,
                     log={name: getattr(self, name) for name in self.LOG}, seconds=self.seconds,
                     log_age=time.monotonic() - self.logged_at, ancestors=self.lineage.ancestors)
        disk.write(self.resume / "state.pt", lambda file: torch.save(state, file))

    def _restore(self):
        done, total = self.first, self.state["total"]
        if self.total != total and (self.total <= done or done == total):
            more = f"above that, or {total}" if done < total else f"{total}"
            raise UserError(f"{done} steps are done: --resume needs --steps {more}")
        for name, mark in self.lineage.ancestors.items():
            if self.state["ancestors"].get(name, mark) != mark:
                raise UserError(f"{name} is not what it was when this run began: {ANEW}")
        for name, saved in self.state["loop"].items():
            self.loop[name].load_state_dict(saved)
        for name in self.LOG:
            setattr(self, name, self.state["log"][name])
        self.began, self.saved_step = time.monotonic() - self.state["seconds"], done
        # What was logged after the save is done again, and the last line may be cut.
        disk.write(self.path("log.jsonl"),
                   "".join(json.dumps(record) + "\n" for record in self.history))
        self.say(f"continues after step {done} of {self.total}")

    def collect(self, name, prompts, made_from, work):
        """Make records of prompts in chunks: work(n, prompts of chunk n) -> a list of all records.

        Each chunk is on disk as a line of resume/<name>.jsonl before the next is begun; --resume
        reads those that are there. made_from: JSON that names the models they come from.
        """
        chunks = [prompts[i:i + CHUNK] for i in range(0, len(prompts), CHUNK)]
        path, head = self.resume / f"{name}.jsonl", json.dumps(made_from)
        with disk.reading(path, REDO, blame_memory=False):
            lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
            lines = lines or [head]  # the last one may be cut
            records = [json.loads(line) for line in lines[1:]]
        if lines[0] != head:
            raise UserError(f"{path} comes from other models than those of this run: {ANEW}")
        any_of(False)  # all processes have read it
        disk.write(path, "\n".join(lines) + "\n")
        began, already = time.monotonic(), len(lines) - 1
        for n in range(already, len(chunks)):
            torch.manual_seed(seed_for(self.cfg.seed, self.stage, name, n))
            records.append(work(n, chunks[n]))
            disk.append(path, json.dumps(records[-1]))
            left = time_left(time.monotonic() - began, n + 1 - already, len(chunks) - already)
            self.say(f"{name}, part {n + 1} of {len(chunks)}  {left}")
        torch.manual_seed(self.cfg.seed)  # what follows is drawn as if all had been read
        return [record for chunk in records for record in chunk]

    # ---- the loop --------------------------------------------------------------------------------

    def steps(self, total, **loop):
        """The steps of the training loop, 0 ... total - 1, or those that are left.

        loop: by name all that the loop changes, with state_dict and load_state_dict: it is saved
        with each checkpoint, and put back by --resume.
        """
        self.total, self.loop = total, loop
        for model in loop.values():
            if hasattr(model, "blocks"):
                prepare(model, self.cfg)
        self.logged_at = time.monotonic()
        if self.state:
            with disk.reading(self.resume / "state.pt", REDO, blame_memory=False):
                self._restore()
                self.logged_at -= self.state["log_age"]
        else:
            self._keep_previous()
            self._write_state(0)
        self.state, self.loop_began, self.saved_at = {}, time.monotonic(), time.monotonic()
        system.in_loop = True
        try:
            for step in range(self.first, total):
                torch.manual_seed(seed_for(self.cfg.seed, self.stage, step))
                yield step
        finally:
            system.in_loop = False
        torch.manual_seed(seed_for(self.cfg.seed, self.stage, total))  # for what is said at the end
        if system.stop_requested:  # during the last save
            raise system.Interrupted("stopped after the last step")

    def _keep_previous(self):
        """What a run before this one has left in the folder gets second names."""
        if rank():
            return
        for name in ("log.jsonl", "results.json"):
            if self.path(name).exists():
                self.path(name).replace(self.path(name.replace(".", ".prev.")))
        if self.path("ckpt.pt").exists():  # it stays until there is a new one
            previous = self.path("ckpt.prev.pt")
            previous.unlink(missing_ok=True)
            try:
                previous.hardlink_to(self.path("ckpt.pt"))
            except OSError:  # a file system without links
                shutil.copyfile(self.path("ckpt.pt"), previous)

    def due(self, step, every):
        """True after every `every` steps, and after the last."""
        return (step + 1) % every == 0 or step + 1 == self.total

    def log(self, step, figures, tokens=0, show=None):
        """Note a step's figures; every `log_every` steps their means become a line of the log.

        figures: {name: number}. tokens: how many were trained on, for the throughput. show: the
        names that the screen has room for; None: all.
        """
        self.tokens += tokens
        self.latest = {**self.latest, **figures}
        self._check_figures(step, figures)
        for name, value in figures.items():
            if math.isfinite(value):
                self.pending.setdefault(name, []).append(value)
        if not self.due(step, self.cfg.log_every):
            return
        now = time.monotonic()
        means = {name: sum(values) / len(values) for name, values in self.pending.items()}
        if self.tokens:
            means["tok/s"] = self.tokens / max(now - self.logged_at, 1e-9)
        sample = {"sample": self.sample} if self.sample else {}
        record = dict(step=step + 1, seconds=round(self.seconds, 2), **means, **sample)
        self.history.append(record)
        disk.append(self.path("log.jsonl"), json.dumps(record))
        shown = [f"{name} {value:,.0f}" if name == "tok/s" else f"{name} {value:.3f}"
                 for name, value in means.items() if show is None or name in (*show, "tok/s")]
        left = time_left(now - self.loop_began, step + 1 - self.first, self.total - self.first)
        print(f"{self.stage} {step + 1:4d}/{self.total}  {'  '.join(shown)}  {left}", flush=True)
        self.pending, self.tokens, self.logged_at, self.sample = {}, 0, now, ""

    def _check_figures(self, step, figures):
        """UserError for a number that is not finite; a single such gradient is only skipped, as
        optim.optimizer_step has skipped it."""
        bad = [name for name in REMEDIES if not math.isfinite(figures.get(name, 0.0))]
        self.bad_steps = self.bad_steps + 1 if bad else 0
        if bad == ["grad_norm"] and self.bad_steps == 1:
            self.skipped += 1
            self.say(f"step {step + 1}: grad_norm is {figures['grad_norm']}: this batch is "
                     f"skipped, {self.skipped} so far")
        elif bad:
            raise self._broken(step, f"{bad[0]} is {figures[bad[0]]}", REMEDIES[bad[0]])

    def _broken(self, step, what, remedy):
        """The UserError that ends a run whose numbers are not finite."""
        remedy = remedy.replace("--lr", f"--lr (it is {self.cfg.lr:g})")
        good = "this run has saved no checkpoint yet"
        if self.saved_step:
            good = f"the last good checkpoint is {self.path('ckpt.pt')} (step {self.saved_step})"
        return UserError(f"step {step + 1}: {what}: {remedy}; {good}")

    def about(self, step):
        """The metadata of a checkpoint: stage, step, seconds of all stages, flags, lineage."""
        seconds = {**self.lineage.seconds, self.stage: round(self.seconds, 1)}
        return dict(stage=self.stage, step=step + 1, seconds=seconds, seed=self.cfg.seed,
                    config=self.flags, figures=self.latest, **self.lineage.about())

    def save(self, step, tokenizer, **models):
        """Save models as <name>.pt, and what --resume needs to continue after this step.

        It does so after the last step, when a signal has asked to stop, and every --save_every
        seconds, or less often, if saving would take more than a twentieth of the time. A model may
        be a function that makes it, with metadata: -> (model, dict). Raises Interrupted if a signal
        has asked to stop, UserError for weights that the last update has broken.
        """
        stopping, now = any_of(system.stop_requested), time.monotonic()
        pause = self.cfg.save_every and max(self.cfg.save_every, 20 * self.saving_took)
        if not (stopping or step + 1 == self.total or not rank() and now - self.saved_at >= pause):
            return
        modules = [x for x in self.loop.values() if isinstance(x, torch.nn.Module)]
        if not all(p.isfinite().all() for model in modules for p in model.parameters()):
            raise self._broken(step, "a weight is not finite", "lower --lr")
        for name, model in reversed(models.items()):
            model, about = (model, {}) if isinstance(model, torch.nn.Module) else model()
            disk.write_model(self.path(f"{name}.pt"), model, tokenizer, **about, **self.about(step))
        self.saved_step = step + 1
        self._write_state(step + 1)
        self.saved_at = time.monotonic()
        self.saving_took = self.saved_at - now
        if stopping:
            any_of(False)  # the first process has saved
            raise system.Interrupted(f"stopped after step {step + 1} of {self.total}")

    # ---- the end ---------------------------------------------------------------------------------

    def write_results(self, **results):
        """Write results.json, before anything that only shows them can fail."""
        made_from = dict(seed=self.cfg.seed, **self.lineage.about())
        results = dict(stage=self.stage, seconds=self.seconds, memory_gb=peak_memory(), **results,
                       skipped=self.skipped, config=self.flags, made_from=made_from)
        disk.write(self.path("results.json"), json.dumps(results, indent=1))

    def finish(self, **pictures):
        """Draw the curves, end the run, say where everything is.

        Behind the curves of the embedded world stands a healthy run. pictures: further ones, as
        name=dict of what curves.draw takes.
        """
        behind = () if self.flags["data"] else curves.healthy(self.stage)
        pictures["curves"] = dict(runs={self.stage: self.history}, behind=behind)
        for name, what in pictures.items():
            disk.write_figure(self.path(f"{name}.png"), curves.draw(title=self.stage, **what))
        any_of(False)  # all processes have read what they need
        system.resumable = False
        if not rank():  # began.json goes first: then there is nothing to resume
            (self.resume / "began.json").unlink(missing_ok=True)
            for folder in (self.resume, self.resume.with_name("resume.prev")):
                shutil.rmtree(folder, ignore_errors=True)
            system.unlock(self.folder)
        self.say(f"{self.seconds:.0f} s; ckpt.pt, log.jsonl, curves.png and results.json are in "
                 f"{self.folder}")
