"""Stages and tests as processes that start at once, for tests that need many of them.

The nursery loads torch once, never computes, and so can fork a process for each run. It reads
commands from stdin, one
JSON object a line, and answers with a line: {"run": argv, "log": path, ...} -> the process's
number; {"wait": number} ->
its exit status, negative for a signal. A run is a stage, or "pytest" in the folder "cwd". With
"die" the process kills
itself at its n-th fsync or replace; with "largest" no file can be larger than so many bytes.
"""

import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


class Nursery:
    """The other end: start processes, wait for them."""

    def __init__(self, what="stages"):
        """what: "stages" of this folder, or "tests" of any."""
        command = [sys.executable, __file__, what]
        self.process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"},
                                        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, argv, log, errors="", cwd=ROOT, die=0, largest=0, **environment):
        """Start a process -> its number. Its output goes to the file `log`, and its errors too,
        unless `errors` names another."""
        return self.ask(run=[str(part) for part in argv], log=str(log), errors=str(errors or log),
                        cwd=str(cwd), die=die, largest=largest, environment=environment)

    def start_together(self, argv, log, n=2, master_port=29517):
        """n processes that work together, as torchrun starts them -> their numbers."""
        common = dict(WORLD_SIZE=str(n), MASTER_ADDR="localhost", MASTER_PORT=str(master_port),
                      TORCHELASTIC_RUN_ID="nursery")
        return [self.start(argv, log, RANK=str(rank), LOCAL_RANK=str(rank), **common)
                for rank in range(n)]

    def wait(self, number):
        return self.ask(wait=number)

    def run(self, argv, log, errors="", **how):
        return self.wait(self.start(argv, log, errors, **how))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def die_at(n):
    """Kill this process at its n-th call of fsync or replace: before it for an odd n, after it for
    an even one."""
    calls = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == n and n % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            function(*args, **kwargs)
            if calls == n:
                os.kill(os.getpid(), signal.SIGKILL)
        return call
    os.fsync, os.replace = counted(os.fsync), counted(os.replace)


def child(command):
    for stream, path in ((1, command["log"]), (2, command["errors"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), stream)
    sys.stdin = open(os.devnull)
    sys.stdout, sys.stderr = [os.fdopen(n, "w", buffering=1) for n in (1, 2)]
    sys.argv = command["run"]
    os.chdir(command["cwd"])
    os.environ.update(command["environment"])
    if command["die"]:
        die_at(command["die"])
    if command["largest"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (command["largest"],) * 2)
    status = 0
    try:
        if sys.argv[0] == "pytest":
            sys.exit(pytest.main(sys.argv[1:]))
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def load_tests():
    """What tests import, but nothing of this folder: they run in others."""
    import matplotlib.figure  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import tiktoken  # noqa: F401
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel  # noqa: F401
    sys.path.remove(str(ROOT / "tests"))


def load_stages():
    sys.path.insert(0, str(ROOT))
    import ppo  # noqa: F401, and with it all that the stages import
    import reward  # noqa: F401
    import sft  # noqa: F401
    from data.run import curves, disk
    curves.draw = lambda *args, **kwargs: None  # a picture takes a second
    disk.write_figure = lambda path, figure: disk.write(path, b"")


def serve(what):
    import torch
    import torch._dynamo  # noqa: F401, which the first optimizer imports
    torch.set_num_threads(1)
    dict(stages=load_stages, tests=load_tests)[what]()
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            answer = os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1])
        elif not (answer := os.fork()):
            child(command)
        print(answer, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
