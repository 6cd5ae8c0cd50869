"""Fast generation: gpt.generate with a cache of keys and values, and many prompts at once.

The plain definition is gpt.generate; tests/test_gpt.py checks that both write the same tokens.
"""

import math

import torch
import torch.nn.functional as F

import gpt
from data import optim
from data.run.device import once_rounded
from data.run.processes import all_reduce, any_of


class KVCache:
    """Keys and values of the tokens a batch has read, so that a new token costs one position.

    Prompts fill the first columns, right-padded, and every row's next token goes to the column
    after them, however short its prompt is: which column a key lies in means nothing to attention,
    as positions are added to the embeddings. The padding between is hidden.
    """

    def __init__(self, config, lengths, width, new):
        """lengths (B,): of the prompts; width: of their padded batch; new: tokens to follow."""
        self.lengths, self.width, self.filled = lengths, width, 0
        self.last = config.block_size - 1
        self.fused = lengths.is_cuda  # CPUs add over keys faster (LOG: the cache's columns)
        column = torch.arange(width + new, device=lengths.device)[:, None, None]
        padding = (column >= lengths[:, None]) & (column < width)  # (columns, B, 1)
        self.bias = torch.zeros(padding.shape, device=lengths.device)
        self.bias.masked_fill_(padding, -torch.inf)
        self.k, self.v = {}, {}  # of each layer (columns, B, H, C/H)

    def read(self, model, idx):
        """The hidden states of the next tokens of each row: idx (B, T) -> (B, T, C)."""
        hidden = model.hidden(idx, self.positions(idx.shape[1]), cache=self)
        self.filled += idx.shape[1]
        return hidden

    def positions(self, T):
        """Where the next T tokens of each row stand -> (T,) or (B, T)."""
        steps = torch.arange(T, device=self.lengths.device)
        if not self.filled:
            return steps
        after = self.lengths[:, None] + self.filled - self.width
        return (after + steps).clamp(max=self.last)  # finished rows stay in the context

    def attend(self, layer, q, k, v):
        """What the next tokens of each row find in all that it has read: (B, H, T, C/H) each.

        T is the width of the prompts at first, then 1.
        """
        B, H, T, size = q.shape
        if not self.filled:
            shape = (len(self.bias), B, H, size)
            self.k[layer], self.v[layer] = k.new_empty(shape), v.new_empty(shape)
        seen = self.filled + T
        keys, values = self.k[layer][:seen], self.v[layer][:seen]
        keys[-T:], values[-T:] = k.permute(2, 0, 1, 3), v.permute(2, 0, 1, 3)
        if T > 1:  # prompts: their padding stands after all that could see it
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.fused:
            return F.scaled_dot_product_attention(
                q, keys.permute(1, 2, 0, 3), values.permute(1, 2, 0, 3),
                self.bias[:seen].permute(1, 2, 0)[:, None].to(q.dtype))
        scores = torch.linalg.vecdot(keys, q.squeeze(2)) / math.sqrt(size)  # (seen, B, H)
        weights = (scores + self.bias[:seen]).softmax(0)
        return (weights[..., None] * values).sum(0).unsqueeze(2)

    def keep(self, rows):
        """Forget all rows but these, a 1-D tensor of their numbers; a row may come twice."""
        self.lengths, self.bias = self.lengths[rows], self.bias[:, rows]
        self.k = {layer: k[:, rows] for layer, k in self.k.items()}
        self.v = {layer: v[:, rows] for layer, v in self.v.items()}


@torch.no_grad()
def stream(model, idx, lengths, max_new_tokens, temperature=1.0, copies=1, noise=None):
    """Sample token by token: yields (rows, tokens), rows in work and their next tokens.

    idx (B, T) right-padded prompts, lengths (B,). Each prompt is read once and answered `copies`
    times, by rows b * copies ... b * copies + copies - 1. After its end a row's tokens are <|pad|>.
    noise (B * copies, max_new_tokens): see gpt.generate; the tokens of a row do not depend on the
    other rows.
    """
    config, device, model = model.config, idx.device, once_rounded(model)
    cache = KVCache(config, lengths, idx.shape[1], max_new_tokens)
    prompts = torch.arange(len(idx), device=device)
    hidden = cache.read(model, idx)[prompts, lengths - 1]  # (B, C)
    if copies > 1:
        prompts = prompts.repeat_interleave(copies)
        hidden = hidden[prompts]
        cache.keep(prompts)
    rows = torch.arange(len(prompts), device=device)
    noise = torch.rand(len(rows), max_new_tokens, device=device) if noise is None else noise
    alive = cache.lengths < config.block_size
    for t in range(max_new_tokens):
        token = gpt.choose_token(model, hidden, temperature, noise[rows, t])
        token = torch.where(alive, token, config.pad)
        yield rows, token
        alive = alive & (token != config.end) & (cache.lengths + t + 1 < config.block_size)
        if t % 4 == 3:  # to wait for a GPU's answer, and to move the cache, costs time
            left = alive.nonzero().squeeze(1)
            if not any_of(len(left)):  # of several processes, none stops before the last
                return
            if 0 < len(left) < .75 * len(rows):
                rows, token, alive = rows[left], token[left], alive[left]
                cache.keep(left)
        if t + 1 < max_new_tokens:
            hidden = cache.read(model, token[:, None])[:, 0]


