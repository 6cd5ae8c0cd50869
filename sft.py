"""Stage 2: supervised fine-tuning. The model that continues texts learns to answer.

    loss = - mean over response tokens t of log p(y_t | prompt, y_1 ... y_{t-1})
                                                             (Ouyang et al. 2022, section 3.5)

The prompt is read but not learned. The response is learned up to and including <|end|>, so that
the model knows when to stop.

    python sft.py       needs out/gpt/ckpt.pt; 900 steps, 2 minutes on 2 CPU cores

The demonstrations are of uneven quality, as people's are, and SFT imitates all of them: expect
about three quarters of the facts to be right, and few perfect answers, as most ramble. Left out:
packing several conversations into a row, and dropout.
"""

import data.run.system  # before torch: its threads spin only briefly, and Ctrl-C works meanwhile

from dataclasses import dataclass

import torch

import gpt
from data import optim, sampling, start
from data.judge import answers as judge
from data.run.cli import Common, flag, main
from data.run.run import Run


@dataclass
class Config(Common):
    """The flags of supervised fine-tuning."""

    steps: int = flag(900, "optimizer steps", least=1, group="algorithm")
    batch: int = flag(32, "demonstrations per step", least=1)
    # A higher rate forgets more of what pretraining taught (LOG: SFT's rate; Muon).
    lr: float = flag(1.5e-3, "peak learning rate; warm-up, then a cosine to 0", least=0)
    weight_decay: float = flag(0.1, "decay of the matrices", least=0)
    init: str = flag("", "checkpoint to start from (default: gpt/ckpt.pt in --out)",
                     group="data and models")
    data: str = flag("", "demonstrations to read instead of the embedded world's")
    demonstrations: int = flag(48000, "demonstrations that the almanac's labelers write", least=1)
    eval_every: int = flag(300, "steps between two measurements of the held-out loss", least=1)


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
    rows = gpt.rows_at_once(model.config, len(examples[-1][0]))
    parts = [examples[i:i + rows] for i in range(0, len(examples), rows)]
    total = sum(sft_loss(model, part, device).item() * response_tokens(part) for part in parts)
    return total / response_tokens(examples)


def train(cfg):
    """Fine-tune -> (model, history). Writes out/sft/."""
    run = Run(cfg, "sft")
    model, tokenizer, about = start.load(run, "pretrained model", cfg.init or run.earlier("gpt"),
                                         hint=start.hint("gpt"), show=True)
    begin_chat(model, tokenizer, about)
    records, held_out = start.demonstrations(cfg, run, encode, tokenizer, model.config.block_size)
    valid, shown = [r["ids"] for r in held_out], (held_out or records)[:5]
    opt = optim.adamw(model, cfg.lr, cfg.weight_decay)
    before = sampling.answers(model, tokenizer, shown)
    supply = gpt.batches([r["ids"] for r in records], cfg.batch, cfg.seed, run.first,
                         length=lambda e: len(e[0]))

    for step in run.steps(cfg.steps, model=model, opt=opt):
        # 1. Draw demonstrations.
        batch, sums = next(supply), optim.Sums()
        lr = optim.learning_rate(step, cfg.steps, cfg.lr, min(20, cfg.steps // 10))
        # 2. Sum the gradient over micro-batches, each weighted by its share of the tokens; step.
        for part, share in optim.micro_batches(batch, cfg.micro_batch, response_tokens):
            loss = sft_loss(model, part, run.device) * share
            loss.backward()
            sums.add(loss=loss)
        figures = dict(sums.total(), grad_norm=optim.optimizer_step(model, opt, lr))
        # 3. Measure, log and save.
        if run.due(step, cfg.eval_every):
            if valid:
                figures["valid_loss"] = evaluate(model, valid, run.device)
            answer, = sampling.answers(model, tokenizer, shown[:1])
            run.show(f"{shown[0]['prompt'][-1]['content']!r} -> {answer!r}")
        run.log(step, figures, tokens=response_tokens(batch))
        run.save(step, tokenizer, ckpt=model)

    judge.report_answers(run, shown, before, sampling.answers(model, tokenizer, shown))
    return model, run.history


if __name__ == "__main__":
    main(Config, train, __doc__)
