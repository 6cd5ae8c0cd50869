"""How fast the stages compute, beside the same work written with transformers.

    python -m notebooks.benchmark                  about two minutes on 2 CPU cores
    python -m notebooks.benchmark --device cuda    GPT-2's shape, in fp32 (as TF32) and in bf16

Ours and theirs take turns, so that both meet the same machine: a ratio is the median over the
turns, above 1 where ours is faster; both use AdamW. "Share" is the arithmetic of the matrix
products, 6 operations per weight and token and those of attention, as a share of what this machine
reaches in one large product; everything else that a step does counts as nothing. The last table
fits time ~ size^p.

transformers is in tests/requirements.txt. --save writes notebooks/results/benchmark.json, from
which the README's tables are made.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import gpt
import ppo
import reward
from data import optim, sampling
from data.judge.figures import markdown
from data.run.cli import Common
from data.run.device import choose_device, setup
from data.run.processes import rank

RESULTS = Path(__file__).parent / "results" / "benchmark.json"
LAPTOP, WIDE = gpt.GPTConfig(1536, 128, 4, 4, 128), gpt.GPTConfig(1536, 256, 6, 6, 384)
GPT2 = gpt.GPTConfig(50304, 1024, 12, 12, 768)
TEMPERATURE = .7


@dataclass
class Sizes:
    """What is measured on a kind of machine."""

    config: gpt.GPTConfig
    pretraining: list  # of (config, rows, tokens)
    answers: int
    prompt: int        # tokens
    response: int      # tokens
    turns: int


SIZES = {"cpu": Sizes(LAPTOP, [(LAPTOP, 8, 128), (LAPTOP, 64, 128), (WIDE, 12, 256)],
                      answers=128, prompt=16, response=24, turns=5),
         "cuda": Sizes(GPT2, [(GPT2, 8, 1024), (GPT2, 32, 512)],
                       answers=128, prompt=64, response=128, turns=5)}


# ---- our work ------------------------------------------------------------------------------------


def tokens(config, rows, length, device):
    """(rows, length) random ids, special tokens not among them."""
    return torch.randint(config.vocab_size - 5, (rows, length), device=device)


def our_pretraining(config, rows, length, device):
    model = gpt.GPT(config).to(device)
    opt, idx = optim.adamw(model, 1e-4, .1), tokens(config, rows, length, device)

    def step():
        loss = gpt.next_token_loss(model, idx)
        loss.backward()
        optim.optimizer_step(model, opt, 1e-4)

    return step


def our_rollout(sizes, device):
    model, idx = gpt.GPT(sizes.config).to(device), tokens(sizes.config, sizes.answers, sizes.prompt,
                                                          device)
    lengths = torch.full((len(idx),), idx.shape[1], device=device)
    return lambda: sampling.generate(model, idx, lengths, sizes.response, TEMPERATURE)


def our_reward_step(sizes, device):
    model, (idx, ranks) = gpt.ScalarGPT(sizes.config).to(device), ranked(sizes, device)
    opt, batch = optim.adamw(model, 1e-4), []
    for rows, of_rows in zip(idx.view(*ranks.shape, -1).tolist(), ranks.tolist()):
        answers = [row[sizes.prompt:] for row in rows]
        batch.append((rows[0][:sizes.prompt], answers, of_rows))

    def step():
        scores, ranks = reward.score(model, batch, device)
        loss = reward.ranking_loss(scores, ranks)
        loss.backward()
        optim.optimizer_step(model, opt, 1e-4)

    return step


def ranked(sizes, device):
    """A quarter as many prompts as answers, four answers each -> ids (N * 4, T), ranks (N, 4)."""
    idx = tokens(sizes.config, sizes.answers, sizes.prompt + sizes.response, device)
    return idx, torch.tensor([1, 2, 3, 4], device=device).expand(len(idx) // 4, 4)


def our_iteration(sizes, device):
    policy, reference = (gpt.GPT(sizes.config).to(device) for _ in range(2))
    rm, value = (gpt.ScalarGPT(sizes.config).to(device) for _ in range(2))
    opt = optim.adamw(torch.nn.ModuleList([policy, value]), 1e-5, eps=1e-5)
    cfg = ppo.Config(batch=sizes.answers, epochs=4, minibatches=2, max_new_tokens=sizes.response,
                     temperature=TEMPERATURE)
    prompts = tokens(sizes.config, sizes.answers, sizes.prompt, device)
    lengths = torch.full((len(prompts),), sizes.prompt, device=device)

    def step():
        batch = ppo.rollout(policy, reference, rm, value, prompts, lengths, cfg)
        rewards = ppo.kl_rewards(batch.score, batch.logp_old, batch.logp_ref, batch.mask, cfg.beta)
        advantages, batch.returns = ppo.gae(rewards, batch.values_old, batch.mask, cfg.gamma,
                                            cfg.lam)
        batch.advantages = ppo.whiten(advantages, batch.mask)
        ppo.update(policy, value, opt, batch, cfg, 1e-5)

    return step


# ---- the same with transformers ------------------------------------------------------------------


def theirs(config, kind, device):
    """A GPT-2 of transformers of our shape; kind: LMHeadModel, ForTokenClassification, ..."""
    import transformers
    transformers.logging.set_verbosity_error()
    shape = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.block_size, n_layer=config.n_layer,
        n_head=config.n_head, n_embd=config.n_embd, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        classifier_dropout=0, num_labels=1, bos_token_id=None, eos_token_id=None,
        pad_token_id=config.pad)
    return getattr(transformers, f"GPT2{kind}")(shape).to(device)


def adamw(models, lr):
    return torch.optim.AdamW([p for m in models for p in m.parameters()], lr=lr, betas=(.9, .95),
                             fused=True)


def descend(loss, models, opt):
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for m in models for p in m.parameters()], 1.0)
    opt.step()
    opt.zero_grad(set_to_none=True)


def their_pretraining(config, rows, length, device):
    model = theirs(config, "LMHeadModel", device)
    opt, idx = adamw([model], 1e-4), tokens(config, rows, length, device)
    return lambda: descend(model(idx, labels=idx).loss, [model], opt)


def their_sample(model, idx, sizes):
    return model.generate(idx, attention_mask=torch.ones_like(idx), do_sample=True, top_k=0,
                          temperature=TEMPERATURE, min_new_tokens=sizes.response,
                          max_new_tokens=sizes.response)


def their_rollout(sizes, device):
    model, idx = theirs(sizes.config, "LMHeadModel", device), tokens(sizes.config, sizes.answers,
                                                                     sizes.prompt, device)
    return lambda: their_sample(model, idx, sizes)


def their_reward_step(sizes, device):
    model, idx, ranks = theirs(sizes.config, "ForSequenceClassification", device), *ranked(sizes,
                                                                                          device)
    opt = adamw([model], 1e-4)

    def step():
        scores = model(idx).logits.view(ranks.shape)
        descend(reward.ranking_loss(scores, ranks), [model], opt)

    return step


def their_iteration(sizes, device):
    policy, reference = (theirs(sizes.config, "LMHeadModel", device) for _ in range(2))
    rm = theirs(sizes.config, "ForSequenceClassification", device)
    value = theirs(sizes.config, "ForTokenClassification", device)
    opt, prompts = adamw([policy, value], 1e-5), tokens(sizes.config, sizes.answers, sizes.prompt,
                                                        device)

    def logprobs(model, idx):
        logp = F.log_softmax(model(idx).logits[:, :-1].float() / TEMPERATURE, -1)
        return logp.gather(-1, idx[:, 1:, None]).squeeze(-1)

    def step():
        with torch.no_grad():
            idx = their_sample(policy, prompts, sizes)
            before = torch.full((len(idx),), sizes.prompt, device=device)
            mask = gpt.response_mask(before, before + sizes.response, idx.shape[1])
            logp_old, logp_ref = logprobs(policy, idx), logprobs(reference, idx)
            score, values_old = rm(idx).logits[:, 0].float(), value(idx).logits[:, :-1, 0].float()
            rewards = ppo.kl_rewards(score, logp_old, logp_ref, mask, .05)
            advantages, returns = ppo.gae(rewards, values_old, mask, 1.0, .95)
            advantages = ppo.whiten(advantages, mask)
        for _ in range(4):
            for rows in torch.randperm(len(idx), device=device).tensor_split(2):
                values, part = value(idx[rows]).logits[:, :-1, 0].float(), mask[rows]
                loss = ppo.policy_loss(logprobs(policy, idx[rows]), logp_old[rows],
                                       advantages[rows], part, .2)
                loss = loss + .1 * ppo.value_loss(values, values_old[rows], returns[rows], part, .2)
                descend(loss, [policy, value], opt)

    return step


# ---- measuring -----------------------------------------------------------------------------------


def seconds(work, device):
    """How long a piece of work takes, the GPU's part of it included."""
    began = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def large_product(device, dtype=torch.float32):
    """A large matrix product, and its operations."""
    n = 8192 if device.startswith("cuda") else 1024
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    return lambda: a @ b, 2 * n ** 3


