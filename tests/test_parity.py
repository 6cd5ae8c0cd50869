"""The same numbers as the libraries that the field uses, and as the papers' formulas written out
in plain numpy."""

import os

import numpy as np
import pytest
import torch

import gpt
from data import optim
import ppo
import reward
import sft
from data.world import almanac
from data.tokenizer import PATTERN, Tokenizer, train

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="pip install -r tests/requirements.txt")
tokenizers = pytest.importorskip("tokenizers", reason="pip install -r tests/requirements.txt")

# ---- GPT-2 against transformers ------------------------------------------------------------------


@pytest.fixture
def twins():
    """A GPT-2 of transformers with random weights, and ours with the same, both float64."""
    config = gpt.GPTConfig(vocab_size=60, block_size=32, n_layer=3, n_head=4, n_embd=32)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=60, n_positions=32, n_layer=3, n_head=4, n_embd=32, initializer_range=.3,
        eos_token_id=config.end, pad_token_id=config.pad)).double().eval()
    state = {}
    for name, weight in theirs.transformer.state_dict().items():
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            weight = weight.T  # theirs are of a class Conv1D, which stores the transpose
        for a, b in (("h.", "blocks."), (".mlp.c_fc", ".mlp.0"), (".mlp.c_proj", ".mlp.2")):
            name = name.replace(a, b)
        state[name] = weight.contiguous()
    ours = gpt.GPT(config).double()
    ours.load_state_dict(state)
    return ours.requires_grad_(False), theirs.requires_grad_(False)


@pytest.mark.parametrize("length", [1, 2, 32])
def test_gpt2_forward(twins, length):
    ours, theirs = twins
    idx = torch.randint(60, (3, length))
    torch.testing.assert_close(ours(idx), theirs(idx).logits, rtol=1e-9, atol=1e-9)


def test_gpt2_forward_in_bfloat16(twins):
    ours, theirs = [m.bfloat16() for m in twins]
    idx = torch.randint(60, (3, 20))
    a, b = ours(idx).float(), theirs(idx).logits.float()
    exact = twins[0].double()(idx).float()
    assert (a - b).abs().mean() < .1 * exact.std()
    # neither rounds worse than the other
    assert (a - exact).abs().mean() < 1.5 * (b - exact).abs().mean()


def test_gpt2_loss(twins):
    """Theirs includes <|pad|> in the softmax, which to them is a token like others; so here its
    logit is sent to minus infinity."""
    ours, theirs = twins
    idx = torch.randint(59, (3, 20))
    logits = theirs(idx).logits
    logits[..., 59] = -torch.inf
    expected = theirs.loss_function(logits, idx, vocab_size=60)  # it computes in float32
    assert -gpt.token_logprobs(ours, idx).mean().item() == pytest.approx(expected.item(), rel=1e-6)


def test_gpt2_greedy_generation(twins):
    ours, theirs = twins
    rows = [[5], [1, 2, 3], list(range(12))]
    idx, lengths = gpt.pad(rows, ours.config.pad)
    answers, after = gpt.generate(ours, idx, lengths, 15, temperature=0)
    for row, answer, n in zip(rows, answers.tolist(), after.tolist()):
        expected = theirs.generate(torch.tensor([row]),
                                   attention_mask=torch.ones(1, len(row), dtype=torch.long),
                                   max_new_tokens=15, do_sample=False,
                                   suppress_tokens=[ours.config.pad])
        assert answer[:n] == expected[0].tolist()


# ---- optimiser -----------------------------------------------------------------------------------


def test_the_learning_rate_is_that_of_transformers():
    """Theirs counts from a first step with rate 0 while it warms up; ours skips that step."""
    weight = torch.nn.Parameter(torch.zeros(1))
    for floor in (0.0, .1):
        opt = torch.optim.SGD([weight], 3e-4)
        schedule = transformers.get_cosine_with_min_lr_schedule_with_warmup(
            opt, 10, 100, min_lr_rate=floor)
        theirs = []
        for _ in range(100):
            theirs.append(opt.param_groups[0]["lr"])
            opt.step()
            schedule.step()
        ours = [optim.learning_rate(step, 100, 3e-4, warmup=10, floor=floor) for step in range(100)]
        assert ours[:9] == pytest.approx(theirs[1:10]) and ours[10:] == pytest.approx(theirs[10:])


