"""Ctrl-C, and what schedulers send before they kill: the step is finished and saved first.

Stage files import this module before torch, which takes seconds to load: Ctrl-C in that time ends
the stage silently. A program of another folder that imports a stage keeps its own signals.
"""

import os
import signal
import sys
import time
from pathlib import Path

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
           if hasattr(signal, name)]

asked = 0           # the signal that asked this process to stop
in_loop = False     # whether a training loop runs, which looks at `asked` after each step
resumable = False   # whether a run has begun that --resume can go on with
_since = 0.0

if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parents[2]:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Stopped(KeyboardInterrupt):
    """A training loop that was asked to stop has saved what it has."""


def listen():
    """From now on a signal stops a training loop after its step, and anything else at once."""
    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, _handle)


def let_go():
    """From now on a signal ends this process at once, without a word."""
    for number in NUMBERS:
        if signal.getsignal(number) == _handle:
            signal.signal(number, signal.SIG_DFL)


def _handle(number, frame):
    global asked, _since
    if asked:
        # torchrun hands on to its processes the Ctrl-C that the terminal has sent them already.
        if "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - _since < 1:
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    asked, _since = number, time.monotonic()
    if not in_loop:
        raise KeyboardInterrupt
    if os.environ.get("RANK", "0") == "0":
        try:
            os.write(2, b"\nThis step is finished and saved first; once more to leave at once.\n")
        except OSError:  # the terminal is gone
            pass
