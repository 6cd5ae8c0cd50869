"""The command line of every program: flags, their help, and polite exits.

A program's flags are the fields of its Config, a dataclass. A user's mistake is a UserError: one
sentence and exit status 2, never a traceback.
"""

import argparse
import contextlib
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

from data.run import processes, system
from data.run.system import UserError
from data.world.prompts import TOPICS

# What may differ when a run is resumed. Of these only --steps changes more than rounding.
MAY_CHANGE = ("steps", "log_every", "save_every", "out", "device", "threads", "micro_batch",
              "compile", "gradient_checkpointing", "mix_runs", "resume")


def flag(default, help, least=None, group="", choices=()):
    """A dataclass field that is also a command-line flag.

    Values below `least` are refused, and others than the choices if there are any. `group` begins a
    new group of flags in --help.
    """
    return field(default=default, metadata=dict(help=help, least=least, group=group,
                                                choices=choices))


@dataclass
class Program:
    """The flags of every program that uses a model."""

    out: str = flag("out", "folder for results; each stage has a folder of its own there",
                    group="run")
    seed: int = flag(1, "random seed", least=0)
    device: str = flag("auto", "cpu, cuda, or auto: CUDA if there is any")
    threads: int = flag(0, "CPU threads; 0: all cores", least=0)
    bf16: bool = flag(False, "matrix products in bfloat16; weights, sums and losses stay in fp32")

    def demands(self):
        """What the flags must meet besides their bounds: pairs (condition, sentence)."""
        return []


@dataclass
class Asking(Program):
    """The flag of programs that ask what people of the embedded world ask."""

    topic: str = flag("everyday", "of the embedded world; reading: questions about a given text "
                                  "(in all stages, gpt.py with --init)", choices=TOPICS)


@dataclass
class Common(Asking):
    """The flags of every stage."""

    log_every: int = flag(20, "steps between two lines of the log", least=1)
    save_every: float = flag(60, "seconds between two saves of ckpt.pt and of what --resume needs; "
                                 "0: after every step; both are saved at the end too", least=0)
    resume: bool = flag(False, "resume an interrupted run, with the same result; only these flags "
                               "may differ: "
                               + " ".join(f"--{name}" for name in MAY_CHANGE if name != "resume"))
    mix_runs: bool = flag(False, "continue even if a model was made from a version of its parent "
                                 "that has since been replaced (python -m data.run.lineage OUT)")
    micro_batch: int = flag(0, "rows (in reward.py: prompts) in memory at once; the gradient stays "
                               "the same; 0: the whole batch", least=0)
    compile: bool = flag(False, "torch.compile the blocks: a slow start, then faster on GPUs")
    gradient_checkpointing: bool = flag(False, "keep only the inputs of blocks and recompute the "
                                               "rest: less memory, a third more time")


@dataclass
class Judged(Common):
    """The flags of the stages that judge models at their end, on prompts of the embedded world."""

    test_prompts: int = flag(1000, "held-out prompts for the final figures", least=1)
    split: str = flag("test", "which held-out prompts: test, or valid, to choose settings by",
                      choices=("test", "valid"))


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        if typo := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            near = difflib.get_close_matches(typo[1], self._option_string_actions, 1)
            message = f"there is no flag {typo[1]}" + (f"; did you mean {near[0]}?" if near else "")
        raise UserError(f"{message} (python {self.prog} --help lists every flag)")


