"""One folder, one writer: a lock that the operating system takes back when its owner ends."""

import json
import os
import socket
import time
from pathlib import Path

import filelock

from data.run.cli import UserError

_held = {}  # the locks of this process: a notebook may train in the same folder again and again


def lock(path, remedy="choose another --out"):
    """Own a file or folder until this process ends, or say in a UserError who owns it.

    In the folder, or beside the file, lie an empty .lock and .owner, which says who.
    """
    path = Path(path).resolve()
    if path in _held:
        return
    owner = _beside(path, "owner")
    held = filelock.FileLock(_beside(path, "lock"))
    try:
        held.acquire(blocking=False)
    except filelock.Timeout:
        raise UserError(f"another process writes to {path}{_who(owner)}: wait until it has "
                        f"finished, stop it, or {remedy}") from None
    except (OSError, NotImplementedError):
        return  # a file system without locks; what cannot be written is said when it is written
    _held[path] = held
    owner.write_text(json.dumps(dict(pid=os.getpid(), host=socket.gethostname(),
                                     since=time.strftime("%Y-%m-%d %H:%M:%S"))),
                     encoding="utf-8")


def unlock(path):
    """Let others write."""
    path = Path(path).resolve()
    if held := _held.pop(path, None):
        _beside(path, "owner").unlink(missing_ok=True)
        held.release()


def _beside(path, ending):
    return path / f".{ending}" if path.is_dir() else path.with_name(f".{path.name}.{ending}")


def _who(owner):
    try:
        who = json.loads(owner.read_text(encoding="utf-8"))
        return f" (process {who['pid']} on {who['host']}, since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written at this moment
        return ""
