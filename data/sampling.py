"""Fast generation: gpt.generate with a cache of keys and values, and many prompts at once.

The plain definition is gpt.generate; tests/test_gpt.py checks that both write the same tokens.
"""

import torch

import gpt


class KVCache:
    """Keys and values of the tokens a batch has read, so that a new token costs one position.

    pos: (B,) where each row's next token goes. Rows differ in length: what lies at or after a
    row's `pos` (its padding) is hidden by the mask and overwritten by its next tokens.
    """

    def __init__(self, config, rows, length, like):
        size = config.n_embd // config.n_head
        shape = (config.n_layer, rows, config.n_head, length, size)
        self.k = like.new_zeros(shape)  # (layers, B, H, length, C/H)
        self.v = like.new_zeros(shape)
        self.pos = torch.zeros(rows, dtype=torch.long, device=like.device)
        self.last = config.block_size - 1

    def positions(self, T):
        """Where T new tokens of each row stand -> (B, T); finished rows stay in the context."""
        return (self.pos[:, None] + torch.arange(T, device=self.pos.device)).clamp(max=self.last)

    def append(self, layer, k, v):
        """Store k and v (B, H, T, C/H) of T new tokens.

        Returns all keys and values (B, H, seen, C/H), and a mask (B, 1, T, seen): who sees whom.
        """
        B, _, T, _ = k.shape
        at = self.positions(T).clamp(max=self.k.shape[3] - 1)  # (B, T)
        rows = torch.arange(B, device=k.device)[:, None]
        self.k[layer][rows, :, at] = k.transpose(1, 2).to(self.k.dtype)
        self.v[layer][rows, :, at] = v.transpose(1, 2).to(self.v.dtype)
        seen = int(at.max()) + 1
        mask = torch.arange(seen, device=k.device) <= at[:, None, :, None]
        return self.k[layer][:, :, :seen], self.v[layer][:, :, :seen], mask

    def keep(self, rows):
        """Forget all rows but these."""
        self.k, self.v, self.pos = self.k[:, rows], self.v[:, rows], self.pos[rows]


@torch.no_grad()
def stream(model, idx, lengths, max_new_tokens, temperature=1.0, copies=1, noise=None):
    """Sample token by token: yields (rows, tokens), the unfinished rows and their next tokens.

    idx (B, T) right-padded prompts, lengths (B,). Each prompt is read once and answered `copies`
    times, by rows b * copies ... b * copies + copies - 1. noise (B * copies, max_new_tokens): see
    gpt.generate; the tokens of a row do not depend on the other rows.
    """
    config, device = model.config, idx.device
    longest = min(config.block_size, int(lengths.max()) + max_new_tokens)
    cache = KVCache(config, len(idx), max(longest, idx.shape[1]), like=model.wte.weight)
    prompts = torch.arange(len(idx), device=device)
    hidden = model.hidden(idx, cache)[prompts, lengths - 1]  # (B, C)
    cache.pos = lengths.clone()
    if copies > 1:
        prompts = prompts.repeat_interleave(copies)
        cache.keep(prompts)
        hidden = hidden[prompts]
    rows = torch.arange(len(prompts), device=device)
    noise = torch.rand(len(prompts), max_new_tokens, device=device) if noise is None else noise
    alive = cache.pos < config.block_size
    for t in range(max_new_tokens):
        if alive.float().mean() < .75:  # moving the cache costs time: not for each row that ends
            rows, hidden = rows[alive], hidden[alive]
            cache.keep(alive)
            alive = alive[alive]
        if not len(rows):
            return
        token = gpt.choose_token(model, hidden, temperature, noise[rows, t])
        yield rows[alive], token[alive]
        hidden = model.hidden(token[:, None], cache)[:, 0]
        alive = alive & (token != config.end) & (cache.pos + 1 < config.block_size)
        cache.pos += alive


@torch.no_grad()
def generate(model, idx, lengths, max_new_tokens, temperature=1.0, copies=1, noise=None):
    """As gpt.generate, with `copies` answers per prompt -> idx (B * copies, T'), lengths."""
    tokens = stream(model, idx, lengths, max_new_tokens, temperature, copies, noise)
    idx, lengths = idx.repeat_interleave(copies, 0), lengths.repeat_interleave(copies)
    width = min(model.config.block_size, int(lengths.max()) + max_new_tokens)
    out = idx.new_full((len(idx), width), model.config.pad)
    out[:, :idx.shape[1]] = idx[:, :width]
    for rows, token in tokens:
        out[rows, lengths[rows]] = token
        lengths[rows] += 1
    return out[:, :int(lengths.max())], lengths


def with_room(model, tokenizer, prompts, max_new_tokens):
    """The prompts that leave room for so many new tokens in the model's context."""
    room = model.config.block_size - max_new_tokens
    return [p for p in prompts if len(tokenizer.render(p["prompt"])) <= room]


def sample(model, tokenizer, prompts, max_new_tokens, temperature=1.0, copies=1, batch=256):
    """Answer prompts -> list of id lists, each a response with its <|end|>, if it ended.

    prompts: dicts whose `prompt` is a list of messages. The `copies` responses to a prompt follow
    each other. Prompts of similar length are answered together, to compute little padding.
    """
    rendered = [tokenizer.render(p["prompt"]) for p in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(rendered[i]))
    responses = [None] * (len(prompts) * copies)
    config, longest = model.config, max(map(len, rendered), default=0) + max_new_tokens
    cached = 8 * config.n_layer * config.n_embd * longest  # bytes of a row's keys and values
    size = max(1, min(batch, 2 * 10 ** 9 // cached) // copies)
    for start in range(0, len(order), size):
        chosen = order[start:start + size]
        idx, before = gpt.pad([rendered[i] for i in chosen], tokenizer.pad, model.wte.weight.device)
        idx, after = generate(model, idx, before, max_new_tokens, temperature, copies)
        for n, (row, end) in enumerate(zip(idx.tolist(), after.tolist())):
            i = chosen[n // copies]
            responses[i * copies + n % copies] = row[len(rendered[i]):end]
    return responses


def answers(model, tokenizer, prompts, max_new_tokens=40, temperature=1.0, copies=1):
    """As `sample`, but text -> list of str."""
    ids = sample(model, tokenizer, prompts, max_new_tokens, temperature, copies)
    return [tokenizer.decode(row) for row in ids]
