"""Optimisers: AdamW, Muon, one step of either, and the learning rate's schedule."""

import math

import torch
import torch.nn as nn

from data.run.processes import all_reduce, world


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
    """A matrix (M, N) -> the same singular vectors, with all singular values near 1.

    Five Newton-Schulz steps with the coefficients of Jordan et al. 2024, which bring the values
    into (.7, 1.2): fast rather than exactly.
    """
    if len(x) > x.shape[1]:
        return orthogonal(x.T).T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
    return x


class Muon(torch.optim.AdamW):
    """AdamW, but the matrices in a GPT's blocks follow their momentum, made orthogonal.

    So a step moves a matrix equally far in all directions, in rare ones too (Jordan et al. 2024).
    Scaled to the size of AdamW's steps, it takes the same rate and decay (Liu et al. 2025, section
    2.2). From random weights it needs a third fewer tokens (LOG: Muon).
    """

    def __init__(self, model, lr, weight_decay=0.0):
        super().__init__(groups(model, weight_decay), lr=lr, betas=(.9, .95), fused=True)
        self.inner = [p for p in model.blocks.parameters() if p.dim() == 2]

    @torch.no_grad()
    def step(self):
        """One step. All matrices in the blocks need a gradient."""
        lr, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        for p in self.inner:
            if p not in self.state:  # with `step`, for which AdamW asks when a state is loaded
                self.state[p] = {"step": torch.zeros(()), "momentum": torch.zeros_like(p)}
            momentum = self.state[p]["momentum"].lerp_(p.grad, .05)
            update = orthogonal(p.grad.lerp(momentum, .95)) * max(p.shape) ** .5
            p.mul_(1 - lr * decay).sub_(update, alpha=.4 * lr)
            p.grad = None  # AdamW has nothing to do with it
        super().step()


def optimizer_step(model, opt, lr, clip=1.0):
    """Sum gradients over processes, clip their norm, step -> the norm before clipping.

    A gradient that is not finite changes nothing, and the caller sees it by the norm. No gradient
    is left behind: the next backward starts from none.
    """
    if world() > 1:
        for p in model.parameters():
            p.grad = all_reduce(torch.zeros_like(p) if p.grad is None else p.grad)
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
