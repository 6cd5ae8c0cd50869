"""Every command that README, RESULTS and the stages' docstrings print: run to its end, made small
by
flags, and its output read. Those for GPUs, the network and the browser are parsed by the real
parser.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, SMALL
from data.run import cli

PAGES = [ROOT / "README.md", ROOT / "notebooks" / "RESULTS.md"]
STAGES = ("gpt", "sft", "reward", "ppo")
# texts to read need room
GPT = dict(steps=4, eval_every=2, block_size=192)
SHAPE = ("--vocab_size", "--block_size", "--n_layer", "--n_head", "--n_embd")
# What makes a command small: flags by the program that it starts.
FLAGS = dict(
    gpt=[f"--{name}={value}" for name, value in {**SMALL, **GPT}.items()],
    sft=["--steps=4", "--batch=4", "--demonstrations=40"],
    reward=["--prompts=12", "--test_prompts=6", "--k=3", "--batch=4", "--max_new_tokens=8"],
    ppo=["--steps=2", "--batch=8", "--minibatches=2", "--prompts=40", "--test_prompts=12",
         "--max_new_tokens=8"],
    chat=["--max_new_tokens=8"], label=["--max_new_tokens=8", "--labeler=me"], export=[],
    eval=["--test_prompts=12", "--max_new_tokens=8"])
FLAGS["prefer"] = [*FLAGS["eval"], "--labeler=me"]
OTHERS = dict(chat="data.people.chat", page="data.people.page", export="data.people.export",
              label="data.people.feedback", eval="data.judge.report", prefer="data.people.prefer")


def commands(text):
    """The python commands in the code of a page or a docstring -> argv without "python"."""
    lines = re.findall(r"^    ((?:python|.* && python) .*)$", text, re.M)
    lines += re.findall(r"`(python [^`]*)`", text)
    parts = [part for line in lines for part in re.split(r" && |; ", re.sub(r"  +#.*", "", line))]
    every = [shlex.split(re.split(r"  +", part.strip())[0]) for part in parts]
    return [argv[1:] for argv in every if argv[:1] == ["python"]]


PRINTED = {tuple(argv): None for text in [*(page.read_text() for page in PAGES), *(
    importlib.import_module(stage).__doc__ for stage in STAGES)] for argv in commands(text)}


def program_of(argv):
    """The name under which FLAGS knows what a command starts; "" if it is of another kind."""
    stage = Path(argv[0]).stem
    if stage not in STAGES:
        return ""
    return next((name for name in OTHERS if f"--{name}" in argv), stage)


def runs_here(argv):
    text = " ".join(argv)
    return program_of(argv) in FLAGS and "--help" not in argv and not re.search(
        r"hh-rlhf|\$s|out/\d|DIR|PATH|out/feedback|my-model|--data|torchrun|--init gpt2", text)


def test_the_commands_are_seen():
    assert len(PRINTED) > 25 and {program_of(argv) for argv in PRINTED} >= {*STAGES, "chat", "eval"}


@pytest.mark.parametrize("argv", [
    argv for argv in PRINTED if program_of(argv) and "--help" not in argv], ids=" ".join)
def test_every_command_of_a_stage_is_understood_by_its_parser(argv, monkeypatch):
    name = program_of(argv)
    config = importlib.import_module(OTHERS.get(name, name)).Config
    flags = [part for part in argv[1:] if part != f"--{name}"
             or name in config.__dataclass_fields__]
    flags = [re.sub(r"^\$\w+$", "1", part) for part in flags if not re.search(r"[<>]", part)]
    monkeypatch.setattr(sys, "argv", [argv[0]])
    cli.parse(config, "", flags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")


def run(argv, folder, keys=""):
    argv = [str(ROOT / argv[0]) if argv[0].endswith(".py") else argv[0], *argv[1:]]
    return subprocess.run([sys.executable, *argv], cwd=folder, input=keys, text=True, timeout=120,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
def test_every_printed_command_runs_to_its_end(folder):
    """In one folder, the stages first, as a reader goes through the README."""
    order = [(stage + ".py",) for stage in STAGES]
    order += [argv for argv in PRINTED if runs_here(argv) and argv not in order]
    for argv in order:
        flags = [flag for flag in FLAGS[program_of(argv)]
                 if "--init" not in argv or flag.split("=")[0] not in SHAPE]
        done = run([*argv, *flags], folder, "1234\nq")
        assert done.returncode == 0 and not done.stderr, (argv, done.stderr[-2000:])
        assert done.stdout.strip() and "Traceback" not in done.stdout, argv
    assert (folder / "exp" / "beta-0" / "ppo" / "results.json").exists()
    for argv in (["-m", "data.judge.compare", "out/ppo", "exp/beta-0/ppo"],
                 ["-m", "data.run.lineage", "out"], ["-m", "data.world.labeler"],
                 ["-m", "data.files.foreign"], ["-m", "notebooks.memory"],
                 ["gpt.py", "--export", "my-model", "--ckpt", "out/ppo/ckpt.pt"]):
        done = run(argv, folder)
        assert done.returncode == 0 and done.stdout.strip() and not done.stderr, (argv, done.stderr)
    shutil.copy(folder / "out" / "reward" / "comparisons.jsonl", folder / "a.jsonl")
    done = run(["-m", "data.people.feedback", "a.jsonl", "a.jsonl"], folder)
    assert done.returncode == 0 and "agreement 100.0%" in done.stdout, done.stderr
