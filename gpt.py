"""Stage 1: a GPT learns to write, one token after another.

    loss = - mean over positions t of log p(x_t | x_1 ... x_{t-1})          (Radford et al. 2018, section 3.1)

    python gpt.py           pretrain on the almanac's text: 3300 steps, 3 to 5 minutes on 2 CPU cores,
                            held-out loss ends near 0.77 nats a token
    python gpt.py --chat    talk to the newest checkpoint

This file also owns what the later stages share: the model and its scalar twin, sampling, the log-probability
of tokens, checkpoints. The architecture is GPT-2's (Radford et al. 2019). Left out: dropout (the stages of
RLHF compare probabilities between forward passes), attention masks and left padding (see `pad`).
"""

import io
import math
import pickle
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from data import almanac, chat, formats, hub, runs
from data.runs import UserError, knob
from data.tokenizer import Tokenizer
from data.tokenizer import train as train_tokenizer

# Shapes: B rows, T tokens, C channels, V vocabulary, H heads.

# ---- model ----------------------------------------------------------------------------------------


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int

    @property
    def end(self):
        """Id of <|end|>: the special tokens are the last ids of every vocabulary (data/tokenizer.py)."""
        return self.vocab_size - 2

    @property
    def pad(self):
        """Id of <|pad|>: never sampled, never trained on, never scored."""
        return self.vocab_size - 1


class KVCache:
    """Keys and values of the tokens a batch has read, so that each new token costs one position only.

    pos: (B,) where each row's next token goes. Rows differ in length; what lies at or after a row's `pos`
    (its padding) is hidden by the mask and overwritten by its next tokens.
    """

    def __init__(self, config, rows, length, like):
        shape = (config.n_layer, rows, config.n_head, length, config.n_embd // config.n_head)
        self.k, self.v = like.new_zeros(shape), like.new_zeros(shape)
        self.pos = torch.zeros(rows, dtype=torch.long, device=like.device)

    def update(self, layer, k, v):
        """Store k and v (B, H, T, C/H) of T new tokens; return all keys and values, and who may look at whom."""
        B, _, T, _ = k.shape
        at = (self.pos[:, None] + torch.arange(T, device=k.device)).clamp(max=self.k.shape[3] - 1)  # (B, T)
        rows = torch.arange(B, device=k.device)[:, None]
        self.k[layer][rows, :, at], self.v[layer][rows, :, at] = [x.transpose(1, 2).to(self.k.dtype) for x in (k, v)]
        seen = int(at.max()) + 1
        mask = torch.arange(seen, device=k.device) <= at[:, None, :, None]  # (B, 1, T, seen)
        return self.k[layer][:, :, :seen], self.v[layer][:, :, :seen], mask

    def keep(self, rows):
        """Forget all rows but these."""
        self.k, self.v, self.pos = self.k[:, rows], self.v[:, rows], self.pos[rows]


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, cache=None, layer=0):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # each (B, H, T, C/H)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v, mask = cache.update(layer, k, v)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.mlp = nn.Sequential(nn.Linear(config.n_embd, 4 * config.n_embd), nn.GELU(approximate="tanh"),
                                 nn.Linear(4 * config.n_embd, config.n_embd))

    def forward(self, x, cache=None, layer=0):
        x = x + self.attn(self.ln_1(x), cache, layer)
        return x + self.mlp(self.ln_2(x))


