"""Stage 2: supervised fine-tuning. The model that continues texts learns to answer.

    loss = - mean over response tokens t of log p(y_t | prompt, y_1 ... y_{t-1})       (Ouyang et al. 2022, section 3.5)

The prompt is read but not learned; the response is learned up to and including <|end|>, so that the model
knows when to stop.

    python sft.py       needs out/gpt/ckpt.pt; 1300 steps, about a minute on 2 CPU cores

The demonstrations are of uneven quality, as people's are, and SFT imitates all of them: expect facts of
which three quarters are right, and few perfect answers, as most ramble. Left out: packing several conversations into a row, and dropout.
"""

import random
from dataclasses import dataclass

import torch

import gpt
from data import almanac, formats, runs
from data.runs import UserError, knob


@dataclass
class Config(runs.Common):
    init: str = knob("", "checkpoint to start from (default: gpt/ckpt.pt in --out)")
    demonstrations: int = knob(48000, "demonstrations the almanac's labelers write", least=1)
    steps: int = knob(1300, "optimizer steps", least=1)
    batch: int = knob(32, "demonstrations a step", least=1)
    # 2e-3 imitates as well, and 5e-4 nearly (held-out loss .445 instead of .422), but the higher, the more is forgotten of what
    # pretraining taught: a linear probe of the last token tells true answers from false ones in 88% at 5e-4, 85% at 1e-3 (seed 3).
    lr: float = knob(1e-3, "peak learning rate; warm-up, then cosine to 0", least=0)
    weight_decay: float = knob(0.1, "decay of the matrices", least=0)
    save_every: int = knob(500, "steps between two checkpoints", least=1)


def encode(tokenizer, record, block_size):
    """A demonstration -> (ids, how many of them are the prompt); None if it does not fit in the context."""
    prompt = tokenizer.render(record["prompt"])
    ids = prompt + tokenizer.encode(record["response"]) + [tokenizer.end]
    return (ids, len(prompt)) if len(ids) <= block_size else None


def response_tokens(batch):
    """How many tokens of a batch [(ids, prompt length)] are learned."""
    return sum(len(ids) - n for ids, n in batch)


def sft_loss(model, batch, device, count=None):
    """Mean negative log-probability of the response tokens of a batch -> scalar. count: see gpt.masked_mean."""
    idx, lengths = gpt.pad([ids for ids, _ in batch], model.config.pad, device)
    prompt_lengths = torch.tensor([n for _, n in batch], device=device)
    mask = gpt.response_mask(prompt_lengths, lengths, idx.shape[1])  # (B, T-1)
    return -gpt.masked_mean(gpt.token_logprobs(model, idx, mask=mask), mask, count)


@torch.no_grad()
def evaluate(model, examples, device):
    """Loss per response token over all examples."""
    examples = sorted(examples, key=lambda e: len(e[0]))
    size = gpt.rows_at_once(model.config, len(examples[-1][0]))
    parts, count = [examples[i:i + size] for i in range(0, len(examples), size)], response_tokens(examples)
    return sum(sft_loss(model, part, device, count).item() for part in parts)


def train(cfg):
    """Fine-tune -> (model, history). Writes out/sft/."""
    run = runs.Run(cfg, "sft")
    model, tokenizer, about = gpt.load(cfg.init or run.earlier("gpt"), gpt.GPT, run.device, "run python gpt.py first")
    gpt.begin_chat(model, tokenizer, about)
    if cfg.data:
        records, valid = formats.split(formats.read_demonstrations(cfg.data))
    else:
        records = almanac.demonstrations("train", cfg.demonstrations, cfg.seed)
        valid = almanac.demonstrations("valid", 500, cfg.seed)
        formats.write_jsonl(run.path("demonstrations.jsonl"), records)
    block_size = model.config.block_size
    examples = [e for r in records if (e := encode(tokenizer, r, block_size))]
    held_out = [(r, e) for r in valid if (e := encode(tokenizer, r, block_size))]
    shown, valid = [r for r, _ in held_out[:5]], [e for _, e in held_out]
    print(f"sft: {len(examples):,} demonstrations; {len(records) - len(examples)} do not fit in {block_size} tokens",
          flush=True)
    if not examples or not valid:
        raise UserError(f"{cfg.data or 'the almanac'}: no demonstration fits in the context of {block_size} tokens")

    run.prepare("sft", [model])
    opt = gpt.optimizer(model, cfg.lr, cfg.weight_decay)
    before = gpt.answers(model, tokenizer, shown)
    supply = gpt.batches(examples, cfg.batch, random.Random(cfg.seed), length=lambda e: len(e[0]))
    for step in run.range(cfg.steps):
        batch = next(supply)
        tokens = response_tokens(batch)
        losses = (sft_loss(model, part, run.device, tokens) for part in gpt.shares(batch, run.micro_batch))
        loss, norm = gpt.update(model, opt, losses, gpt.learning_rate(step, cfg.steps, cfg.lr, warmup=min(20, cfg.steps // 10)))
        measured = {}
        if run.due(step, cfg.save_every):
            measured = {"valid_loss": evaluate(model, valid, run.device)}
            run.save(gpt.checkpoint(model, tokenizer, **run.about(step, about)))
        run.log(step, tokens=tokens, loss=loss, grad_norm=norm, **measured)
    after = gpt.answers(model, tokenizer, shown)
    for p, old, new in zip(shown, before, after):
        print(f"\n{p['prompt'][-1]['content']}\n  before: {old!r}\n  after:  {new!r}")
    run.draw([["loss", "valid_loss"], ["grad_norm"], ["tok/s"]])
    run.finish(**measured, seconds=run.seconds,
               samples=[dict(prompt=p["prompt"], before=o, after=n) for p, o, n in zip(shown, before, after)])
    return model, run.history


if __name__ == "__main__":
    runs.main(Config, train, __doc__)
