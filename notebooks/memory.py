"""How much memory a stage takes, computed from the shapes.

    python -m notebooks.memory     the README's table: GPT-2 small to XL, fp32 and bf16

In bytes, for a model with P parameters, L blocks of C channels and H heads, and rows of T tokens:

    weights      4 P        of each model
    training     12 P more  gradients and AdamW's two moments, of each model that learns; of the
                            blocks' matrices, gpt.py's Muon keeps one moment, which is less.
                            reward.py keeps a scaled copy of its model; ppo.py needs 4 P more for
                            each further reward model, and for the base model
    copies       2 P more   with --bf16: the learning models' matrices in bfloat16, while a graph
                            exists
    activations  rows T (L (64 C + 4 H) + 8 C) in fp32, rows T (L (36 C + 4 H) + 8 C) with --bf16.
                 With --gradient_checkpointing, L blocks keep 4 C each, and one at a time the rest
    logits       12 V for each token that is predicted: log-probabilities, and in backward their
                 gradient and the logits'. Of large batches they are computed in chunks of 25
                 million, so that they never take more than .3 GB

A block keeps 16 C numbers per token: the inputs of two LayerNorms (2 C), of three of its matrices
(C, C, 4 C), of attention (3 C), of GELU (4 C), and what attention gives (C), the input of the
fourth matrix. With --bf16, those of the LayerNorms stay in fp32. Attention weights are recomputed
in backward, so nothing grows with T squared. tests/test_memory.py compares this with what torch
keeps.
"""

import math
from dataclasses import dataclass

import torch

import gpt
from data.judge.figures import markdown

SIZES = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280),
         "gpt2-xl": (48, 25, 1600)}


@dataclass
class Stage:
    """What is in memory at once: how many models learn, how many only read, whether tokens count.
    """

    learning: int
    reading: int
    predicts: bool


STAGES = {"gpt": Stage(1, 0, True), "sft": Stage(1, 0, True), "reward": Stage(1, 1, False),
          "ppo": Stage(2, 2, True)}


def parameters(config):
    C = config.n_embd
    blocks = config.n_layer * (12 * C * C + 13 * C)
    return (config.vocab_size + config.block_size) * C + blocks + 2 * C


def activations(config, tokens, predicts, bf16=False, checkpointing=False):
    """Bytes that a graph over so many tokens keeps, and what backward adds to them at its peak."""
    L, H, C = config.n_layer, config.n_head, config.n_embd
    block = (36 if bf16 else 64) * C + 4 * H
    kept = L * 4 * C + block if checkpointing else L * block
    return tokens * (kept + 8 * C) + predicts * logits(config, tokens)


def logits(config, tokens):
    """Bytes of the logits of so many tokens, and of what backward adds to them."""
    return 12 * config.vocab_size * min(tokens, gpt.rows_at_once(config, 1))


def models(config, stage, bf16=False, further=0):
    """Bytes of all models of a stage and of `further` readers, with gradients, moments, logits."""
    s = STAGES[stage]
    each = 16 * s.learning + 4 * (s.reading + further) + 2 * bf16 * s.learning
    return parameters(config) * each + s.predicts * logits(config, math.inf)


def row(config, stage, tokens, bf16=False, checkpointing=False):
    """Bytes that each row of so many tokens adds."""
    return STAGES[stage].learning * activations(config, tokens, False, bf16, checkpointing)


def table(tokens=512):
    """Markdown: GB of each stage, and what each row of so many tokens in memory adds."""
    rows = []
    for name, (L, H, C) in SIZES.items():
        config = gpt.GPTConfig(50261, 1024, L, H, C)
        for bf16 in (False, True):
            cells = [f"{models(config, stage, bf16) / 1e9:.1f} + "
                     f"{row(config, stage, tokens, bf16) / 1e9:.2f}" for stage in STAGES]
            rows.append([name, f"{parameters(config) / 1e6:.0f} M", "bf16" if bf16 else "fp32",
                         *cells])
    return markdown(["", "parameters", "", *STAGES], rows)


def measured(model, idx, predicts):
    """Bytes that torch keeps for backward of one batch's graph.

    This is what `activations` estimates, without what backward itself adds.
    """
    kept, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # the tensor, so that its memory is not used again
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = gpt.token_logprobs(model, idx).sum() if predicts else model(idx).sum()
    del loss
    return sum(size for size, _ in kept.values())


if __name__ == "__main__":
    print(table())