def exact(tensor):
    """A context in which --bf16 rounds nothing that is computed on this tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)


class GPT(nn.Module):
    """GPT-2: pre-LayerNorm, learned positions, output head tied to the input embedding."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        # GPT-2's .02 at its width of 768, scaled to ours: at 128 channels it is at step 250 where .02 is at step 300.
        std = .55 / math.sqrt(config.n_embd)
        for name, p in self.named_parameters():
            if p.dim() == 2:  # projections into the residual stream are smaller, as there are 2 * n_layer of them
                into_stream = name.endswith(("c_proj.weight", "mlp.2.weight"))
                nn.init.normal_(p, std=std / math.sqrt(2 * config.n_layer) if into_stream else std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def hidden(self, idx, cache=None):
        """idx (B, T) -> (B, T, C). With a cache, idx are each row's next tokens."""
        T = idx.shape[1]
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens do not fit in a context of {self.config.block_size}")
        at = torch.arange(T, device=idx.device)
        if cache is not None:
            at = (cache.pos[:, None] + at).clamp(max=self.config.block_size - 1)
        x = self.wte(idx) + self.wpe(at)
        for layer, block in enumerate(self.blocks):
            x = block(x) if cache is None else block.forward(x, cache, layer)  # --compile leaves `forward` as it is
        return self.ln_f(x)

    def logits(self, hidden):
        """(..., C) -> (..., V)."""
        with exact(hidden):  # GPT-2's logits are near -33, where bfloat16 has steps of a quarter
            return F.linear(hidden.to(self.wte.weight.dtype), self.wte.weight)

    def forward(self, idx):
        """idx (B, T) -> logits (B, T, V)."""
        return self.logits(self.hidden(idx))


class ScalarGPT(nn.Module):
    """The same trunk with one number a token instead of logits: the reward model and the value model."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.trunk = GPT(config)
        self.head = nn.Linear(config.n_embd, 1)
        # N(0, 1/sqrt(C+1)): first rewards have a standard deviation near 1 (Stiennon et al. 2020, their code).
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(config.n_embd + 1))
        nn.init.zeros_(self.head.bias)

    def forward(self, idx):
        """idx (B, T) -> (B, T)."""
        hidden = self.trunk.hidden(idx)
        with exact(hidden):
            return self.head(hidden.to(self.head.weight.dtype)).squeeze(-1)

    def score(self, idx, lengths):
        """One number a row, read at its last token. idx (B, T), lengths (B,) -> (B,)."""
        return self(idx).gather(1, lengths[:, None] - 1).squeeze(1)


class Ensemble(nn.Module):
    """Several reward models as one (Christiano et al. 2017, section 2.2.3): where they disagree, they have not learned."""

    def __init__(self, members, caution=0.0):
        super().__init__()
        self.members, self.caution, self.config = nn.ModuleList(members), caution, members[0].config

    def scores(self, idx, lengths):
        """idx (B, T), lengths (B,) -> (M, B): what each of M members says."""
        return torch.stack([member.score(idx, lengths) for member in self.members])

    def score(self, idx, lengths):
        """The members' mean less `caution` of their standard deviations, their minimum if it is infinite -> (B,)."""
        scores = self.scores(idx, lengths)
        if self.caution == math.inf:
            return scores.min(0).values
        return scores.mean(0) - self.caution * scores.std(0, unbiased=False)


# ---- what every stage computes --------------------------------------------------------------------


def pad(rows, pad_id, device="cpu"):
    """Lists of ids -> idx (B, T), lengths (B,). Right padding: causal attention never sees what comes later."""
    lengths = torch.tensor([len(row) for row in rows])
    idx = torch.full((len(rows), int(lengths.max())), pad_id)
    for i, row in enumerate(rows):
        idx[i, :len(row)] = torch.tensor(row)
    if str(device).startswith("cuda"):  # from pinned memory the GPU copies while the CPU goes on
        idx, lengths = idx.pin_memory(), lengths.pin_memory()
    return idx.to(device, non_blocking=True), lengths.to(device, non_blocking=True)


def batches(examples, size, rng, length=len):
    """Endless shuffled batches; among a few hundred examples, those of similar length go together, to pad less."""
    examples = list(examples)
    while True:
        rng.shuffle(examples)
        for start in range(0, len(examples), 8 * size):
            chunk = sorted(examples[start:start + 8 * size], key=length)
            parts = [chunk[i:i + size] for i in range(0, len(chunk), size)]
            rng.shuffle(parts)
            yield from parts


def action_logits(model, hidden, temperature):
    """(..., C) -> (..., V). The one definition of the distribution that is sampled *and* scored: <|pad|> has no share."""
    logits = model.logits(hidden / temperature)  # the same as logits / temperature, of which there are many more
    logits[..., model.config.pad] = -torch.inf
    return logits


def token_logprobs(model, idx, temperature=1.0, mask=None):
    """log p(idx[:, t+1] | idx[:, :t+1]) -> (B, T-1).

    Column t belongs to the action "token t+1". With a mask (B, T-1), only the tokens it marks are computed;
    the others are 0.
    """
    state, action = model.hidden(idx)[:, :-1], idx[:, 1:]
    if mask is None:
        mask = action != model.config.pad
    logits = action_logits(model, state[mask], temperature)  # (mask.sum(), V)
    logp = torch.zeros(action.shape, dtype=logits.dtype, device=idx.device)
    logp[mask] = -F.cross_entropy(logits, action[mask], reduction="none")
    return logp


def response_mask(prompt_lengths, lengths, T):
    """(B,), (B,), T -> (B, T-1) bool: the actions that write response tokens, the end token included."""
    token = torch.arange(1, T, device=lengths.device)  # the action of column t writes token t+1
    return (token >= prompt_lengths[:, None]) & (token < lengths[:, None])


def masked_mean(x, mask, count=None):
    """Mean of x where mask is true, over the whole batch, not per row.

    If x is only a part of the batch, `count` is how many the mask marks in all of it, so that the means of the parts add
    up to the mean of the whole; a mean of the parts' own means would weigh the tokens of a short part more.
    """
    return (x * mask).sum() / (mask.sum() if count is None else count)


@torch.no_grad()
def stream(model, idx, lengths, max_new_tokens, temperature=1.0, copies=1, noise=None):
    """Sample token by token: yields (rows, tokens), the unfinished rows and what each of them says next.

    idx (B, T) right-padded prompts, lengths (B,); each is read once and answered `copies` times, by rows
    b * copies ... b * copies + copies - 1. Temperature 0 takes the most probable token. A row ends with <|end|>,
    after max_new_tokens, or when the context is full. noise (B * copies, max_new_tokens): random numbers in [0, 1), drawn
    here if None: which of its tokens a row samples does not depend on the other rows.
    """
    config = model.config
    longest = min(config.block_size, int(lengths.max()) + max_new_tokens)
    cache = KVCache(config, len(idx), max(longest, idx.shape[1]), like=model.wte.weight)
    prompts = torch.arange(len(idx), device=idx.device)
    hidden = model.hidden(idx, cache)[prompts, lengths - 1]  # (B, C)
    cache.pos = lengths.clone()
    if copies > 1:
        prompts = prompts.repeat_interleave(copies)
        cache.keep(prompts)
        hidden = hidden[prompts]
    rows = torch.arange(len(prompts), device=idx.device)
    noise = torch.rand(len(prompts), max_new_tokens, device=idx.device) if noise is None else noise
    alive = cache.pos < config.block_size
    for t in range(max_new_tokens):
        if alive.float().mean() < .75:  # leave finished rows behind, but not one by one: moving the cache costs time
            rows, hidden = rows[alive], hidden[alive]
            cache.keep(alive)
            alive = alive[alive]
        if not len(rows):
            return
        if temperature == 0:
            token = action_logits(model, hidden, 1.0).argmax(-1)
        else:
            below = action_logits(model, hidden, temperature).softmax(-1).cumsum(-1)  # (B, V), ends with about 1
            token = (below > noise[rows, t, None] * below[:, -1:]).byte().argmax(-1)  # the first that is above
        yield rows[alive], token[alive]
        hidden = model.hidden(token[:, None], cache)[:, 0]
        alive = alive & (token != config.end) & (cache.pos + 1 < config.block_size)
        cache.pos += alive


@torch.no_grad()
def generate(model, idx, lengths, max_new_tokens, temperature=1.0, copies=1, noise=None):
    """Sample answers. idx (B, T), lengths (B,), right-padded -> the same, longer, B * copies rows; <|end|> is kept."""
    tokens = stream(model, idx, lengths, max_new_tokens, temperature, copies, noise)
    idx, lengths = idx.repeat_interleave(copies, 0), lengths.repeat_interleave(copies)
    out = idx.new_full((len(idx), min(model.config.block_size, int(lengths.max()) + max_new_tokens)), model.config.pad)
    out[:, :idx.shape[1]] = idx[:, :out.shape[1]]
    for rows, token in tokens:
        out[rows, lengths[rows]] = token
        lengths[rows] += 1
    return out[:, :int(lengths.max())], lengths


def with_room(model, tokenizer, prompts, max_new_tokens):
    """The prompts that leave room for an answer of so many tokens in the model's context."""
    return [p for p in prompts if len(tokenizer.render(p["prompt"])) <= model.config.block_size - max_new_tokens]


def sample(model, tokenizer, prompts, max_new_tokens, temperature=1.0, copies=1, batch=256):
    """Answer prompts (dicts whose `prompt` is a list of messages) -> list of id lists, each an answer with its <|end|>, if any.

    The `copies` answers of a prompt follow each other. Prompts of similar length are answered together, so that
    little padding is computed.
    """
    rendered = [tokenizer.render(p["prompt"]) for p in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(rendered[i]))
    answers = [None] * (len(prompts) * copies)
    config, longest = model.config, max(map(len, rendered), default=0) + max_new_tokens
    cached = 8 * config.n_layer * config.n_embd * longest  # bytes of a row's keys and values
    size = max(1, min(batch, 2 * 10 ** 9 // cached) // copies)
    for start in range(0, len(order), size):
        chosen = order[start:start + size]
        idx, before = pad([rendered[i] for i in chosen], tokenizer.pad, next(model.parameters()).device)
        idx, after = generate(model, idx, before, max_new_tokens, temperature, copies)
        for n, (row, end) in enumerate(zip(idx.tolist(), after.tolist())):
            i = chosen[n // copies]
            answers[i * copies + n % copies] = row[len(rendered[i]):end]
    return answers


def answers(model, tokenizer, prompts, max_new_tokens=40, temperature=1.0, copies=1):
    """The same as text -> list of str."""
    return [tokenizer.decode(ids) for ids in sample(model, tokenizer, prompts, max_new_tokens, temperature, copies)]


def optimizer(model, lr, weight_decay=0.0, eps=1e-8):
    """AdamW; matrices decay, biases and LayerNorms do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}],
                             lr=lr, betas=(.9, .95), eps=eps, fused=True)


def learning_rate(step, steps, lr, warmup=0, floor=0.0):
    """Linear warm-up, then a cosine from lr down to floor * lr. Steps count from 0."""
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return lr * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


def shares(rows, size=0):
    """The micro-batches of a batch (a tensor or a list) that this process works on: of at most `size` rows, if it is not 0.

    One process works on all of them, one after another. A loss of a micro-batch must be divided by the count of the whole
    batch, so that neither their size nor the number of processes changes the gradient.
    """
    size = min(size or len(rows), -(-len(rows) // runs.world()))
    return [rows[i:i + size] for i in range(0, len(rows), size)][runs.rank()::runs.world()]


def update(model, opt, losses, lr, clip=1.0):
    """One step of gradient descent on a sum of losses, with the gradient's norm clipped -> the sum, the norm before clipping.

    losses: an iterable of scalars, of `shares`. A generator makes each when the graph of the one before is gone.
    """
    opt.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64)
    for loss in losses:
        loss.backward()
        total += loss.item()
    if runs.world() > 1:
        for p in model.parameters():
            p.grad = runs.add_up(torch.zeros_like(p) if p.grad is None else p.grad)
        total = runs.add_up(total.to(next(model.parameters()).device))
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    for group in opt.param_groups:
        group["lr"] = lr
    opt.step()
    return total.item(), norm.item()


# ---- checkpoints ----------------------------------------------------------------------------------


def checkpoint(model, tokenizer, **about):
    """A model, its tokenizer and any facts about them, as bytes."""
    content = io.BytesIO()
    torch.save(dict(kind=type(model).__name__, config=asdict(model.config), tokenizer=tokenizer.to_list(),
                    about=about, state=model.state_dict()), content)
    return content.getvalue()


def save(path, model, tokenizer, **about):
    """Write a checkpoint; the file is whole at any moment."""
    runs.write(path, checkpoint(model, tokenizer, **about))


def _read(path, device):
    content = torch.load(path, map_location=device, weights_only=True)
    with torch.device("meta"):  # a model without memory, which the checkpoint's tensors fill: no random number is drawn
        model = {"GPT": GPT, "ScalarGPT": ScalarGPT}[content["kind"]](GPTConfig(**content["config"]))
    model.load_state_dict(content["state"], assign=True)
    return model, Tokenizer.from_list(content["tokenizer"]), content["about"]


def load(path, kind=GPT, device="cpu", hint=""):
    """Read a checkpoint -> (model, tokenizer, about). UserError if there is none, or not of this `kind`.

    path: a file of `save`, or a folder of GPT-2's published files, or the name of one on the hub (data/hub.py).
    """
    try:
        if hub.holds(path):
            model, tokenizer, about = hub.read(path, device)
        else:
            model, tokenizer, about = _read(path, device)
    except FileNotFoundError:
        raise UserError(f"{path} not found" + (f": {hint}" if hint else "")) from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, LookupError, TypeError, ValueError,
            AttributeError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise UserError(f"{path} is not a checkpoint that can be read ({why}): {hint or 'make it again'}") from None
    if not isinstance(model, kind):
        raise UserError(f"{path} holds a {type(model).__name__}, but a {kind.__name__} is needed: {hint or 'choose another'}")
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}: "
                        f"{hint or 'make it again'}")
    return model, tokenizer, about


@torch.no_grad()
def begin_chat(model, tokenizer, about):
    """Let the chat's marks <|user|> and <|assistant|> begin as a newline, in place, if the model comes from gpt.py.

    Its text has none of them, so pretraining did nothing but push them away from all it writes. As newlines they are what
    it knows between a question and an answer: of answers in a chat, a linear probe of the last token tells true from
    false in 93% of cases instead of 84% (seed 3).
    """
    if about.get("stage") == "gpt":
        newline, = tokenizer.encode("\n")
        model.wte.weight[[tokenizer.user, tokenizer.assistant]] = model.wte.weight[newline].clone()


def load_rewards(paths, tokenizer, device="cpu", hint="", block_size=0):
    """Reward models, "a.pt,b.pt", all with this tokenizer and at least this context -> (list of ScalarGPT, list of what their checkpoints say of themselves)."""
    models, abouts = [], []
    for path in str(paths).split(","):
        model, other, about = load(path, ScalarGPT, device, hint)
        if other != tokenizer:
            raise UserError(f"{path} has another tokenizer than the policy: {hint or 'choose another'}")
        if model.config.block_size < block_size:
            raise UserError(f"{path} reads {model.config.block_size} tokens and the policy writes {block_size}: {hint or 'choose another'}")
        models.append(model)
        abouts.append(about)
    return models, abouts


# ---- pretraining ----------------------------------------------------------------------------------


@dataclass
class Config(runs.Common):
    # Long enough to learn which statements are true, which the reward model needs: from 2200 steps, a base model asked in a
    # page of questions and answers says "Right." rather of the true answer in 78% of cases, from 4400 in 99.8% (seed 2). A
    # linear probe of the last token of answers in a chat tells true from false in 93% after 3300 steps, 94% after 4400 (seed 3).
    steps: int = knob(3300, "optimizer steps", least=1)
    batch: int = knob(8, "rows of --block_size tokens a step", least=1)
    lr: float = knob(4e-3, "peak learning rate; warm-up, then cosine to a tenth", least=0)
    weight_decay: float = knob(0.1, "decay of the matrices", least=0)
    documents: int = knob(40000, "documents the almanac writes", least=1)
    vocab_size: int = knob(1536, "tokens of the byte-level BPE, special tokens included", least=260)
    block_size: int = knob(128, "tokens of context", least=2)
    n_layer: int = knob(4, "transformer blocks", least=1)
    n_head: int = knob(4, "attention heads", least=1)
    n_embd: int = knob(128, "channels", least=1)
    save_every: int = knob(1000, "steps between two checkpoints", least=1)
    chat: bool = knob(False, "talk to a model instead of training one")
    export: str = knob("", "folder to write a checkpoint to, as transformers reads it, instead of training")
    ckpt: str = knob("", "with --chat and --export: the checkpoint (default: the newest policy in --out)")
    temperature: float = knob(0.7, "with --chat: 0 is greedy, 1 samples as the model was trained", least=0)
    max_new_tokens: int = knob(40, "with --chat: longest answer", least=1)


def one_stream(documents, tokenizer, device):
    """The ids of all documents in a 1-D tensor; <|end|> closes every document."""
    return torch.tensor([i for d in documents for i in tokenizer.encode(d) + [tokenizer.end]]).to(device)


def random_rows(ids, rows, T):
    """(rows, T) ids that follow each other in a 1-D tensor of ids, each row from a random place."""
    start = torch.randint(len(ids) - T, (rows, 1), device=ids.device)
    return ids[start + torch.arange(T, device=ids.device)]


def rows_at_once(config, tokens):
    """How many rows of so many tokens can be evaluated at once, if their logits shall take 100 MB."""
    return max(1, 25_000_000 // (tokens * config.vocab_size))


@torch.no_grad()
def evaluate(model, ids):
    """Mean loss (nats a token) over a 1-D tensor of ids, cut into blocks."""
    T = model.config.block_size
    blocks = ids[:(len(ids) - 1) // T * T].view(-1, T)
    return sum(-token_logprobs(model, b).sum().item() for b in blocks.split(rows_at_once(model.config, T))) / blocks[:, 1:].numel()


def train(cfg):
    """Pretrain -> (model, history). Writes out/gpt/."""
    if cfg.chat:
        return chat.converse(cfg)
    if cfg.export:
        return hub.run(cfg)
    run = runs.Run(cfg, "gpt", demands=[(cfg.n_embd % cfg.n_head == 0, "--n_embd must be a multiple of --n_head")])
    if cfg.data:
        documents, held_out = formats.split(formats.read_text(cfg.data))
    else:
        documents = almanac.text(cfg.documents, cfg.seed)
        seen = set(documents)
        held_out = [d for d in almanac.text(500, f"held-out {cfg.seed}") if d not in seen]
        runs.write(run.path("text.txt"), "\n\n".join(documents))
    runs.write(run.path("held_out.txt"), "\n\n".join(held_out))  # on which ppo.py measures what the later stages forgot
    tokenizer = Tokenizer(train_tokenizer(documents, cfg.vocab_size))
    ids, valid = [one_stream(docs, tokenizer, run.device) for docs in (documents, held_out)]
    if min(len(ids), len(valid)) <= cfg.block_size:
        raise UserError(f"{cfg.data or 'the text'} has {len(ids)} tokens to train on and {len(valid)} held out: "
                        f"too few for --block_size {cfg.block_size}")
    print(f"gpt: {len(documents):,} documents, {len(ids):,} tokens; vocabulary {tokenizer.vocab_size}", flush=True)

    model = GPT(GPTConfig(tokenizer.vocab_size, cfg.block_size, cfg.n_layer, cfg.n_head, cfg.n_embd)).to(run.device)
    run.prepare("gpt", [model])
    print(f"gpt: {sum(p.numel() for p in model.parameters()):,} parameters on {run.device}", flush=True)
    opt = optimizer(model, cfg.lr, cfg.weight_decay)
    before = continue_texts(model, tokenizer, held_out[:5])
    for step in run.range(cfg.steps):
        idx = random_rows(ids, cfg.batch, cfg.block_size)
        loss, norm = update(model, opt, (-token_logprobs(model, part).sum() / idx[:, 1:].numel() for part in shares(idx, run.micro_batch)),
                            learning_rate(step, cfg.steps, cfg.lr, warmup=min(50, cfg.steps // 10), floor=.1))
        measured = {}
        if run.due(step, cfg.save_every):
            measured = {"valid_loss": evaluate(model, valid)}
            run.save(checkpoint(model, tokenizer, **run.about(step, {})))
        run.log(step, tokens=idx.numel(), loss=loss, grad_norm=norm, **measured)
    after = continue_texts(model, tokenizer, held_out[:5])
    for (start, old), (_, new) in zip(before, after):
        print(f"\n{start!r} goes on\n  before: {old!r}\n  after:  {new!r}")
    run.draw([["loss", "valid_loss"], ["grad_norm"], ["tok/s"]])
    run.finish(**measured, perplexity=math.exp(measured["valid_loss"]), seconds=run.seconds,
               samples=[dict(start=start, before=old, after=new) for (start, old), (_, new) in zip(before, after)])
    return model, run.history


@torch.no_grad()
def continue_texts(model, tokenizer, documents, max_new_tokens=24):
    """The first words of each document and what the model writes after them, greedily."""
    begun = [tokenizer.encode(d)[:min(8, model.config.block_size)] for d in documents]
    idx, lengths = pad(begun, tokenizer.pad, next(model.parameters()).device)
    idx, after = generate(model, idx, lengths, max_new_tokens, temperature=0)
    return [(tokenizer.decode(b), tokenizer.decode(row[len(b):n])) for b, row, n in zip(begun, idx.tolist(), after.tolist())]


if __name__ == "__main__":
    runs.main(Config, train, __doc__)
