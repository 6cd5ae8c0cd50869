"""How fast the stages compute, beside the same work written with transformers and with TRL.

    python -m notebooks.benchmark                  about four minutes on 2 CPU cores
    python -m notebooks.benchmark --device cuda    GPT-2's shape, in fp32 (as TF32)

Ours and theirs take turns, so that both meet the same machine: a ratio is the median over the
turns, above 1 where ours is faster. For all rows: pip install trl==0.14.0 transformers==4.48.3,
which nothing else needs; later ones of TRL have another PPO trainer, or none.
"""

import data.run.system  # before torch, as in the stages

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

import gpt
import ppo
from data import optim, sampling
from data.judge import report
from data.judge.figures import markdown
from data.run.cli import Common
from data.run.device import setup

RESULTS = Path(__file__).parent / "results" / "benchmark.json"
LAPTOP, WIDE = gpt.GPTConfig(1536, 128, 4, 4, 128), gpt.GPTConfig(1536, 256, 6, 6, 384)
GPT2 = gpt.GPTConfig(50304, 1024, 12, 12, 768)
TEMPERATURE = .7
# shapes: (model, rows, tokens), and (model, answers, tokens of a prompt and of a response)
PRETRAINING = {"cpu": [(LAPTOP, 8, 128), (LAPTOP, 64, 128), (WIDE, 12, 256)],
               "cuda": [(GPT2, 8, 1024), (GPT2, 32, 512)]}
ROLLOUT = {"cpu": (LAPTOP, 128, 16, 24), "cuda": (GPT2, 128, 64, 128)}


def tokens(config, rows, length, device):
    """(rows, length) random ids. What follows returns functions that do a piece of work once."""
    return torch.randint(config.vocab_size - 5, (rows, length), device=device)


def our_pretraining(config, rows, length, device, optimizer=optim.adamw):
    model = gpt.GPT(config).to(device)
    opt, idx = optimizer(model, 1e-4, .1), tokens(config, rows, length, device)

    def step():
        gpt.next_token_loss(model, idx).backward()
        optim.optimizer_step(model, opt, 1e-4)

    return step


def our_rollout(config, answers, prompt, response, device):
    model, idx = gpt.GPT(config).to(device), tokens(config, answers, prompt, device)
    lengths = torch.full((answers,), prompt, device=device)
    return lambda: sampling.generate(model, idx, lengths, response, TEMPERATURE)


def our_iteration(config, answers, prompt, response, device):
    policy, reference = (gpt.GPT(config).to(device) for _ in range(2))
    rm, value = (gpt.ScalarGPT(config).to(device) for _ in range(2))
    opt = optim.adamw(torch.nn.ModuleList([policy, value]), 1e-5, eps=1e-5)
    cfg = ppo.Config(batch=answers, epochs=4, minibatches=2, max_new_tokens=response)
    prompts = tokens(config, answers, prompt, device)
    lengths = torch.full((answers,), prompt, device=device)

    def step():
        batch = ppo.rollout(policy, reference, rm, value, prompts, lengths, cfg)
        rewards = ppo.kl_rewards(batch.score, batch.logp_old, batch.logp_ref, batch.mask, cfg.beta)
        advantages, batch.returns = ppo.gae(rewards, batch.values_old, batch.mask, 1.0, .95)
        batch.advantages = ppo.whiten(advantages, batch.mask)
        ppo.update(policy, value, opt, batch, cfg, 1e-5)

    return step


def theirs(config, kind, device):
    """A GPT-2 of transformers of our shape; kind: LMHeadModel, ForSequenceClassification."""
    import transformers
    shape = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.block_size, n_layer=config.n_layer,
        n_head=config.n_head, n_embd=config.n_embd, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        num_labels=1, bos_token_id=None, eos_token_id=None, pad_token_id=config.pad)
    return getattr(transformers, f"GPT2{kind}")(shape).to(device)


def their_pretraining(config, rows, length, device):
    model, idx = theirs(config, "LMHeadModel", device), tokens(config, rows, length, device)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(.9, .95), fused=True)

    def step():
        model(idx, labels=idx).loss.backward()
        optim.optimizer_step(model, opt, 1e-4)

    return step