@torch.no_grad()
def generate(model, idx, lengths, max_new_tokens, temperature=1.0, copies=1, noise=None):
    """As gpt.generate, with `copies` answers per prompt -> idx (B * copies, T'), lengths."""
    pad = model.config.pad
    written = idx.new_full((len(idx) * copies, max_new_tokens), pad)
    tokens = stream(model, idx, lengths, max_new_tokens, temperature, copies, noise)
    for t, (rows, token) in enumerate(tokens):
        written[rows, t] = token
    before = lengths.repeat_interleave(copies)
    out = F.pad(idx.repeat_interleave(copies, 0), (0, max_new_tokens), value=pad)
    out.scatter_(1, before[:, None] + torch.arange(max_new_tokens, device=idx.device), written)
    lengths = before + (written != pad).sum(1)
    return out[:, :int(lengths.max())], lengths


def sample_batch(model, prompts, prompt_lengths, cfg):
    """One answer to each prompt of a training batch -> idx (B, T'), lengths (B,).

    A row's noise follows from its number in the batch. Prompts of similar length are answered
    together; of several processes each answers its own.
    """
    B, T = prompts.shape
    noise = torch.rand(B, cfg.max_new_tokens, device=prompts.device)
    idx = prompts.new_zeros(B, T + cfg.max_new_tokens)
    lengths = torch.zeros_like(prompt_lengths)
    rows = prompt_lengths.argsort(stable=True)
    size = rows_in_cache(model.config, T + cfg.max_new_tokens, prompts.device)
    for own, share in optim.micro_batches(rows, size):
        width = int(prompt_lengths[own].max())
        sampled, ends = generate(model, prompts[own, :width], prompt_lengths[own],
                                 cfg.max_new_tokens, cfg.temperature, noise=noise[own])
        if share:
            idx[own], lengths[own] = model.config.pad, ends
            idx[own, :sampled.shape[1]] = sampled
    all_reduce(idx, lengths)
    return idx[:, :int(lengths.max())], lengths


def rows_in_cache(config, tokens, device):
    """How many rows' keys and values fit in 2 GB, on a GPU in an eighth of its memory."""
    on_gpu = torch.device(device).type == "cuda"
    room = torch.cuda.get_device_properties(device).total_memory // 8 if on_gpu else 2 * 10 ** 9
    return max(1, room // (8 * config.n_layer * config.n_embd * tokens))


def has_end(idx, lengths, end):
    """Whether each row ends with <|end|>, whose id is `end`: (B, T), (B,) -> (B,) bool."""
    return idx.gather(1, lengths[:, None] - 1).squeeze(1) == end


def with_room(model, tokenizer, prompts, max_new_tokens):
    """The prompts that leave room for so many new tokens in the model's context."""
    room = model.config.block_size - max_new_tokens
    return [p for p in prompts if len(tokenizer.render(p["prompt"])) <= room]


def sample(model, tokenizer, prompts, max_new_tokens, temperature=1.0, copies=1, batch=256):
    """Answer prompts -> list of id lists, each a response with its <|end|>, if it ended.

    prompts: dicts whose `prompt` is a list of messages, or with a `page`, ids to continue instead.
    The `copies` responses to a prompt follow each other. Prompts of similar length are answered
    together, to compute little padding.
    """
    rendered = [p.get("page") or tokenizer.render(p["prompt"]) for p in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(rendered[i]))
    responses, device = [None] * (len(prompts) * copies), model.wte.weight.device
    longest = max(map(len, rendered), default=0) + max_new_tokens
    size = max(1, min(batch, rows_in_cache(model.config, longest, device)) // copies)
    for start in range(0, len(order), size):
        chosen = order[start:start + size]
        idx, before = gpt.pad([rendered[i] for i in chosen], tokenizer.pad, device)
        idx, after = generate(model, idx, before, max_new_tokens, temperature, copies)
        for n, (row, end) in enumerate(zip(idx.tolist(), after.tolist())):
            i = chosen[n // copies]
            responses[i * copies + n % copies] = row[len(rendered[i]):end]
    return responses


def answers(model, tokenizer, prompts, max_new_tokens=40, temperature=1.0, copies=1):
    """As `sample`, but text -> list of str."""
    ids = sample(model, tokenizer, prompts, max_new_tokens, temperature, copies)
    return [tokenizer.decode(row) for row in ids]
