"""The process and its terminal: signals, locks, and streams that nothing printed can steer.

Stage files import this module before torch, for two reasons. Torch takes seconds to load: Ctrl-C in
that time ends the stage silently. And the threads of its OpenMP spin while they wait, which takes
the CPU from other programs: a short spin costs a run that is alone little (LOG: a laptop in use).
That is for Linux, where torch has GNU's OpenMP. On macOS and Windows it has LLVM's or Intel's,
whose threads spin for 200 ms (KMP_BLOCKTIME), and nothing is changed.
"""

import contextlib
import io
import os
import signal
import socket
import sys
import time
from pathlib import Path

import filelock

if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ["GOMP_SPINCOUNT"] = "2000"
if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parents[2]:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a program elsewhere keeps its own signals


class UserError(Exception):
    """Something only the user can put right: one sentence with what, where and the remedy."""


class Finished(UserError):
    """What --resume should continue is done already: no error for a script that starts again."""


# ---- signals -------------------------------------------------------------------------------------

# Ctrl-C, and what schedulers send before they kill.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]

stop_requested = 0      # the signal that asked this process to stop
in_loop = False         # true while a training loop runs, which looks at stop_requested each step
resumable = False       # true once a run has begun that --resume can continue
_requested_at = 0.0


class Interrupted(KeyboardInterrupt):
    """A training loop that was asked to stop has saved its progress."""


def listen():
    """From now on a signal stops a training loop after its step, and anything else at once."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, _handle)


def end_at_once():
    """From now on a signal ends this process at once, without a word."""
    for number in SIGNALS:
        if signal.getsignal(number) == _handle:
            signal.signal(number, signal.SIG_DFL)


def _handle(number, frame):
    global stop_requested, _requested_at
    if stop_requested:
        # torchrun passes on to its processes the Ctrl-C that the terminal has sent them already.
        if "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - _requested_at < 1:
            return
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    stop_requested, _requested_at = number, time.monotonic()
    if not in_loop:
        raise KeyboardInterrupt
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):  # the terminal is gone
            os.write(2, b"\nThis step is finished and saved first; once more to leave at once.\n")


# ---- one folder, one writer ----------------------------------------------------------------------

_locks = {}  # of this process: a notebook may train in the same folder again and again


def lock(path, remedy="choose another --out"):
    """Own a file or folder until this process ends, or say in a UserError who owns it.

    The operating system takes the lock back from a process that is killed. In the folder, or beside
    the file, lie an empty .lock and .owner, which says who.
    """
    path = Path(path).resolve()
    if path in _locks:
        return
    owner, new = _beside(path, "owner"), filelock.FileLock(_beside(path, "lock"))
    try:
        new.acquire(blocking=False)
    except filelock.Timeout:
        who = f" ({owner.read_text(encoding='utf-8')})" if owner.is_file() else ""
        raise UserError(f"another process writes to {path}{who}: wait until it has finished, stop "
                        f"it, or {remedy}") from None
    except (OSError, NotImplementedError):
        return  # a file system without locks; a failing write will be reported when it happens
    _locks[path] = new
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()}, since "
                     f"{time.strftime('%Y-%m-%d %H:%M:%S')}", encoding="utf-8")


def unlock(path):
    """Release the lock."""
    path = Path(path).resolve()
    if path in _locks:
        _beside(path, "owner").unlink(missing_ok=True)
        _locks.pop(path).release()


def _beside(path, ending):
    return path / f".{ending}" if path.is_dir() else path.with_name(f".{path.name}.{ending}")


# ---- the terminal --------------------------------------------------------------------------------


class _Escaping(io.TextIOWrapper):
    """Shows control characters and marks of direction instead of obeying them: models, people and
    files write what is printed, and none of them may steer the terminal."""

    STEERING = [*range(32), *range(127, 160), 0x61c, 0x200e, 0x200f, *range(0x202a, 0x202f),
                *range(0x2066, 0x206a)]
    TABLE = {n: ascii(chr(n))[1:-1] for n in STEERING if chr(n) not in "\n\t"}

    def write(self, text):
        return super().write(text.translate(self.TABLE))


def escaping(stream):
    """The same stream, but what is written to it cannot steer the terminal."""
    if not hasattr(stream, "buffer"):  # it was closed, or is that of a notebook or an IDE
        return stream
    stream.flush()
    new = _Escaping(stream.buffer, stream.encoding, "backslashreplace",
                    line_buffering=stream.line_buffering, write_through=stream.write_through)
    new.replaced = stream  # which would close the buffer that they share if it were forgotten
    return new


def careful_streams():
    """What a terminal cannot show is escaped; half a character typed becomes a question mark."""
    sys.stdout, sys.stderr = escaping(sys.stdout), escaping(sys.stderr)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")


def require_stdin():
    """UserError if there is no standard input to ask a person."""
    if sys.stdin is None:
        raise UserError("a person is asked here: run it in a terminal (or pipe the keys into it)")