def test_weights_decay_where_transformers_lets_them_decay():
    from transformers.trainer_pt_utils import get_parameter_names
    model = gpt.GPT(gpt.GPTConfig(60, 32, 2, 2, 16))
    names = [n for n in get_parameter_names(model, [torch.nn.LayerNorm]) if not n.endswith("bias")]
    decaying = {id(p) for p in optim.adamw(model, 1e-3, .1).param_groups[0]["params"]}
    assert {n for n, p in model.named_parameters() if id(p) in decaying} == set(names)


def test_adamw_by_its_paper():
    """Loshchilov and Hutter 2019, algorithm 2, with eps outside the root, as in torch; three steps
    with gradients below the clipping norm."""
    weight = torch.nn.Parameter(torch.tensor([[.5, -.3]], dtype=torch.float64))
    opt = optim.adamw(torch.nn.ParameterList([weight]), 1.0, weight_decay=.1, eps=1e-5)
    theta, m, v = np.array([[.5, -.3]]), 0.0, 0.0
    for t in range(1, 4):
        target = torch.tensor([[.1 * t, .2]], dtype=torch.float64)
        g = theta - target.numpy()
        m, v = .9 * m + .1 * g, .95 * v + .05 * g ** 2
        theta = theta - .01 * (m / (1 - .9 ** t) / (np.sqrt(v / (1 - .95 ** t)) + 1e-5)
                               + .1 * theta)
        (.5 * ((weight - target) ** 2).sum()).backward()
        optim.optimizer_step(torch.nn.ParameterList([weight]), opt, lr=.01)
        np.testing.assert_allclose(weight.detach().numpy(), theta, rtol=1e-6)


def test_muon_moves_matrices_as_torchs_does_and_the_rest_as_adamw():
    """torch computes in bfloat16, and its steps are half as long: Liu et al. 2025 have .2 where we
    have .4."""
    config = gpt.GPTConfig(60, 16, 2, 2, 16)
    ours, theirs = gpt.GPT(config), gpt.GPT(config)
    theirs.load_state_dict(ours.state_dict())
    inner = [p for p in theirs.blocks.parameters() if p.dim() == 2]
    rest = torch.nn.ParameterList(p for p in theirs.parameters() if all(p is not q for q in inner))
    muon = torch.optim.Muon(inner, lr=2 * .01, weight_decay=.05, momentum=.95,
                            adjust_lr_fn="match_rms_adamw")
    opt, adamw = optim.Muon(ours, .01, .1), optim.adamw(rest, .01, .1)
    for step in range(3):
        idx = torch.randint(55, (4, 16))
        for model in (ours, theirs):
            gpt.next_token_loss(model, idx).backward()
        before = [p.detach().clone() for p in inner]
        optim.optimizer_step(ours, opt, .01)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        muon.step(), adamw.step(), theirs.zero_grad()
        moved = {id(b): (b - old).norm() for b, old in zip(inner, before)}
        for a, b in zip(ours.parameters(), theirs.parameters()):
            if id(b) in moved:
                assert (a - b).norm() < .2 * moved[id(b)]
            else:
                torch.testing.assert_close(a, b)
        theirs.load_state_dict(ours.state_dict())


# ---- tokenizer -----------------------------------------------------------------------------------


def test_the_tokenizer_cuts_text_like_hugging_faces_with_the_same_merges():
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    ranks = train(almanac.text(300, 1), 700)
    ours = Tokenizer(ranks)
    letters = bytes_to_unicode()  # they write each byte as a printable character

    def spell(token):
        return "".join(letters[b] for b in token)

    merges = []
    # the two parts of a token: its bytes, merged as far as older tokens go
    for token, rank in list(ranks.items())[256:]:
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:
            i = min(range(len(parts) - 1),
                    key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        merges.append(tuple(map(spell, parts)))
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE({spell(t): r for t, r in ranks.items()},
                                                        merges))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    for text in almanac.text(50, 2) + ["  two  spaces\n\n\tand tabs ", "naïve 東京 🙂",
                                       "it's John's, isn't it? 12345"]:
        assert ours.encode(text) == theirs.encode(text).ids


# ---- equations against numpy ---------------------------------------------------------------------


