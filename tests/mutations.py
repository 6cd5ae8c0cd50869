"""Proof that the tests bite: mistakes that people really make, one at a time, and the test that catches each.

    python -m pytest -m slow tests/mutations.py -s      the table of mistakes and the laws they break

Not yet part of `.ci/run`: the list is written, but it has not been run as a whole.

Each mistake is one replacement in a copy of the code. It is caught if some test of the laws fails there; a mistake that
no test notices fails here. Most are from "bugs in the references" and the questions that users of other codebases ask.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

# what goes wrong: (file, the right code, the wrong code)
MUTATIONS = {
    # log-probabilities and sampling
    "PAD has a share of the distribution": ("gpt.py", "    logits[..., model.config.pad] = -torch.inf\n", ""),
    "the temperature is not in the log-probabilities": ("gpt.py", "logits = action_logits(model, state[mask], temperature)", "logits = action_logits(model, state[mask], 1.0)"),
    "the temperature is not in the samples": ("gpt.py", "action_logits(model, hidden, temperature).softmax(-1)", "action_logits(model, hidden, 1.0).softmax(-1)"),
    "samples are of the ten most probable tokens": ("gpt.py", "token = torch.multinomial(action_logits(model, hidden, temperature).softmax(-1), 1).squeeze(1)",
        "top = action_logits(model, hidden, temperature).topk(10)\n            token = top.indices.gather(1, torch.multinomial(top.values.softmax(-1), 1)).squeeze(1)"),
    "targets are not shifted": ("gpt.py", "state, action = model.hidden(idx)[:, :-1], idx[:, 1:]", "state, action = model.hidden(idx)[:, :-1], idx[:, :-1]"),
    "positions are shifted beside the cache": ("gpt.py", "at = (cache.pos[:, None] + at)", "at = (cache.pos[:, None] + at + 1)"),
    "the cache shows a row its padding": ("gpt.py", "mask = torch.arange(seen, device=k.device) <= at[:, None, :, None]", "mask = torch.arange(seen, device=k.device) <= at[:, None, :, None].max()"),
    "answers go on after their end": ("gpt.py", "alive = alive & (token != config.end) & ", "alive = alive & "),
    "attention sees the future": ("gpt.py", "is_causal=True", "is_causal=False"),
    "dropout is left on": ("gpt.py", "return self.c_proj(y.transpose(1, 2).reshape(B, T, C))", "return F.dropout(self.c_proj(y.transpose(1, 2).reshape(B, T, C)), .1)"),
    # masks and means
    "the end token is masked out": ("gpt.py", "(token < lengths[:, None])", "(token < lengths[:, None] - 1)"),
    "the mask starts one token late": ("gpt.py", "(token >= prompt_lengths[:, None])", "(token > prompt_lengths[:, None])"),
    "the mask starts one token early": ("gpt.py", "(token >= prompt_lengths[:, None])", "(token >= prompt_lengths[:, None] - 1)"),
    "a mean of the rows' means": ("gpt.py", "return (x * mask).sum() / mask.sum()", "return ((x * mask).sum(-1) / mask.sum(-1)).mean()"),
    "a mean over padding too": ("gpt.py", "return (x * mask).sum() / mask.sum()", "return (x * mask).mean()"),
    # optimiser
    "biases and LayerNorms decay": ("gpt.py", '{"params": others, "weight_decay": 0.0}', '{"params": others, "weight_decay": weight_decay}'),
    "gradients are clipped before there are any": ("gpt.py", "    loss.backward()\n    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)\n",
        "    norm = nn.utils.clip_grad_norm_(model.parameters(), clip)\n    loss.backward()\n"),
    "gradients add up over the steps": ("gpt.py", "    opt.zero_grad(set_to_none=True)\n", ""),
    "the learning rate of pretraining never falls": ("gpt.py", "progress = (step - warmup) / max(1, steps - warmup)", "progress = 0"),
    # SFT
    "the prompt is learned too": ("sft.py", "mask = gpt.response_mask(prompt_lengths, lengths", "mask = gpt.response_mask(0 * prompt_lengths + 1, lengths"),
    "demonstrations have no end token": ("sft.py", '+ tokenizer.encode(record["response"]) + [tokenizer.end]', '+ tokenizer.encode(record["response"])'),
    # reward model
    "ranks are reversed": ("reward.py", "wins = (ranks[:, :, None] < ranks[:, None, :]) & (ranks[:, :, None] > 0)", "wins = (ranks[:, :, None] > ranks[:, None, :]) & (ranks[:, None, :] > 0)"),
    "ties are losses": ("reward.py", "wins = (ranks[:, :, None] < ranks[:, None, :])", "wins = (ranks[:, :, None] <= ranks[:, None, :])"),
    "a prompt counts by its pairs": ("reward.py", "return (loss.sum((1, 2)) / pairs.clamp(min=1)).sum() / (pairs > 0).sum().clamp(min=1)", "return loss.sum() / pairs.sum().clamp(min=1)"),
    "missing answers lose": ("reward.py", " & (ranks[:, :, None] > 0)  #", "  #"),
    "the score is read one token early": ("gpt.py", "self(idx).gather(1, lengths[:, None] - 1)", "self(idx).gather(1, lengths[:, None] - 2)"),
    "the score is read at the last column": ("gpt.py", "return self(idx).gather(1, lengths[:, None] - 1).squeeze(1)", "return self(idx)[:, -1]"),
    "scores are shifted but not scaled": ("reward.py", "    model.head.weight /= std\n    model.head.bias.copy_((model.head.bias - mean) / std)\n", "    model.head.bias -= mean\n"),
    # rewards, advantages
    "the score is added to every token": ("ppo.py", "rewards[torch.arange(len(rewards), device=mask.device), last] += score", "rewards += score[:, None] * mask"),
    "the score is added after the end": ("ppo.py", "last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)", "last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1) + 1"),
    "KL is taken against the old policy": ("ppo.py", "kl_rewards(batch.score, batch.logp_old, batch.logp_ref,", "kl_rewards(batch.score, batch.logp_old, batch.logp_old,"),
    "KL has the wrong sign": ("ppo.py", "rewards = -beta * (logp - logp_ref) * mask", "rewards = -beta * (logp_ref - logp) * mask"),
    "KL is paid for padding": ("ppo.py", "rewards = -beta * (logp - logp_ref) * mask", "rewards = -beta * (logp - logp_ref)"),
    "an answer without end keeps its score": ("ppo.py", "score = torch.where(ended, reward.score(idx, lengths), cfg.missing_eos_score)", "score = reward.score(idx, lengths)"),
    "values of PAD are in GAE": ("ppo.py", "    values = values * mask\n    following", "    following"),
    "GAE forgets lambda": ("ppo.py", "(gamma * lam) ** power", "gamma ** power"),
    "returns are of whitened advantages": ("ppo.py", "advantages, batch.returns = gae(", "advantages, batch.returns = (lambda a, r: (a, whiten(a, batch.mask) + batch.values_old * batch.mask))(*gae("),
    "advantages are whitened row by row": ("ppo.py", "    mean = gpt.masked_mean(x, mask)\n    var = gpt.masked_mean((x - mean) ** 2, mask)\n",
        "    n = mask.sum(-1, keepdim=True)\n    mean = (x * mask).sum(-1, keepdim=True) / n\n    var = (((x - mean) ** 2) * mask).sum(-1, keepdim=True) / n\n"),
    "padding is in the whitening": ("ppo.py", "    mean = gpt.masked_mean(x, mask)\n    var", "    mean = x.mean()\n    var"),
    # losses
    "the ratio is upside down": ("ppo.py", "ratio = torch.exp(logp - logp_old)\n    return", "ratio = torch.exp(logp_old - logp)\n    return"),
    "clipping takes the better of the two": ("ppo.py", "torch.max(-advantages * ratio, -advantages * ratio.clamp", "torch.min(-advantages * ratio, -advantages * ratio.clamp"),
    "the ratio is always clipped": ("ppo.py", "torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))", "-advantages * ratio.clamp(1 - clip, 1 + clip)"),
    "the value loss takes the smaller error": ("ppo.py", "0.5 * gpt.masked_mean(torch.max((values", "0.5 * gpt.masked_mean(torch.min((values"),
    "old log-probabilities are of another forward pass": ("ppo.py", "logp_old, logp_ref = [torch.cat(", "logp_old, logp_ref = [1e-3 + torch.cat("),
    # the loop
    "the reference is the policy": ("ppo.py", "reference, _, _ = gpt.load(sft_path, gpt.GPT, run.device)", "reference = policy"),
    "the value model is the reward model": ("ppo.py", "value.trunk.load_state_dict(reward.trunk.state_dict())", "value = reward"),
    "PPO's learning rate never falls": ("ppo.py", "lr = cfg.lr * (1 - step / cfg.steps)", "lr = cfg.lr"),
    "one step an epoch": ("ppo.py", "for rows in order.to(batch.idx.device).tensor_split(cfg.minibatches):", "for rows in order.to(batch.idx.device).tensor_split(1):"),
}
CODE = ("gpt.py", "sft.py", "reward.py", "ppo.py")
LAWS = ("test_gpt.py", "test_sft.py", "test_reward.py", "test_ppo.py", "test_runs.py")


def run_laws(folder):
    """Run the law tests of a copy of the project, up to the first failure -> (exit status, name of the failed test)."""
    result = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *[f"tests/{name}" for name in LAWS]],
                            cwd=folder, capture_output=True, text=True, timeout=600)
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", result.stdout, re.M)
    return result.returncode, failed[1] if failed else result.stdout[-500:]


@pytest.mark.parametrize("name", MUTATIONS)
def test_some_law_catches(name, tmp_path, capsys):
    file, right, wrong = MUTATIONS[name]
    for part in (*CODE, "data", "tests", ".pytest.ini"):
        source = ROOT / part
        shutil.copytree(source, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__")) if source.is_dir() else shutil.copy(source, tmp_path / part)
    code = (tmp_path / file).read_text()
    assert code.count(right) == 1, f"{file} has no place, or several, for this mistake: {right!r}"
    (tmp_path / file).write_text(code.replace(right, wrong))
    status, law = run_laws(tmp_path)
    with capsys.disabled():
        print(f"\n{name:50} {law}", end="")
    assert status == 1, f"no law notices: {name}"