def arithmetic(config, rows, length):
    """Operations of the matrix products in a step of pretraining, forward and backward."""
    weights = 12 * config.n_layer * config.n_embd ** 2 + config.vocab_size * config.n_embd
    attention = 2 * config.n_layer * config.n_embd * length / 2  # half of it is masked
    return 6 * rows * length * (weights + attention)


def in_turns(works, turns, device):
    """Seconds of each piece of work in each turn, after one that does not count: (turns, works)."""
    for work in works:
        work()
    return np.array([[seconds(work, device) for work in works] for _ in range(turns)])


def measure(sizes, device, dtype):
    """The first table's rows: work, tokens per second of ours and theirs, ratio, share.

    Before them, the operations per second of a large product.
    """
    product, operations_of_it = large_product(device, dtype)
    speeds, rows = [], []
    for config, B, T in sizes.pretraining:
        works = [our_pretraining(config, B, T, device), their_pretraining(config, B, T, device)]
        times = in_turns([*works, *[product] * 5], sizes.turns, device)
        speed = operations_of_it / np.median(times[:, 2:], axis=1)  # of each turn
        share = float(np.median(arithmetic(config, B, T) / times[:, 0] / speed))
        rows.append([f"pretraining step, {B} x {T}, {config.n_layer} layers of {config.n_embd}",
                     *compared(times, B * T), share])
        speeds.extend(speed)
    new, width = sizes.answers * sizes.response, sizes.prompt + sizes.response
    pairs = {f"rollout, {sizes.answers} x ({sizes.prompt} + {sizes.response}), new tokens":
             (our_rollout, their_rollout, new),
             f"reward model's step, {sizes.answers // 4} x 4 answers of {width}":
             (our_reward_step, their_reward_step, sizes.answers * width),
             f"PPO iteration, {sizes.answers} x {sizes.response}, 4 epochs x 2, new tokens":
             (our_iteration, their_iteration, new)}
    for name, (ours, peer, count) in pairs.items():
        times = in_turns([ours(sizes, device), peer(sizes, device)], sizes.turns, device)
        rows.append([name, *compared(times, count), None])
    return statistics.median(speeds), rows


