"""Stage 2: supervised fine-tuning. The model that continues texts learns to answer.

    loss = - mean over response tokens t of log p(y_t | prompt, y_1 ... y_{t-1})
                                                             (Ouyang et al. 2022, section 3.5)

The prompt is read but not learned. The response is learned up to and including <|end|>, so that
the model knows when to stop.

    python sft.py       needs out/gpt/ckpt.pt; 900 steps, about a minute on 2 CPU cores

The demonstrations are of uneven quality, as people's are, and SFT imitates all of them: expect
about three quarters of the facts to be right, and few perfect answers, as most ramble. Left out:
packing several conversations into a row, and dropout.
"""

import data.run.signals  # before torch, which loads for seconds: Ctrl-C works meanwhile

import random
from dataclasses import dataclass

import torch

import gpt
from data import optim, sampling, start
from data.run.cli import Common, knob, main
from data.run.processes import micro_batches
from data.run.run import Run


@dataclass
class Config(Common):
    """The flags of supervised fine-tuning."""

    steps: int = knob(900, "optimizer steps", least=1, group="algorithm")
    batch: int = knob(32, "demonstrations per step", least=1)
    # A higher rate forgets more of what pretraining taught (LOG: SFT's rate; Muon).
    lr: float = knob(1.5e-3, "peak learning rate; warm-up, then a cosine to 0", least=0)
    weight_decay: float = knob(0.1, "decay of the matrices", least=0)
    init: str = knob("", "checkpoint to start from (default: gpt/ckpt.pt in --out)",
                     group="data and models")
    data: str = knob("", "demonstrations to read instead of the embedded world's")
    demonstrations: int = knob(48000, "demonstrations that the almanac's labelers write", least=1)
    eval_every: int = knob(300, "steps between two measurements of the held-out loss", least=1)


@torch.no_grad()
def begin_chat(model, tokenizer, about):
    """Let the chat's marks begin as a newline, in place, if the model comes from gpt.py.

    Pretraining text has no <|user|> and <|assistant|>. A newline is what the model knows between
    a question and its answer (LOG: chat marks begin as newlines).
    """
    if about.get("stage") == "gpt":
        newline, = tokenizer.encode("\n")
        marks = [tokenizer.user, tokenizer.assistant]
        model.wte.weight[marks] = model.wte.weight[newline].clone()


def encode(tokenizer, record, block_size):
    """A demonstration -> (ids, how many of them are the prompt); None if it is too long."""
    prompt = tokenizer.render(record["prompt"])
    ids = prompt + tokenizer.encode(record["response"]) + [tokenizer.end]
    return (ids, len(prompt)) if len(ids) <= block_size else None


def response_tokens(batch):
    """How many tokens of a batch [(ids, prompt length)] are learned."""
    return sum(len(ids) - n for ids, n in batch)


def sft_loss(model, batch, device):
    """Mean negative log-probability of the response tokens of a batch -> scalar."""
    idx, lengths = gpt.pad([ids for ids, _ in batch], model.config.pad, device)
    prompt_lengths = torch.tensor([n for _, n in batch], device=device)
    mask = gpt.response_mask(prompt_lengths, lengths, idx.shape[1])  # (B, T-1)
    return -gpt.masked_mean(gpt.token_logprobs(model, idx, mask=mask), mask)


@torch.no_grad()
def evaluate(model, examples, device):
    """Loss per response token over all examples."""
    examples = sorted(examples, key=lambda e: len(e[0]))
    size = gpt.rows_at_once(model.config, len(examples[-1][0]))
    parts = [examples[i:i + size] for i in range(0, len(examples), size)]
    total = sum(sft_loss(model, part, device).item() * response_tokens(part) for part in parts)
    return total / response_tokens(examples)


def train(cfg):
    """Fine-tune -> (model, history). Writes out/sft/."""
    run = Run(cfg, "sft")
    model, tokenizer, about, records, held_out = start.for_sft(cfg, run)
    begin_chat(model, tokenizer, about)
    context = model.config.block_size
    records, examples, held_out, valid = start.fitting(
        cfg, run, "demonstrations", records, held_out, encode, tokenizer, context)
    shown = (held_out or records)[:5]
    run.say(f"{len(examples):,} demonstrations")
    run.prepare(model)
    opt = optim.adamw(model, cfg.lr, cfg.weight_decay)
    before = sampling.answers(model, tokenizer, shown)
    supply = gpt.batches(examples, cfg.batch, random.Random(cfg.seed), length=lambda e: len(e[0]))

    for step in run.range(cfg.steps, supply, model=model, opt=opt):
        # 1. Draw demonstrations.
        batch, warmup = next(supply), min(20, cfg.steps // 10)
        tokens, lr = response_tokens(batch), optim.learning_rate(step, cfg.steps, cfg.lr, warmup)
        # 2. Sum the gradient over micro-batches, each weighted by its share of the tokens; step.
        total = torch.zeros((), device=run.device)
        for part in micro_batches(batch, cfg.micro_batch):
            loss = sft_loss(model, part, run.device) * (response_tokens(part) / tokens)
            total += loss.detach()
            loss.backward()
        grad_norm = optim.optimizer_step(model, opt, lr)
        # 3. Measure, log and save.
        measured = {}
        if run.due(step, cfg.eval_every):
            if valid:
                measured = {"valid_loss": evaluate(model, valid, run.device)}
            with torch.random.fork_rng():  # what is shown must not change what is drawn
                for p, answer in zip(shown, sampling.answers(model, tokenizer, shown[:1])):
                    run.show(f"{p['prompt'][-1]['content']!r} -> {answer!r}")
        run.log(step, tokens, total, grad_norm=grad_norm, **measured)
        if run.time_to_save(step):
            run.save(step, gpt.to_bytes(model, tokenizer, **run.about(step)))

    report(run, shown, before, sampling.answers(model, tokenizer, shown))
    return model, run.history


def report(run, shown, before, after):
    """Write results.json, print answers before and after, draw the curves."""
    samples = [dict(prompt=p["prompt"], before=old, after=new)
               for p, old, new in zip(shown, before, after)]
    run.write_results(valid_loss=run.latest.get("valid_loss"), seconds=run.seconds, samples=samples)
    for p, old, new in zip(shown, before, after):
        print(f"\n{p['prompt'][-1]['content']}\n  before: {old!r}\n  after:  {new!r}")
    run.draw()
    run.finish()


if __name__ == "__main__":
    main(Config, train, __doc__)
