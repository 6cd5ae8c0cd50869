"""The command line of every stage: flags, their help, and polite exits.

A stage's flags are the fields of its Config, a dataclass. A user's mistake is a UserError: one
sentence and exit status 2, never a traceback.
"""

import argparse
import dataclasses
import difflib
import importlib
import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data.run import processes, signals
from data.run.terminal import careful_streams

# What may differ when a run is resumed. Of these only --steps changes more than rounding.
MAY_CHANGE = ("steps", "log_every", "save_every", "out", "device", "threads", "micro_batch",
              "compile", "gradient_checkpointing", "mix_runs", "resume")


class UserError(Exception):
    """Something only the user can put right: one sentence with what, where and the remedy."""


def knob(default, help, least=None, group="", command=""):
    """A dataclass field that is also a command-line flag.

    Values below `least` are refused. `group` begins a new group of flags in --help. `command`,
    "module:function", is what runs instead of training when the flag is given.
    """
    metadata = {"help": help, "least": least, "group": group, "command": command}
    return field(default=default, metadata=metadata)


@dataclass
class Common:
    """The flags of every stage."""

    out: str = knob("out", "folder for results; each stage has a folder of its own there",
                    group="run")
    seed: int = knob(1, "random seed", least=0)
    device: str = knob("auto", "cpu, cuda, or auto: CUDA if there is any")
    threads: int = knob(0, "CPU threads; 0: all cores", least=0)
    log_every: int = knob(20, "steps between two lines of the log", least=1)
    save_every: float = knob(60, "seconds between two saves of ckpt.pt and of what --resume needs; "
                                 "0: after every step; both are saved at the end too", least=0)
    resume: bool = knob(False, "go on with a run that was stopped, and end as if it had not been; "
                               "give the same flags, of which may change: "
                               + " ".join(f"--{name}" for name in MAY_CHANGE if name != "resume"))
    mix_runs: bool = knob(False, "go on although a model was made from another one than that which "
                                 "lies here now (python -m data.run.lineage OUT)")
    micro_batch: int = knob(0, "rows (in reward.py: prompts) in memory at once; the gradient stays "
                               "the same; 0: the whole batch", least=0)
    bf16: bool = knob(False, "matrix products in bfloat16; weights, sums and losses stay in fp32")
    compile: bool = knob(False, "torch.compile the transformer's blocks: a slow start, then faster "
                                "on GPUs")
    gradient_checkpointing: bool = knob(False, "keep only the inputs of the blocks and recompute "
                                               "the rest in backward: less memory, a third more "
                                               "time")

    def demands(self):
        """What the flags must meet besides their bounds: pairs (condition, sentence)."""
        return []


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        if typo := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            near = difflib.get_close_matches(typo[1], self._option_string_actions, 1)
            message = f"there is no flag {typo[1]}" + (f"; did you mean {near[0]}?" if near else "")
        said = f"{self.prog}: {message} (python {self.prog} --help lists every flag)\n"
        self.exit(2, said if processes.speaks() else None)


def parse(config, description, argv=None):
    """Read a dataclass of knobs from the command line, each flag under its exact name."""
    def layout(prog):
        return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=100)

    parser = _Parser(prog=Path(sys.argv[0]).name, description=description, allow_abbrev=False,
                     formatter_class=layout)
    fields = dataclasses.fields(config)
    common = [f.name for f in dataclasses.fields(Common)]
    # The stage's own flags come first, as a learner changes them first.
    for f in sorted(fields, key=lambda f: f.name in common):
        if f.metadata["group"]:
            group = parser.add_argument_group(f.metadata["group"])
        help = f.metadata["help"]
        if "(default: " not in help:
            help += f" (default: {f.default if f.default != '' else 'none'})"
        how = {"type": f.type, "metavar": f.type.__name__.upper()}
        if f.type is bool:
            how = {"action": "store_true"}
        group.add_argument(f"--{f.name}", default=f.default, help=help.replace("%", "%%"), **how)
    return config(**vars(parser.parse_args(argv)))


def check(cfg):
    """Raise UserError for a flag below its bound, or for the first demand that is not met."""
    for f in dataclasses.fields(cfg):
        value, least = getattr(cfg, f.name), f.metadata["least"]
        if value != value:
            raise UserError(f"--{f.name} must be a number")
        if None not in (least, value) and value < least:
            raise UserError(f"--{f.name} must be at least {least}")
    for good, sentence in [(cfg.seed < 2 ** 64, "--seed must be less than 2^64"),
                           (cfg.out.strip(), "--out must name a folder"), *cfg.demands()]:
        if not good:
            raise UserError(sentence)


def command(cfg, train):
    """What the flags ask for: the command of a flag such as --chat, or else `train`."""
    for f in dataclasses.fields(cfg):
        if f.metadata["command"] and getattr(cfg, f.name):
            module, function = f.metadata["command"].split(":")
            return getattr(importlib.import_module(module), function)
    return train


def somebody():
    """UserError where nobody can be asked, as there is no input at all."""
    if sys.stdin is None:
        raise UserError("a person is asked here: run it in a terminal (or pipe the keys into it)")


def program(name, work, *args):
    """Do the work of `python -m name`, and exit politely in any case."""
    careful_streams()
    try:
        work(*args)
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)


def main(config, train, description):
    """Run a stage from the command line: read the flags, train, and exit politely in any case."""
    # A command may import the stage that is running: this is that module, not a second copy.
    sys.modules.setdefault(Path(sys.argv[0]).stem, sys.modules["__main__"])
    signals.listen()
    try:
        careful_streams()
        cfg = parse(config, description)
        command(cfg, train)(cfg)
    except UserError as error:
        _leave(2, error)
    except KeyboardInterrupt as stop:
        again = f"; go on with: {_again()}" if signals.resumable else ""
        _leave(128 + (signals.asked or 2), f"{str(stop) or 'stopped'}; what was saved is whole"
               + again)
    except BrokenPipeError:  # the reader of our output has left, as in `python gpt.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _leave(2, f"{error.filename or 'a file'} cannot be used ({error.strerror}): check it and "
                  "--out; what was saved is whole")
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if processes.lost(error):
            _leave(2, "another process of this run has ended, and so all do; what was saved is "
                      "whole: the same command and --resume go on")
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            _leave(2, f"--compile does not work here ({str(error).splitlines()[0][:150]}): leave "
                      "it out; what was saved is whole")
        if not known and "allocate memory" not in str(error):  # as the CPU's allocator says it
            raise
        _leave(2, "out of memory: choose a smaller --batch, or --micro_batch, which computes the "
                  "same in less memory")


def _again():
    """The command that resumes this run."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "the same command and --resume"
    return shlex.join(["python", *(part for part in sys.argv if part != "--resume"), "--resume"])


def _leave(status, sentence):
    """Exit with one sentence; of several processes one says it."""
    signals.let_go()
    if processes.speaks():
        line = f"{Path(sys.argv[0]).name}: {sentence}".replace("\n", "\\n")  # as a path may hold
        print(line, file=sys.stderr)
    sys.exit(status)
