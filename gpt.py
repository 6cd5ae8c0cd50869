"""Stage 1: a GPT learns to write, one token after another.

    loss = - mean over t of log p(x_t | x_1 ... x_{t-1})          (Radford et al. 2018, section 3.1)

    python gpt.py           pretrain on the almanac's text: 1700 steps, 4 to 6 minutes on 2 CPU
                            cores; the held-out loss ends near 0.76 nats per token
    python gpt.py --chat    talk to the newest checkpoint
    python gpt.py --page    see inside all of them in the browser

The later stages share what is defined here: the model and its scalar twin, the log-probabilities of
tokens, plain generation, checkpoints. The architecture is GPT-2's (Radford et al. 2019). Left out:
dropout, as RLHF compares probabilities between forward passes; left padding, as right padding needs
no mask (see `pad`). "LOG: ..." names an entry of notebooks/LOG.md.
"""

import data.run.system  # before torch: its threads spin only briefly, and Ctrl-C works meanwhile

import math
import random
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from data import optim
from data.files import gpt2, records
from data.run import disk
from data.run.cli import Common, UserError, flag, main
from data.run.device import matrices
from data.run.run import Run
from data.tokenizer import Tokenizer
from data.tokenizer import train as train_tokenizer
from data.world import almanac

# Shapes: B rows, T tokens, C channels, V vocabulary, H heads.