@pytest.fixture
def rollout():
    """Random numbers of the shapes of PPO, as numpy arrays: 4 answers of 1 to 7 tokens at
    different places."""
    rng = np.random.default_rng(0)
    names = ("logp", "logp_old", "logp_ref", "values", "values_old", "advantages", "returns")
    x = {name: rng.normal(size=(4, 9)) for name in names}
    x["score"] = rng.normal(size=4)
    x["spans"] = [(2, 9), (0, 1), (4, 8), (3, 6)]
    x["mask"] = np.zeros((4, 9), bool)
    for row, (first, end) in enumerate(x["spans"]):
        x["mask"][row, first:end] = True
    return x, {k: torch.tensor(v) for k, v in x.items() if k != "spans"}


def test_rewards_advantages_and_returns_by_the_papers(rollout):
    """Ziegler et al. 2019, eq. 2; Schulman et al. 2016, eq. 11-16: the recursion, from the last
    token back."""
    x, t = rollout
    rewards = ppo.kl_rewards(t["score"], t["logp"], t["logp_ref"], t["mask"], .3)
    advantages, returns = ppo.gae(rewards, t["values"], t["mask"], .97, .9)
    for row, (first, end) in enumerate(x["spans"]):
        later, value_after = 0.0, 0.0
        for s in reversed(range(first, end)):
            r = -.3 * (x["logp"][row, s] - x["logp_ref"][row, s]) + (
                x["score"][row] if s == end - 1 else 0)
            assert rewards[row, s].item() == pytest.approx(r)
            later = r + .97 * value_after - x["values"][row, s] + .97 * .9 * later
            value_after = x["values"][row, s]
            assert advantages[row, s].item() == pytest.approx(later)
            assert returns[row, s].item() == pytest.approx(later + value_after)


def test_losses_by_the_papers(rollout):
    """Schulman et al. 2017, eq. 7, and the clipped value loss of its code."""
    x, t = rollout
    pg, vf, n = 0.0, 0.0, 0
    for row, (first, end) in enumerate(x["spans"]):
        for s in range(first, end):
            ratio, advantage = np.exp(
                x["logp"][row, s] - x["logp_old"][row, s]), x["advantages"][row, s]
            pg -= min(ratio * advantage, np.clip(ratio, .8, 1.2) * advantage)
            v, old, target = (x[name][row, s] for name in ("values", "values_old", "returns"))
            vf += .5 * max((v - target) ** 2, (old + np.clip(v - old, -.2, .2) - target) ** 2)
            n += 1
    assert (ppo.policy_loss(t["logp"], t["logp_old"], t["advantages"], t["mask"], .2).item()
            == pytest.approx(pg / n))
    assert (ppo.value_loss(t["values"], t["values_old"], t["returns"], t["mask"], .2).item()
            == pytest.approx(vf / n))


def test_whitening_by_numpy(rollout):
    x, t = rollout
    inside = x["advantages"][x["mask"]]
    white = ppo.whiten(t["advantages"], t["mask"]).numpy()[x["mask"]]
    np.testing.assert_allclose(white, (inside - inside.mean()) / inside.std(), rtol=1e-6)


def test_the_ranking_loss_by_the_paper():
    """Ouyang et al. 2022, eq. 1: the mean over prompts of the mean over pairs; ties and missing
    answers make no pair."""
    rng = np.random.default_rng(1)
    scores, ranks = rng.normal(size=(5, 4)), np.array([[1, 2, 3, 4], [2, 1, 2, 3], [1, 1, 1, 1],
                                                       [3, 1, 2, 0], [1, 2, 0, 0]])
    means = []
    for r, k in zip(scores, ranks):
        pairs = [np.log1p(np.exp(-(r[w] - r[l]))) for w in range(4) for l in range(4)
                 if 0 < k[w] < k[l]]
        means += [np.mean(pairs)] if pairs else []
    assert (reward.ranking_loss(torch.tensor(scores), torch.tensor(ranks)).item()
            == pytest.approx(np.mean(means)))


def test_the_sft_loss_by_its_formula(model):
    """The mean over all response tokens of a batch, not the mean of the answers' means."""
    batch = [([1, 2, 3, 4, 38], 2), ([5, 6, 38], 1), ([7, 8, 9, 10, 11, 12, 38], 6)]
    nll = []
    for ids, n in batch:
        logits = model(torch.tensor([ids])).detach().numpy()[0, :, :-1]  # without <|pad|>
        nll += [np.log(np.exp(logits[t - 1]).sum()) - logits[t - 1, ids[t]]
                for t in range(n, len(ids))]
    assert sft.sft_loss(model, batch, "cpu").item() == pytest.approx(np.mean(nll))
    assert sft.response_tokens(batch) == len(nll) == 6
