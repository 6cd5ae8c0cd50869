"""Bytes to disk and back: files that are whole at any moment, and checkpoints as plain data.

This file knows no class of model: gpt.py and data/files/gpt2.py build models from what it reads.
"""

import io
import os
from pathlib import Path

import torch

from data.run.processes import rank


def write(path, content, keep=None):
    """Write bytes or str to a file that holds its old or its new content, whole in both cases.

    The old file is kept as `keep`, if that is given. Of several processes only the first writes.
    """
    if rank():
        return
    path = Path(path)
    half = path.with_name(path.name + ".tmp")
    try:
        with open(half, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(half, path)
    except OSError as error:
        half.unlink(missing_ok=True)
        error.filename = str(path)
        raise


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


def unpack(path, device):
    """The five fields that `pack` wrote -> dict.

    What torch raises for other files is raised here.
    """
    return torch.load(path, map_location=device, weights_only=True)
