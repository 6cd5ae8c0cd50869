"""What every stage trains with: parts of a batch, AdamW, Muon, one optimiser step, learning rates.

    for part, share in optim.micro_batches(batch, size):
        loss = loss_of(part) * share
        loss.backward()
    optim.optimizer_step(model, opt, lr)
"""

import dataclasses
import math

import torch
import torch.nn as nn

from data.run.device import exact_products
from data.run.processes import all_reduce, rank, world

# ---- parts of a batch ----------------------------------------------------------------------------


def micro_batches(batch, size=0, weight=len):
    """Cut a batch (list or tensor) into parts of at most `size` rows -> [(part, share)].

    share is the part's weight over the batch's: the sum of share * mean over the part is the mean
    over the batch, whatever the size. 0: one part. Of several processes each gets its own rows, in
    equally many parts; one that has fewer repeats a row with share 0. Example, for one process:
    [1, 2, 3], size 2 -> [([1, 2], 2/3), ([3], 1/3)]
    """
    own, total = batch[rank()::world()], max(1, weight(batch))
    most = -(-len(batch) // world())  # rows of the process that has most
    size = min(size or most, most)
    parts = [own[i:i + size] for i in range(0, most, size)]
    return [(part, weight(part) / total) if len(part) else (batch[:1], 0.0) for part in parts]


def by_length(batch, rows, size):
    """Cut some rows of a record of tensors into parts of similar length -> yields (part, share).

    Padding costs as much as tokens do: each part ends with its longest row. size 0: as many rows
    as `rows_per_part` says. share: of the rows' response tokens. batch: a dataclass with `lengths`
    (B,), `mask` (B, T-1), and fields (B,), (B, T) or (B, T-1).
    """
    for _, part, share in _parts(batch, rows, size):
        yield part, share


def rows_per_part(lengths):
    """For rows of these lengths, ascending: one, two or four parts, whichever costs least.

    Work goes by the padded tokens, and each further part adds a twelfth (LOG: parts of a
    minibatch).
    """
    def cost(parts):
        size = math.ceil(len(lengths) / parts)
        longest = [lengths[first:first + size][-1] for first in range(0, len(lengths), size)]
        return (11 + parts) * size * sum(longest)

    return math.ceil(len(lengths) / min((1, 2, 4), key=cost))


def _parts(batch, rows, size):
    rows = rows.to(batch.lengths.device)
    table = torch.stack([rows, batch.lengths[rows], batch.mask[rows].sum(1)], 1)
    table = sorted(table.tolist(), key=lambda row: row[1])  # of each row: number, length, actions
    size = size or rows_per_part([length for _, length, _ in table])
    for part, share in micro_batches(table, size, lambda part: sum(n for _, _, n in part)):
        own = torch.tensor([row for row, _, _ in part], device=rows.device)
        yield own, cut(batch, own, part[-1][1]), share


def cut(batch, rows, T):
    """Some rows (1-D tensor of their numbers) of a record of tensors, to T tokens -> a record."""
    tensors = {}
    for field in dataclasses.fields(batch):
        x = getattr(batch, field.name)
        if x is not None and x.dim() == 1:
            tensors[field.name] = x[rows]
        elif x is not None:  # T columns, or T - 1 as the mask has
            tensors[field.name] = x[rows, :T - 1 + x.shape[1] - batch.mask.shape[1]]
    return dataclasses.replace(batch, **tensors)


def fill(batch, size):
    """Go through a record in parts, as `by_length` cuts it: what a part is given, the batch gets.

    A field that is None in the batch and a tensor in the parts becomes a tensor of the batch.
    """
    new = [field.name for field in dataclasses.fields(batch) if getattr(batch, field.name) is None]
    tensors = {}
    for rows, part, share in _parts(batch, torch.arange(len(batch.lengths)), size):
        yield part
        for name in new:
            if (x := getattr(part, name)) is not None:
                shape = batch.mask.shape if x.dim() == 2 else batch.lengths.shape
                whole = tensors.setdefault(name, x.new_zeros(shape))
                if share:
                    whole[(rows, slice(x.shape[1])) if x.dim() == 2 else rows] = x
    all_reduce(*tensors.values())
    for name, whole in tensors.items():
        setattr(batch, name, whole)


class Sums:
    """Figures of a batch, added up part by part, over all processes."""

    def __init__(self):
        self.sums = {}

    def add(self, share=1.0, **figures):
        """figures: scalar tensors, means over a part that is this share of the batch."""
        for name, x in figures.items():
            self.sums[name] = self.sums.get(name, 0) + share * x.detach()

    def total(self):
        """-> {name: float}."""
        return dict(zip(self.sums, all_reduce(torch.stack([*self.sums.values()])).tolist()))


# ---- optimisers ----------------------------------------------------------------------------------


def groups(model, weight_decay):
    """A model's parameters for an optimiser: matrices decay, biases and LayerNorms do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0}]


def adamw(model, lr, weight_decay=0.0, eps=1e-8):
    """AdamW, for all stages that start from a model that has learned."""
    return torch.optim.AdamW(groups(model, weight_decay), lr=lr, betas=(.9, .95), eps=eps,
                             fused=True)


def orthogonal(x):
    """Matrices (..., M, N) -> the same singular vectors, with all singular values near 1.

    Five Newton-Schulz steps with the coefficients of Jordan et al. 2024, which bring the values
    into (.7, 1.2): fast rather than exactly. Each step multiplies x by a polynomial in x x^T, so
    the factors are multiplied first, which are of the smaller side; this needs exact products.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.mT).mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    with exact_products():
        square, product = x @ x.mT, None
        for step in range(5):
            factor = 2.0315 * (square @ square) - 4.775 * square
            factor.diagonal(dim1=-2, dim2=-1).add_(3.4445)
            product = factor if product is None else factor @ product
            if step < 4:
                square = factor @ square @ factor
        return product @ x