@dataclass
class Config(Common):
    """The flags of pretraining."""

    steps: int = flag(1700, "optimizer steps", least=1, group="algorithm")
    batch: int = flag(16, "rows of --block_size tokens per step", least=1)
    lr: float = flag(6e-3, "peak learning rate; warm-up, then a cosine to a tenth", least=0)
    weight_decay: float = flag(0.1, "decay of the matrices", least=0)
    n_layer: int = flag(4, "transformer blocks", least=1)
    n_head: int = flag(4, "attention heads", least=1)
    n_embd: int = flag(128, "channels", least=1)
    block_size: int = flag(128, "tokens of context", least=2)
    vocab_size: int = flag(1536, "tokens of the byte-level BPE, special tokens included", least=260)
    init: str = flag("", "checkpoint, or GPT-2's folder or name, to learn on from at a lower --lr; "
                         "tokenizer and shape are its own (default: random weights)",
                     group="data and models")
    data: str = flag("", "text to read instead of the embedded world's")
    documents: int = flag(40000, "documents that the almanac writes", least=1)
    eval_every: int = flag(250, "steps between two measurements of the held-out loss", least=1)

    def demands(self):
        same = [getattr(self, name) == getattr(Config, name)
                for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")]
        return [(self.n_embd % self.n_head == 0, "--n_embd must be a multiple of --n_head"),
                (not self.init or all(same), "with --init, tokenizer and shape are those of the "
                                             "checkpoint: leave out the flags of shape")]


# ---- model ---------------------------------------------------------------------------------------


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int

    @property
    def end(self):
        """Id of <|end|>. The special tokens are the last ids of every vocabulary."""
        return self.vocab_size - 2

    @property
    def pad(self):
        """Id of <|pad|>: never sampled, never trained on, never scored."""
        return self.vocab_size - 1


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, mask=None, cache=None, layer=0):
        B, T, C = x.shape
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = self.c_attn(x).split(C, dim=2)
        q = q.view(heads).transpose(1, 2)  # (B, H, T, C/H)
        k = k.view(heads).transpose(1, 2)  # (B, H, T, C/H)
        v = v.view(heads).transpose(1, 2)  # (B, H, T, C/H)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        else:  # x are the next tokens of each row; keys and values of all before are in the cache
            y = cache.attend(layer, q, k, v)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.attn = Attention(config)
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(approximate="tanh"),
                                 nn.Linear(4 * C, C))

    def forward(self, x, mask=None, cache=None, layer=0):
        x = x + self.attn(self.ln_1(x), mask, cache, layer)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2: pre-LayerNorm, learned positions, output head tied to the input embedding."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        # GPT-2's .02 belongs to its width of 768; ours scales with the width (LOG: initialisation).
        std = .55 / math.sqrt(config.n_embd)
        for name, p in self.named_parameters():
            if p.dim() == 2:  # 2 * n_layer projections add to the residual stream: smaller ones
                residual = name.endswith(("c_proj.weight", "mlp.2.weight"))
                nn.init.normal_(p, std=std / math.sqrt(2 * config.n_layer) if residual else std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def hidden(self, idx, at=None, mask=None, cache=None):
        """idx (B, T) -> (B, T, C).

        at (B, T): the tokens' positions; None: 0, 1, ... mask (B, 1, T, T): which tokens each token
        sees; None: itself and those before it. With a cache, idx are the next tokens of each row
        (data/sampling.py).
        """
        T = idx.shape[1]
        if at is None and T > self.config.block_size:
            raise ValueError(f"{T} tokens do not fit in a context of {self.config.block_size}")
        x = self.wte(idx) + self.wpe(torch.arange(T, device=idx.device) if at is None else at)
        with matrices(x.device):  # in bfloat16 with --bf16; all else is fp32
            for layer, block in enumerate(self.blocks):
                # --compile replaces block(...) and leaves block.forward, which the cache needs.
                x = block(x, mask) if cache is None else block.forward(x, mask, cache, layer)
        return self.ln_f(x)

    def logits(self, hidden, bias=None):
        """(..., C) -> (..., V), plus a bias (V,) if there is one."""
        return F.linear(hidden, self.wte.weight, bias)

    def forward(self, idx):
        """idx (B, T) -> logits (B, T, V)."""
        return self.logits(self.hidden(idx))


class ScalarGPT(nn.Module):
    """The same trunk with one number per token instead of logits: reward model and value model."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.trunk = GPT(config)
        self.head = nn.Linear(config.n_embd, 1)
        # First scores have a standard deviation near 1 (Stiennon et al. 2020, their code).
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(config.n_embd + 1))
        nn.init.zeros_(self.head.bias)

    @property
    def blocks(self):
        return self.trunk.blocks

    def forward(self, idx, at=None, mask=None):
        """idx (B, T) -> (B, T). at, mask: see GPT.hidden."""
        return self.head(self.trunk.hidden(idx, at, mask)).squeeze(-1)

    def score(self, idx, lengths):
        """One number per row, read at its last token. idx (B, T), lengths (B,) -> (B,)."""
        return self(idx).gather(1, lengths[:, None] - 1).squeeze(1)


# ---- probabilities -------------------------------------------------------------------------------


def action_logits(model, hidden, temperature):
    """(..., C) -> (..., V): the distribution that is sampled; `token_logprobs` scores by the same.

    Dividing the hidden state is cheaper than dividing the logits: C numbers per token, not V. A
    bias gives <|pad|> probability 0.
    """
    bias = torch.zeros_like(model.wte.weight[:, 0])
    bias[model.config.pad] = -torch.inf
    return model.logits(hidden / temperature, bias)


def token_logprobs(model, idx, temperature=1.0, mask=None):
    """log p(idx[:, t+1] | idx[:, :t+1]) -> (B, T-1).

    Column t belongs to the action "token t+1". With a mask (B, T-1), only the tokens it marks are
    computed; the others are 0.
    """
    def chosen_logp(state, action):
        logits = action_logits(model, state, temperature)  # (N, V)
        return logits.log_softmax(-1).gather(-1, action[:, None]).squeeze(-1)

    action = idx[:, 1:]
    if mask is None:
        mask = action != model.config.pad
    marked = mask.nonzero(as_tuple=True)  # here a GPU is waited for once, while it is idle anyhow
    state = model.hidden(idx)[marked]  # (N, C)
    chosen = in_chunks(chosen_logp, rows_at_once(model.config, 1), state, action[marked])
    return torch.zeros_like(mask, dtype=chosen.dtype).index_put(marked, chosen)


def rows_at_once(config, tokens):
    """How many rows of so many tokens to evaluate at once, so that logits take 100 MB."""
    return max(1, 25_000_000 // (tokens * config.vocab_size))


def in_chunks(function, size, *tensors):
    """function(*tensors), for many rows in chunks that are computed again in backward: the logits
    of 50,000 words are never all in memory."""
    if len(tensors[0]) <= size:
        return function(*tensors)
    chunks = zip(*(x.split(size) for x in tensors))
    return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])


def response_mask(prompt_lengths, lengths, T):
    """(B,), (B,), T -> (B, T-1) bool: the actions that write response tokens, <|end|> included.

    Example: a prompt of 2 and a response of 3, T = 6 -> 0 1 1 1 0: column t writes token t+1.
    """
    token = torch.arange(1, T, device=lengths.device)
    return (token >= prompt_lengths[:, None]) & (token < lengths[:, None])


def masked_mean(x, mask):
    """Mean of x where mask is true: over the whole batch, not the mean of the rows' means."""
    return (x * mask).sum() / mask.sum()


# ---- generation ----------------------------------------------------------------------------------


def choose_token(model, hidden, temperature, noise):
    """Sample a token per row: hidden (B, C), noise (B,) in [0, 1) -> (B,). Temperature 0 is greedy.

    It is the first token whose cumulative probability is above the noise.
    """
    if temperature == 0:
        return action_logits(model, hidden, 1.0).argmax(-1)
    below = action_logits(model, hidden, temperature).softmax(-1).cumsum(-1)  # (B, V)
    token = torch.searchsorted(below, noise[:, None] * below[:, -1:], right=True).squeeze(-1)
    return token.clamp(max=model.config.end)  # rounding can lift the highest noise to the sum


@torch.no_grad()
def generate(model, idx, lengths, max_new_tokens, temperature=1.0, noise=None):
    """Sample answers, one forward pass per token -> idx (B, T'), lengths (B,), right-padded.

    idx (B, T) right-padded prompts, lengths (B,). A row ends with <|end|>, which is kept, after
    max_new_tokens, or when the context is full. noise (B, max_new_tokens) in [0, 1): the random
    numbers, drawn here if None. data/sampling.py does the same faster, with a cache.
    """
    config, lengths = model.config, lengths.clone()
    rows = torch.arange(len(idx), device=idx.device)
    out = F.pad(idx, (0, max_new_tokens), value=config.pad)[:, :config.block_size]
    noise = torch.rand(len(idx), max_new_tokens, device=idx.device) if noise is None else noise
    alive = lengths < config.block_size
    for t in range(max_new_tokens):
        hidden = model.hidden(out[:, :int(lengths.max())])[rows, lengths - 1]  # (B, C)
        token = choose_token(model, hidden, temperature, noise[:, t])
        out[rows[alive], lengths[alive]] = token[alive]
        lengths += alive
        alive = alive & (token != config.end) & (lengths < config.block_size)
    return out[:, :int(lengths.max())], lengths


# ---- batches -------------------------------------------------------------------------------------


def pad(rows, pad_id, device="cpu"):
    """Lists of ids -> idx (B, T), lengths (B,). Causal attention never sees right padding."""
    lengths = torch.tensor([len(row) for row in rows])
    idx = torch.full((len(rows), int(lengths.max())), pad_id)
    for i, row in enumerate(rows):
        idx[i, :len(row)] = torch.tensor(row)
    if str(device).startswith("cuda"):  # from pinned memory the GPU copies while the CPU goes on
        idx, lengths = idx.pin_memory(), lengths.pin_memory()
    return idx.to(device, non_blocking=True), lengths.to(device, non_blocking=True)


def batches(examples, size, seed, first=0, length=None):
    """Endless shuffled batches from number `first` on; batch n follows from n and the seed.

    With `length`, examples of similar length go together, within a few hundred.
    Example: batches("abc", 2, seed) -> "ca", "b", and in the next epoch "bc", "a", ...
    """
    per_epoch = -(-len(examples) // size)
    while True:
        epoch, begin = divmod(first, per_epoch)
        rng = random.Random(f"{seed} {epoch}")
        order = rng.sample(list(examples), len(examples))
        if length:
            chunks = [order[i:i + 8 * size] for i in range(0, len(order), 8 * size)]
            order = [example for chunk in chunks for example in sorted(chunk, key=length)]
        parts = [order[i:i + size] for i in range(0, len(order), size)]
        yield from (rng.sample(parts, len(parts)) if length else parts)[begin:]
        first = (epoch + 1) * per_epoch


# ---- checkpoints ---------------------------------------------------------------------------------


save = disk.write_model  # (path, model, tokenizer, **about): the file is whole at any moment


def load(path, kind=nn.Module, device="cpu", hint=""):
    """Read a checkpoint -> (model, tokenizer, metadata). UserError if there is none of this `kind`.

    path: a file of `save`, or a folder of GPT-2's published files, or the name of a GPT-2 on the
    hub (data/files/gpt2.py). hint: the remedy in the error's sentence.
    """
    hint = hint or "make it again, or choose another"
    with disk.readable(path, hint):
        fields = (gpt2.read(path) if gpt2.is_gpt2(path)
                  else disk.read_model(path, device, gpt2.from_nanogpt))
        config, classes = GPTConfig(**fields["config"]), {"GPT": GPT, "ScalarGPT": ScalarGPT}
        disk.check(config, fields["state"])
        with torch.device("meta"):  # no memory and no random numbers: the tensors read fill it
            model = classes[fields["kind"]](config)
        model.load_state_dict(fields["state"], assign=True)
        tokenizer = Tokenizer.from_list(fields["tokenizer"])
    if not isinstance(model, kind):
        raise UserError(f"{path} holds a {type(model).__name__}, but a {kind.__name__} is needed: "
                        f"{hint}")
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model "
                        f"{model.config.vocab_size}: {hint}")
    return model.requires_grad_(True).to(device), tokenizer, fields["about"]


# ---- pretraining ---------------------------------------------------------------------------------


def one_stream(documents, tokenizer, device):
    """The ids of all documents in a 1-D tensor; <|end|> closes every document."""
    ids = [i for d in documents for i in tokenizer.encode(d) + [tokenizer.end]]
    return torch.tensor(ids, dtype=torch.long).to(device)


def random_rows(ids, rows, T):
    """(rows, T) ids that follow each other in a 1-D tensor of ids, each row from a random place."""
    start = torch.randint(len(ids) - T, (rows, 1), device=ids.device)
    return ids[start + torch.arange(T, device=ids.device)]


def read_text(cfg, run, tokenizer=None, block_size=0):
    """The text, split and tokenized -> (tokenizer, training ids, held-out ids, documents to show).

    Without a tokenizer, one is learned from the text. Later stages find the text in text.txt and
    held_out.txt; ppo.py measures there what it forgets. Too short a text holds nothing out.
    """
    if cfg.data:
        documents, held_out = records.split_documents(cfg.data, run.say)
    else:
        documents = almanac.text(cfg.documents, cfg.seed, cfg.topic)
        seen = set(documents)
        held_out = [d for d in almanac.text(500, f"held-out {cfg.seed}", cfg.topic)
                    if d not in seen]
    tokenizer = tokenizer or Tokenizer(train_tokenizer(documents, cfg.vocab_size))
    valid = one_stream(held_out, tokenizer, run.device)
    if len(valid) <= block_size:
        run.say(f"nothing is held out: {len(valid)} tokens would be, and more than the context's "
                f"{block_size} are needed")
        documents, held_out, valid = documents + held_out, [], valid[:0]
    ids = one_stream(documents, tokenizer, run.device)
    if len(ids) <= block_size:
        raise UserError(f"{cfg.data or 'the text'} has {len(ids)} tokens to train on: too few for "
                        f"--block_size {block_size}")
    run.keep("text.txt", records.join_text(documents), own=not cfg.data)
    run.keep("held_out.txt", records.join_text(held_out))
    run.say(f"{len(documents):,} documents, {len(ids):,} tokens, {tokenizer.vocab_size} of them "
            "different")
    return tokenizer, ids, valid, (held_out or documents)[:5]


def next_token_loss(model, idx):
    """Mean of -log p of the tokens of idx (B, T), each given those before it."""
    return -token_logprobs(model, idx).mean()


@torch.no_grad()
def evaluate(model, ids):
    """Mean loss, in nats per token, over a 1-D tensor of ids, cut into blocks."""
    T = model.config.block_size
    blocks = ids[:(len(ids) - 1) // T * T].view(-1, T)
    parts = blocks.split(rows_at_once(model.config, T))
    return sum(-token_logprobs(model, idx).sum().item() for idx in parts) / blocks[:, 1:].numel()


def continue_texts(model, tokenizer, documents, max_new_tokens=24):
    """The first words of each document, and what the model writes after them, greedily."""
    starts = [tokenizer.encode(d)[:min(8, model.config.block_size)] for d in documents]
    idx, lengths = pad(starts, tokenizer.pad, model.wte.weight.device)
    idx, after = generate(model, idx, lengths, max_new_tokens, temperature=0)
    written = [row[len(s):n] for s, row, n in zip(starts, idx.tolist(), after.tolist())]
    return [(tokenizer.decode(s), tokenizer.decode(w)) for s, w in zip(starts, written)]


def first_model(cfg, run):
    """The model of --init -> (GPT, tokenizer); (None, None) to begin from random weights."""
    if not cfg.init:
        return None, None
    model, tokenizer, about = load(run.reads(cfg.init), GPT, run.device, "check --init")
    run.lineage.model("first model", cfg.init, about, model.state_dict(), chosen=True)
    return model, tokenizer


def train(cfg):
    """Pretrain -> (model, history). Writes out/gpt/."""
    run = Run(cfg, "gpt")
    model, tokenizer = first_model(cfg, run)
    T = model.config.block_size if model else cfg.block_size
    tokenizer, ids, valid, shown = read_text(cfg, run, tokenizer, T)
    if not model:
        shape = (T, cfg.n_layer, cfg.n_head, cfg.n_embd)
        model = GPT(GPTConfig(tokenizer.vocab_size, *shape)).to(run.device)
    run.say(f"{sum(p.numel() for p in model.parameters()):,} parameters on {run.device}")
    opt = optim.Muon(model, cfg.lr, cfg.weight_decay)
    before = continue_texts(model, tokenizer, shown)

    for step in run.steps(cfg.steps, model=model, opt=opt):
        # 1. Draw rows of text from random places.
        batch, sums = random_rows(ids, cfg.batch, T), optim.Sums()
        lr = optim.learning_rate(step, cfg.steps, cfg.lr, min(50, cfg.steps // 10), floor=.1)
        # 2. Sum the gradient over micro-batches, each weighted by its share of the rows; step.
        for idx, share in optim.micro_batches(batch, cfg.micro_batch):
            loss = next_token_loss(model, idx) * share
            loss.backward()
            sums.add(loss=loss)
        figures = dict(sums.total(), grad_norm=optim.optimizer_step(model, opt, lr))
        # 3. Measure, log and save.
        if run.due(step, cfg.eval_every):
            if len(valid):
                figures["valid_loss"] = evaluate(model, valid)
            for start, written in continue_texts(model, tokenizer, shown[:1]):
                run.show(f"{start!r} continues {written!r}")
        run.log(step, figures, tokens=batch.numel())
        run.save(step, tokenizer, ckpt=model)

    report(run, before, continue_texts(model, tokenizer, shown))
    return model, run.history


def report(run, before, after):
    """Write results.json, print what the model writes, draw the curves."""
    samples = [dict(start=start, before=old, after=new)
               for (start, old), (_, new) in zip(before, after)]
    loss = run.latest.get("valid_loss")
    held_out = dict(valid_loss=loss, perplexity=math.exp(min(loss, 700))) if loss else {}
    run.write_results(**held_out, samples=samples)
    for s in samples:
        print(f"\n{s['start']!r} continues\n  before: {s['before']!r}\n  after:  {s['after']!r}")
    run.finish()


if __name__ == "__main__":
    main(Config, train, __doc__, chat="data.people.chat", page="data.people.page",
         export="data.people.export")
