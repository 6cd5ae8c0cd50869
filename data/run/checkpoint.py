"""Bytes to disk and back: files that are whole at any moment, and checkpoints as plain data.

This file knows no class of model: gpt.py and data/files/gpt2.py build models from what it reads.
"""

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import torch

from data.run.cli import UserError
from data.run.processes import rank

LARGEST_JSON = 50_000_000  # bytes; a value takes up to 30 times as much memory
# What a checkpoint may say of itself, if it does.
ABOUT = dict(stage=str, step=int, seed=int, scale=float, commit=str, seconds=dict, ancestors=dict)
# What reading a file may raise if it is broken, was cut, or was made to do harm.
BROKEN = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
          AssertionError, EOFError, OSError, MemoryError, pickle.UnpicklingError,
          zipfile.BadZipFile)


def reason(error):
    """What an exception says, in a few words for a sentence."""
    return (str(error) or type(error).__name__).splitlines()[0][:80]


def write(path, content):
    """Write a file that holds its old or its new content, whole in both cases.

    content: bytes, str, or a function that writes to the open file it is given. Of several
    processes only the first writes. UserError if the disk is full or the folder read-only.
    """
    if rank():
        return
    path = Path(path)
    half = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(half, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except (OSError, RuntimeError) as error:  # torch.save hides the one behind the other
        half.unlink(missing_ok=True)
        raise _unwritten(path, error) from None


def append(path, line):
    """Append a line; it is on disk when this returns. Of several processes only the first writes.
    """
    if rank():
        return
    try:
        with open(path, "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritten(path, error) from None


def _unwritten(path, error):
    cause = error if isinstance(error, OSError) else error.__context__
    why = getattr(cause, "strerror", None) or reason(error)
    return UserError(f"{path} cannot be written ({why}): make room or choose another folder; what "
                     "was saved before is whole")


def make_folder(path):
    """Make a folder and those above it -> Path; UserError if that cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path} ({error.strerror}): choose another "
                        "--out") from None
    return Path(path)


def keep(path, name):
    """Keep a file under a second name beside it, and leave it where it is."""
    path = Path(path)
    if rank() or not path.exists():
        return
    second = path.with_name(f"{name}.{os.getpid()}.tmp")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without links
        shutil.copyfile(path, second)
    os.replace(second, path.with_name(name))


def write_figure(path, figure):
    """Write a matplotlib Figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, bbox_inches="tight")  # else labels may be cut
    write(path, picture.getvalue())


def pack(kind, config, tokens, about, state):
    """A checkpoint as bytes.

    kind: the name of the model's class; config: dict of its sizes; tokens: the tokenizer as
    Tokenizer.to_list gives it; about: facts about the model; state: {name: tensor}.
    """
    content = io.BytesIO()
    fields = dict(kind=kind, config=config, tokenizer=tokens, about=about, state=state)
    torch.save(fields, content)
    return content.getvalue()


def unpack(path, device, convert=lambda found, path: found):
    """The five fields that `pack` wrote -> dict. For other files one of BROKEN is raised.

    convert: makes such fields of what others have saved.
    """
    found = convert(load(path, device), path)
    honest(found["state"])
    for name, kind in ABOUT.items():
        if not isinstance(found["about"].get(name, kind()), kind):
            raise ValueError(f"what it says of its {name} is no {kind.__name__}")
    return found


def load(path, device):
    """What torch.save wrote, if it is plain data: no file can run code. Raises one of BROKEN."""
    size = regular(path).st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:  # torch packs without compressing
            if sum(part.file_size for part in parts.infolist()) > size:
                raise ValueError("it unpacks to more than its size")
    return torch.load(path, map_location=device, weights_only=True)


def check(config, state):
    """Raise ValueError for sizes that are none, and for weights that nothing can be computed with.
    """
    sizes = vars(config)
    if not all(type(size) is int and 0 < size < 2 ** 31 for size in sizes.values()):
        raise ValueError(f"it claims sizes that are none: {sizes}")
    if config.n_layer > len(state) or config.n_embd % config.n_head:  # 10^9 blocks take forever
        raise ValueError(f"it claims {config.n_layer} blocks of {config.n_head} heads")
    kinds = {tensor.dtype for tensor in state.values()}
    if not kinds <= {torch.float32} and not kinds <= {torch.float64}:
        raise ValueError(f"its weights are of other types than float32: {kinds}")
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise ValueError("it holds numbers that are not finite")


def honest(tensors):
    """Raise ValueError if one of {name: tensor} claims more numbers than the file held for it."""
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} claims more numbers than it holds")


def parse_json(path, lines=False):
    """The value of a JSON file, or of each of its lines. Raises one of BROKEN."""
    if regular(path).st_size > LARGEST_JSON:
        raise ValueError(f"it is larger than {LARGEST_JSON / 1e6:.0f} MB")
    text = Path(path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)


def read_json(path, lines=False):
    """The value of a JSON file of ours; UserError if it cannot be read, also if it is missing."""
    try:
        return parse_json(path, lines)
    except BROKEN as error:
        why = getattr(error, "strerror", None) or f"not JSON: {str(error)[:60]}"
        raise UserError(f"{path} cannot be read ({why}): run its stage again") from None


# What a download may leave in the place of a file: how it begins, what it is, what to do.
IMPOSTORS = {b"version https://git-lfs": ("a pointer of Git LFS", "run git lfs pull in its folder"),
             b"<!doctype html": ("a web page", "download it by the link to the raw file"),
             b"<html": ("a web page", "download it by the link to the raw file")}


def regular(path):
    """os.stat of a file; ValueError for anything that is none, such as a pipe, which would hang.

    UserError for what stands in the place of a file.
    """
    if not Path(path).is_file() and Path(path).exists():
        raise ValueError("not a regular file")
    with open(path, "rb") as file:
        begins = file.read(100).lstrip().lower()
    for start, (what, remedy) in IMPOSTORS.items():
        if begins.startswith(start):
            raise UserError(f"{path} is {what} and not the file itself: {remedy}")
    return Path(path).stat()