class Muon(torch.optim.AdamW):
    """AdamW, but the matrices in a GPT's blocks follow their momentum, made orthogonal.

    So a step moves a matrix equally far in all directions, in rare ones too (Jordan et al. 2024).
    Scaled to the size of AdamW's steps, it takes the same rate and decay (Liu et al. 2025, section
    2.2). From random weights it needs a third fewer tokens (LOG: Muon).
    """

    def __init__(self, model, lr, weight_decay=0.0):
        super().__init__(groups(model, weight_decay), lr=lr, betas=(.9, .95), fused=True)
        matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
        shapes = {p.shape for p in matrices}
        self.inner = [[p for p in matrices if p.shape == shape] for shape in sorted(shapes)]

    @torch.no_grad()
    def step(self):
        """One step. All matrices in the blocks need a gradient."""
        lr, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        for same_shape in self.inner:
            ahead = []
            for p in same_shape:
                if p not in self.state:  # with `step`, for which AdamW asks when a state is loaded
                    self.state[p] = {"step": torch.zeros(()), "momentum": torch.zeros_like(p)}
                momentum = self.state[p]["momentum"].lerp_(p.grad, .05)
                ahead.append(p.grad.lerp(momentum, .95))
            for p, update in zip(same_shape, orthogonal(torch.stack(ahead))):
                p.mul_(1 - lr * decay).sub_(update, alpha=.4 * lr * max(p.shape) ** .5)
                p.grad = None  # already updated: AdamW must skip it
        super().step()


def optimizer_step(model, opt, lr, clip=1.0):
    """Sum gradients over processes, clip their norm, step -> the norm before clipping.

    A gradient that is not finite changes nothing, and the caller sees it by the norm. No gradient
    is left behind: the next backward starts from none.
    """
    if world() > 1:
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        all_reduce(*[p.grad for p in model.parameters()])
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip).item()
    for group in opt.param_groups:
        group["lr"] = lr
    if math.isfinite(norm):
        opt.step()
    opt.zero_grad(set_to_none=True)
    return norm


def learning_rate(step, steps, lr, warmup=0, floor=0.0):
    """Linear warm-up, then a cosine from lr down to floor * lr. Steps count from 0."""
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return lr * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)
