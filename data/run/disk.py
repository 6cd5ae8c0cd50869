"""Bytes to disk and back: files that are whole at any moment, and checkpoints as plain data.

This file knows no class of model: gpt.py and data/files/gpt2.py build models from what it reads.
"""

import contextlib
import io
import json
import os
import pickle
import zipfile
import zlib
from dataclasses import asdict
from pathlib import Path

import torch

from data.run.processes import rank
from data.run.system import UserError

LARGEST_JSON = 50_000_000  # bytes; a value takes up to 30 times as much memory
# The metadata that this code reads from a checkpoint, if it is there.
ABOUT = dict(stage=str, step=int, seed=int, scale=float, commit=str, seconds=dict, ancestors=dict,
             config=dict, figures=dict)
# What reading a file may raise if it is broken, was cut, or was made to do harm.
BROKEN = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
          AssertionError, EOFError, OSError, MemoryError, pickle.UnpicklingError,
          zipfile.BadZipFile, zlib.error)


def reason(error):
    """An exception in a few words."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:120]


# ---- out -----------------------------------------------------------------------------------------


def write(path, content):
    """Write a file that holds its old or its new content, whole in both cases.

    content: bytes, str, or a function that writes to the open file it is given. Of several
    processes only the first writes. UserError if the disk is full or the folder read-only.
    """
    half = Path(f"{path}.{os.getpid()}.tmp")
    if rank() == 0:
        with writable(path):
            try:
                _put(half, "wb", content)
                os.replace(half, path)
            finally:
                half.unlink(missing_ok=True)


def append(path, text):
    """Append lines; they are on disk when this returns. Of several processes the first writes."""
    if rank() == 0:
        with writable(path):
            _put(path, "ab", text + "\n")


def _put(file, mode, content):
    with open(file, mode) as stream:
        if callable(content):
            content(stream)
        else:
            stream.write(content if isinstance(content, bytes) else content.encode())
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def writable(path):
    """UserError for a file that cannot be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save hides the one behind the other
        cause = error if isinstance(error, OSError) else error.__context__ or error
        raise UserError(f"{path} cannot be written ({reason(cause)}): make room or choose another "
                        "folder; what was saved before is whole") from None


def make_folder(path):
    """Make a folder and those above it -> Path; UserError if that cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path} ({error.strerror}): change --out") from None
    return Path(path)


def write_figure(path, figure):
    """Write a matplotlib Figure as PNG."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, bbox_inches="tight")  # else labels may be cut
    write(path, picture.getvalue())


def write_model(path, model, tokenizer, **about):
    """Write a checkpoint: a model, its tokenizer and any facts about them."""
    fields = dict(kind=type(model).__name__, config=asdict(model.config), about=about,
                  tokenizer=tokenizer.to_list(), state=model.state_dict())
    write(path, lambda file: torch.save(fields, file))


# ---- in ------------------------------------------------------------------------------------------


def load(path, device="cpu"):
    """Read what torch.save wrote, plain data only: no file can run code. Raises one of BROKEN."""
    size = regular(path).st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:  # torch packs without compressing
            if sum(part.file_size for part in parts.infolist()) > size:
                raise ValueError("it unpacks to more than its size")
            if damaged := parts.testzip():  # torch.load does not look at the checksums
                raise ValueError(f"{damaged} is damaged: its checksum differs")
    return torch.load(path, map_location=device, weights_only=True)


@contextlib.contextmanager
def reading(path, remedy, blame_memory=True):
    """UserError for a file that is broken. blame_memory: also where there is too little memory."""
    try:
        yield
    except BROKEN as error:
        if not blame_memory and isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
            raise
        raise UserError(f"{path} cannot be read ({reason(error)}): {remedy}") from None


@contextlib.contextmanager
def readable(path, hint="make it again"):
    """UserError for a checkpoint that is missing or that nobody can read."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} not found: {hint}") from None
    except BROKEN as error:
        raise UserError(f"{path} is not a checkpoint that can be read ({reason(error)}): "
                        f"{hint}") from None


def read_model(path, device, convert=lambda fields, path: fields):
    """The fields that `write_model` wrote -> dict. For other files one of BROKEN is raised.

    convert: makes such fields of what others have saved.
    """
    fields = convert(load(path, device), path)
    claim_no_more_than_they_hold(fields["state"])
    for name, kind in ABOUT.items():
        if not isinstance(fields["about"].get(name, kind()), kind):
            raise ValueError(f"the {name} in its metadata is not of type {kind.__name__}")
    return fields


def check(config, state):
    """Raise ValueError for impossible sizes, and for weights that nothing can be computed with."""
    sizes = vars(config)
    if not all(type(size) is int and 0 < size < 2 ** 31 for size in sizes.values()):
        raise ValueError(f"sizes that are not positive integers: {sizes}")
    if config.n_layer > len(state) or config.n_embd % config.n_head:  # 10^9 blocks take forever
        raise ValueError(f"it claims {config.n_layer} blocks of {config.n_head} heads")
    kinds = {tensor.dtype for tensor in state.values()}
    if kinds not in ({torch.float32}, {torch.float64}):
        raise ValueError(f"its weights are of other types than float32: {kinds}")
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise ValueError("it holds numbers that are not finite")


def claim_no_more_than_they_hold(tensors):
    """Raise ValueError if one of {name: tensor} claims more numbers than the file held for it."""
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} claims more numbers than it holds")
        if tensor.is_neg() or tensor.is_conj():
            raise ValueError(f"{name} is a view that changes the signs of its numbers")


def read_json(path, lines=False, remedy="run its stage again"):
    """The value of a JSON file, or of each of its lines; UserError if it cannot be read."""
    with reading(path, remedy):
        if regular(path).st_size > LARGEST_JSON:
            raise ValueError(f"it is larger than {LARGEST_JSON / 1e6:.0f} MB")
        text = Path(path).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)


def read_results(out):
    """{stage: its results} of a finished pipeline in the folder `out`."""
    return {stage: read_json(Path(out) / stage / "results.json")
            for stage in ("gpt", "sft", "reward", "ppo")}


def regular(path):
    """os.stat of a file; ValueError for anything else, such as a pipe, which would hang.

    UserError for what a download may leave in the place of a file.
    """
    if not Path(path).is_file() and Path(path).exists():
        raise ValueError("not a regular file")
    with open(path, "rb") as file:
        start = file.read(100).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS and not the file itself: run git lfs pull")
    if start.startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{path} is a web page and not the file itself: download the raw file")
    return Path(path).stat()