def their_rollout(config, answers, prompt, response, device):
    model, idx = theirs(config, "LMHeadModel", device), tokens(config, answers, prompt, device)
    return lambda: model.generate(
        idx, attention_mask=torch.ones_like(idx), do_sample=True, top_k=0, temperature=TEMPERATURE,
        min_new_tokens=response, max_new_tokens=response)


def trls_iteration(config, answers, prompt, response, device):
    """An update of TRL's PPOTrainer: a function that returns its seconds; None without TRL."""
    try:
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast, TrainerCallback
        from trl import PPOConfig, PPOTrainer
    except ImportError:
        return None
    words, times = {str(i): i for i in range(config.vocab_size)}, []
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "0")),
                                        eos_token="1", pad_token=str(config.pad))
    policy, reference = (theirs(config, "LMHeadModel", device) for _ in range(2))
    rm, value = (theirs(config, "ForSequenceClassification", device) for _ in range(2))
    data = [dict(input_ids=row) for row in tokens(config, 4 * answers, prompt, "cpu").tolist()]

    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            times.append(time.perf_counter())

    args = PPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=answers // 2, num_mini_batches=2,
        num_ppo_epochs=4, response_length=response, temperature=TEMPERATURE, report_to="none",
        total_episodes=2 * answers, local_rollout_forward_batch_size=answers,
        num_sample_generations=0, save_strategy="no", use_cpu=device == "cpu")
    trainer = PPOTrainer(args, tokenizer, policy, reference, rm, data, value, eval_dataset=data[:1],
                         callbacks=[Clock()])

    return lambda: trainer.train() or times[-1] - times[-2]


# ---- measuring -----------------------------------------------------------------------------------


def seconds(work, device):
    """How long a piece of work takes, the GPU's part included, unless it says so itself."""
    began, own = time.perf_counter(), work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return own if isinstance(own, float) else time.perf_counter() - began


def compare(name, count, ours, peer, turns, device):
    """-> a row: what is done, tokens per second of both, median ratio; none without a peer."""
    if peer is None:
        return []
    for work in (ours, peer):
        work()
    times = [(seconds(ours, device), seconds(peer, device)) for _ in range(turns)]
    mine, other = map(statistics.median, zip(*times))
    return [[name, count / mine, count / other, statistics.median(b / a for a, b in times)]]


def measure(device, turns=9):
    """All rows of the table."""
    rows, kind = [], device.split(":")[0]
    for shape in PRETRAINING[kind]:
        config, B, T = shape
        name = f"pretraining, {B} x {T}, {config.n_layer} layers of {config.n_embd}"
        ours, muon = (our_pretraining(*shape, device, make) for make in (optim.adamw, optim.Muon))
        peer = their_pretraining(*shape, device)
        rows += compare(f"{name} | transformers", B * T, ours, peer, turns, device)
        rows += compare(f"{name}, Muon | ours, AdamW", B * T, muon, ours, turns, device)
    config, answers, prompt, response = ROLLOUT[kind]
    size = f"{answers} x ({prompt} + {response})"
    for name, ours, peer in ((f"sampling, {size} | transformers", our_rollout, their_rollout),
                             (f"PPO iteration, {size} | TRL", our_iteration, trls_iteration)):
        works = [work(*ROLLOUT[kind], device) for work in (ours, peer)]
        rows += compare(name, answers * response, *works, turns, device)
    return rows


def table(found):
    """The rows of `measure` as Markdown."""
    rows = [[*name.split(" | "), f"{ours:,.0f}", f"{peer:,.0f}", f"{ratio:.2f}"]
            for name, ours, peer, ratio in found["rows"]]
    return found["where"] + "\n\n" + markdown(
        ["work", "beside", "ours, tokens/s", "theirs", "ours / theirs"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m notebooks.benchmark", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default auto)")
    parser.add_argument("--save", action="store_true", help="write results/benchmark.json")
    args = parser.parse_args()
    device = setup(Common(device=args.device))
    where = f"{torch.get_num_threads()} threads of {report.processor()}, {device}"
    found = dict(where=f"{where}, torch {torch.__version__}", rows=measure(device))
    print(table(found))
    if args.save:
        RESULTS.write_text(json.dumps(found, indent=1), encoding="utf-8")