def parse(config, description, argv=None, programs=()):
    """Read a dataclass of flags from the command line, each flag under its exact name.

    programs: flags that start other programs, for --help.
    """
    def layout(prog):
        return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=100)

    others = ", ".join(f"--{name}" for name in programs)
    others = others and f"other programs, with flags and --help of their own: {others}"
    parser = _Parser(prog=Path(sys.argv[0]).name, description=description, allow_abbrev=False,
                     formatter_class=layout, epilog=others)
    common = [f.name for f in dataclasses.fields(Judged)]
    group = parser.add_argument_group("flags")
    # The program's own flags come first, as a learner changes them first.
    for f in sorted(dataclasses.fields(config), key=lambda f: f.name in common):
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
        if isinstance(value, (int, float)) and 1e30 < abs(value) < float("inf"):
            raise UserError(f"--{f.name} must be less than 1e30")
        if None not in (least, value) and value < least:
            raise UserError(f"--{f.name} must be at least {least}")
        if (choices := f.metadata["choices"]) and value not in choices:
            raise UserError(f"--{f.name} must be {' or '.join(choices)}")
    for good, sentence in [(cfg.seed < 2 ** 64, "--seed must be less than 2^64"),
                           (cfg.out.strip(), "--out must name a folder"), *cfg.demands()]:
        if not good:
            raise UserError(sentence)


def main(config, run, description, **programs):
    """Run a program from the command line: read the flags, work, and exit politely in any case.

    programs: flag=module for what is started instead if the flag is given: the module's Config is
    read, and its run(cfg) called.
    """
    # A program may import the stage that is running: this is that module, not a second copy.
    if getattr(sys.modules["__main__"], "main", None) is main:
        sys.modules.setdefault(Path(sys.argv[0]).stem, sys.modules["__main__"])
    with polite():
        argv = sys.argv[1:]
        for name, module in programs.items():
            if any(part.partition("=")[0] == f"--{name}" for part in argv):
                other = importlib.import_module(module)
                if name not in other.Config.__dataclass_fields__ or "--help" in argv:
                    argv = [part for part in argv if part != f"--{name}"]  # it only chooses
                config, run, description, programs = other.Config, other.run, other.__doc__, ()
                break
        run(parse(config, description, argv, programs))


def arguments(description, least=0):
    """The names after `python -m module`, `least` or more; --help prints how it is used."""
    names = sys.argv[1:]
    if len(names) < least or any(name.startswith("-") for name in names):
        print(description)
        sys.exit(0 if "--help" in names else 2)
    return names


@contextlib.contextmanager
def polite():
    """Whatever ends the work inside, the program ends with one sentence and an exit status."""
    system.listen()
    system.careful_streams()
    try:
        yield
    except system.Finished as done:
        print(done)
    except UserError as error:
        _leave(2, error)
    except KeyboardInterrupt as stop:
        # sys.orig_argv is the command as it was typed, also with python -m
        typed = [part for part in sys.orig_argv if part != "--resume"]
        again = ("the same command with --resume" if "TORCHELASTIC_RUN_ID" in os.environ
                 else shlex.join([*typed, "--resume"]))
        _leave(128 + (system.stop_requested or 2), f"{str(stop) or 'stopped'}; what was saved is "
               "whole" + f"; continue with: {again}" * system.resumable)
    except BrokenPipeError:  # the reader of our output has left, as in `python gpt.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _leave(2, f"{error.filename or 'a file'} cannot be used ({error.strerror}): check it and "
                  "--out; what was saved is whole")
    except (RuntimeError, MemoryError) as error:
        if not (sentence := _explain(error)):
            raise
        _leave(2, f"{sentence}; what was saved is whole")


def _explain(error):
    """A sentence for an error that says nothing to a user, or ""."""
    if processes.peer_died(error):
        return ("another process of this run has ended, and so all do: the same command with "
                "--resume continues")
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"--compile does not work here ({str(error).splitlines()[0][:150]}): leave it out"
    known = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
    if known or "allocate memory" in str(error):  # as the CPU's allocator says it
        return ("out of memory: choose a smaller --batch, or --micro_batch, which computes the "
                "same in less memory")
    return ""


def _leave(status, sentence):
    """Exit with one sentence; of several processes one says it."""
    system.end_at_once()
    if processes.reports_error():
        line = f"{Path(sys.argv[0]).name}: {sentence}".replace("\n", "\\n")  # as a path may hold
        print(line, file=sys.stderr)
    sys.exit(status)