def compared(times, tokens):
    """Tokens per second of ours and of theirs, and the median of the turns' ratios."""
    ours, peer = np.median(times[:, :2], axis=0)
    return tokens / ours, tokens / peer, float(np.median(times[:, 1] / times[:, 0]))


def operations(sizes, device, most=9):
    """Where the time goes: share of each operation in three kinds of work -> {kind: {op: share}}.
    """
    config, B, T = sizes.pretraining[0]
    found = {}
    for kind, work in (("pretraining", our_pretraining(config, B, T, device)),
                       ("rollout", our_rollout(sizes, device)),
                       ("PPO iteration", our_iteration(sizes, device))):
        work()
        with torch.profiler.profile() as profile:
            work()
        gpu = device.startswith("cuda")
        times = {e.key: e.self_device_time_total if gpu else e.self_cpu_time_total
                 for e in profile.key_averages() if e.key.startswith("aten::") or gpu}
        largest = sorted(times, key=times.get, reverse=True)[:most]
        found[kind] = {name: times[name] / sum(times.values()) for name in largest}
    return found


def growth(device, sizes):
    """Exponents p of time ~ size^p -> {what grows: (sizes, seconds, p)}."""
    config, (_, B, T) = sizes.config, sizes.pretraining[0]
    axes = {
        "context of a pretraining step": ([T // 4, T // 2, T],
                                          lambda n: our_pretraining(config, B, n, device)),
        "rows of a pretraining step": ([B, 2 * B, 4 * B],
                                       lambda n: our_pretraining(config, n, T, device)),
        "answers of a rollout": ([sizes.answers // 4, sizes.answers, 4 * sizes.answers],
                                 lambda n: our_rollout(resized(sizes, n), device)),
        "answers of a PPO iteration": ([sizes.answers // 4, sizes.answers // 2, sizes.answers],
                                       lambda n: our_iteration(resized(sizes, n), device))}
    found = {}
    for name, (counts, make) in axes.items():
        works = [make(n) for n in counts]
        for work in works:
            work()
        times = [statistics.median(seconds(work, device) for _ in range(3)) for work in works]
        found[name] = counts, times, exponent(counts, times)
    if device == "cpu" and sizes is SIZES["cpu"]:
        times = [in_processes(n) for n in (1, 2)]
        found["processes, a thread each, of a pretraining step"] = [1, 2], times, exponent([1, 2],
                                                                                           times)
    return found


def resized(sizes, answers):
    return Sizes(sizes.config, sizes.pretraining, answers, sizes.prompt, sizes.response, 1)


def exponent(counts, times):
    return float(np.polyfit(np.log(counts), np.log(times), 1)[0])


def in_processes(n):
    """Seconds of a pretraining step of 32 rows that n processes share."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(n), "-m",
               "notebooks.benchmark", "--shared_step"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def shared_step():
    """What each of several processes does: 20 steps, their median printed by the first."""
    setup(Common(threads=1))
    torch.manual_seed(0)
    model, batch = gpt.GPT(LAPTOP), tokens(LAPTOP, 32, LAPTOP.block_size, "cpu")
    opt = optim.adamw(model, 1e-4)

    def step():
        for idx, share in optim.micro_batches(batch):
            (gpt.next_token_loss(model, idx) * share).backward()
        optim.optimizer_step(model, opt, 1e-4)

    times = [seconds(step, "cpu") for _ in range(20)]
    if rank() == 0:
        print(statistics.median(times))


# ---- reporting -----------------------------------------------------------------------------------


def machine(device):
    """What computes, in words."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            cwd=Path(__file__).parent).stdout.strip()
    name = f"{torch.get_num_threads()} threads of {cpu_name()}"
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    return f"{name}, torch {torch.__version__}, commit {commit or 'unknown'}"


def cpu_name():
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def table(found):
    """The measurements as Markdown: speeds, operations, growth."""
    head = ["work", "ours, tokens/s", "transformers", "ours / theirs", "share"]
    text = []
    for part in found["parts"]:
        rows = [[name, f"{ours:,.0f}", f"{peer:,.0f}", f"{ratio:.2f}",
                 "" if share is None else f"{share:.0%}"]
                for name, ours, peer, ratio, share in part["rows"]]
        text += [f"{part['precision']}; one large product: {part['speed'] / 1e9:,.0f} GFLOPS; "
                 f"{found['machine']}.", markdown(head, rows)]
    each = [[f"{name.removeprefix('aten::')} {share:.0%}" for name, share in shares.items()]
            for shares in found["operations"].values()]
    text.append(markdown(list(found["operations"]), [list(row) for row in zip(*each)]))
    rows = [[name, " ".join(map(str, counts)), " ".join(f"{1000 * t:.0f}" for t in times),
             f"{p:.2f}"] for name, (counts, times, p) in found["growth"].items()]
    text.append(markdown(["what grows", "sizes", "ms", "p"], rows))
    return "\n\n".join(text)


def main():
    parser = argparse.ArgumentParser(prog="python -m notebooks.benchmark", allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description=__doc__)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default auto)")
    parser.add_argument("--save", action="store_true", help="write results/benchmark.json")
    parser.add_argument("--shared_step", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.shared_step:
        return shared_step()
    device = choose_device(args.device)
    sizes, parts = SIZES[device.split(":")[0]], []
    for bf16 in (False, True) if device.startswith("cuda") else (False,):
        setup(Common(bf16=bf16))
        torch.manual_seed(0)
        speed, rows = measure(sizes, device, torch.bfloat16 if bf16 else torch.float32)
        parts.append(dict(precision="bf16" if bf16 else "fp32", speed=speed, rows=rows))
    found = dict(machine=machine(device), parts=parts, operations=operations(sizes, device),
                 growth=growth(device, sizes))
    print(table(found))
    if args.save:
        RESULTS.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
