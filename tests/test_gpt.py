"""The model, sampling, log-probabilities and checkpoints."""

import math
from unittest import mock

import pytest
import torch

import gpt
from data import optim
from data import sampling
from data.world import almanac
from data.run.system import UserError
from data.tokenizer import Tokenizer, train


def test_attention_equals_a_loop_over_rows_heads_and_positions(config):
    attention = gpt.Attention(config).double().requires_grad_(False)
    x = torch.randn(2, 5, config.n_embd, dtype=torch.float64)
    q, k, v = (x @ attention.c_attn.weight.T + attention.c_attn.bias).split(config.n_embd, dim=-1)
    size = config.n_embd // config.n_head
    y = torch.zeros_like(x)
    for b in range(2):
        for h in range(config.n_head):
            part = slice(h * size, (h + 1) * size)
            for t in range(5):
                weights = [math.exp(q[b, t, part] @ k[b, s, part] / math.sqrt(size))
                           for s in range(t + 1)]
                for s, w in enumerate(weights):
                    y[b, t, part] += w / sum(weights) * v[b, s, part]
    expected = y @ attention.c_proj.weight.T + attention.c_proj.bias
    torch.testing.assert_close(attention(x), expected, rtol=1e-10, atol=1e-10)


def test_the_future_does_not_change_the_past(model):
    idx = torch.randint(36, (3, 10))
    changed = idx.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 36
    a, b = model(idx), model(changed)
    assert torch.equal(a[:, :6], b[:, :6]) and not torch.allclose(a[:, 6:], b[:, 6:])


def test_law_04_padding_changes_no_logprob_value_or_score(model, scalar):
    rows = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 10, 11, 12, 13, 14, 15]]
    idx, lengths = gpt.pad(rows, model.config.pad)
    wide, _ = gpt.pad(rows + [[1] * 20], model.config.pad)
    for i, row in enumerate(rows):
        alone = torch.tensor([row])
        n = len(row)
        logp = gpt.token_logprobs(model, alone)[0]
        torch.testing.assert_close(gpt.token_logprobs(model, idx)[i, :n - 1], logp, rtol=1e-9,
                                   atol=1e-9)
        torch.testing.assert_close(gpt.token_logprobs(model, wide)[i, :n - 1], logp, rtol=1e-9,
                                   atol=1e-9)
        torch.testing.assert_close(scalar(wide)[i, :n], scalar(alone)[0], rtol=1e-9, atol=1e-9)
        score = scalar.score(idx, lengths)[i]
        torch.testing.assert_close(score, scalar(alone)[0, -1], rtol=1e-9, atol=1e-9)


def test_logprobs_are_a_log_softmax_without_pad_shifted_by_one(model):
    idx, temperature = torch.randint(36, (2, 6)), .7
    logits = model(idx) / temperature
    logits[..., model.config.pad] = -torch.inf
    expected = logits.log_softmax(-1)[:, :-1].gather(2, idx[:, 1:, None])[..., 0]
    torch.testing.assert_close(gpt.token_logprobs(model, idx, temperature), expected)
    mask = torch.rand(2, 5) < .5
    torch.testing.assert_close(gpt.token_logprobs(model, idx, temperature, mask), expected * mask)


def test_logprobs_in_chunks_are_the_same_and_so_is_their_gradient(model, monkeypatch):
    """A large vocabulary's logits are never in memory all at once."""
    idx, found = torch.randint(36, (4, 9)), []
    for at_once in (1000, 5):
        monkeypatch.setattr(gpt, "rows_at_once", lambda config, tokens: at_once)
        model.zero_grad()
        logp = gpt.token_logprobs(model, idx, .7)
        (logp * torch.arange(8)).sum().backward()
        found.append([logp.detach(), *(p.grad.clone() for p in model.parameters())])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_response_mask_marks_the_actions_that_write_the_response():
    # Row 0: prompt of 2, response of 3; row 1: prompt of 4, response of 1.
    mask = gpt.response_mask(torch.tensor([2, 4]), torch.tensor([5, 5]), 6)
    assert mask.int().tolist() == [[0, 1, 1, 1, 0], [0, 0, 0, 1, 0]]


def test_masked_mean_divides_by_the_whole_count():
    x, mask = torch.tensor([[1., 2.], [3., 100.]]), torch.tensor([[True, True], [True, False]])
    assert gpt.masked_mean(x, mask) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0, .6])
@pytest.mark.parametrize("copies", [1, 3])
def test_law_05_the_cache_writes_the_same_tokens_as_plain_generation(model, temperature, copies):
    model.wte.weight.data[model.config.end] += .2  # rows of different lengths
    idx, lengths = gpt.pad([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12], list(range(22))],
                           model.config.pad)
    noise = torch.rand(5 * copies, 12, dtype=torch.float64)
    fast, fast_lengths = sampling.generate(model, idx, lengths, 12, temperature, copies, noise)
    plain, plain_lengths = gpt.generate(model, idx.repeat_interleave(copies, 0),
                                        lengths.repeat_interleave(copies), 12, temperature, noise)
    assert torch.equal(fast_lengths, plain_lengths) and len(set(fast_lengths.tolist())) > 2
    assert torch.equal(fast[:, :plain.shape[1]], plain)


def test_law_05_a_gpus_attention_of_cached_keys_writes_the_same_tokens(model, monkeypatch):
    model.wte.weight.data[model.config.end] += .2
    idx, lengths = gpt.pad([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12]], model.config.pad)
    noise, made = torch.rand(4, 12, dtype=torch.float64), sampling.KVCache.__init__
    plain = sampling.generate(model, idx, lengths, 12, .7, noise=noise)

    def on_gpu(cache, *args):
        made(cache, *args)
        cache.fused = True

    monkeypatch.setattr(sampling.KVCache, "__init__", on_gpu)
    fused = sampling.generate(model, idx, lengths, 12, .7, noise=noise)
    assert all(torch.equal(a, b) for a, b in zip(plain, fused))


@pytest.mark.parametrize("temperature", [0.0, 1.0, .6])
def test_law_05_cached_sampling_equals_full_forward_passes(model, temperature):
    """Replay every sampled token against a full forward pass: same greedy choice, same random
    choice from the same noise."""
    idx, lengths = gpt.pad([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12]], model.config.pad)
    noise = torch.rand(4, 12, dtype=torch.float64)
    answers, after = sampling.generate(model, idx, lengths, 12, temperature, noise=noise)
    rows = [r[:n].tolist() for r, n in zip(idx, lengths)]
    for row, numbers in zip(rows, noise.tolist()):
        while numbers and row[-1] != model.config.end and len(row) < model.config.block_size:
            logits, u = gpt.action_logits(model, model.hidden(torch.tensor([row]))[0, -1],
                                          temperature or 1.0), numbers.pop(0)
            below = 0.0
            for token, p in enumerate(logits.softmax(-1).tolist()):
                below += p
                if below > u:
                    break
            row.append(token if temperature else int(logits.argmax()))
    assert [r[:n].tolist() for r, n in zip(answers, after)] == rows


@pytest.mark.parametrize("generate", [gpt.generate, sampling.generate])
def test_generation_stops_at_the_end_token_and_never_writes_pad(model, generate):
    model.wte.weight.data[model.config.end] += .3
    idx, lengths = gpt.pad([[1, 2, 3]] * 200, model.config.pad)
    answers, after = generate(model, idx, lengths, 10)
    ended = 0
    for row, n in zip(answers.tolist(), after.tolist()):
        assert model.config.pad not in row[:n] and set(row[n:]) <= {model.config.pad}
        assert model.config.end not in row[3:n - 1]
        ended += row[n - 1] == model.config.end
        assert row[n - 1] == model.config.end or n == 13
    assert ended > 0


@pytest.mark.parametrize("generate", [gpt.generate, sampling.generate])
def test_generation_stops_when_the_context_is_full(model, generate):
    idx, lengths = gpt.pad([list(range(20)), [1, 2], list(range(24)), [3], [4], [5]],
                           model.config.pad)
    model.wte.weight.data[model.config.end] = 0
    answers, after = generate(model, idx, lengths, 50)
    assert answers.shape[1] <= model.config.block_size and after[2] == 24 and int(after.max()) == 24


def test_law_14_sampled_frequencies_match_the_scored_probabilities(model):
    idx, lengths = gpt.pad([[1, 2, 3]] * 20000, model.config.pad)
    answers, _ = gpt.generate(model, idx, lengths, 1, temperature=1.5)
    counts = torch.bincount(answers[:, 3], minlength=40) / 20000
    probabilities = gpt.action_logits(model, model.hidden(idx[:1])[0, -1], 1.5).softmax(-1)
    assert (counts - probabilities).abs().max() < .015 and counts[model.config.pad] == 0


def test_checkpoints_come_back_as_they_were(tmp_path, config):
    tokenizer = Tokenizer(train(["abc abd"], 262))
    config.vocab_size = tokenizer.vocab_size
    for kind in (gpt.GPT, gpt.ScalarGPT):
        model = kind(config)
        gpt.save(tmp_path / "ckpt.pt", model, tokenizer, stage="test")
        loaded, same, about = gpt.load(tmp_path / "ckpt.pt", kind)
        assert same == tokenizer and about == {"stage": "test"} and loaded.config == model.config
        assert all(torch.equal(a, b) for a,
                   b in zip(model.state_dict().values(), loaded.state_dict().values()))


def test_bad_checkpoints_are_one_sentence(tmp_path, config):
    path = tmp_path / "ckpt.pt"
    with pytest.raises(UserError, match="not found: run python gpt.py first"):
        gpt.load(path, hint="run python gpt.py first")
    tokenizer = Tokenizer(train(["abc"], 260))
    gpt.save(path, gpt.GPT(gpt.GPTConfig(260, 8, 1, 1, 8)), tokenizer)
    good = path.read_bytes()
    for content in (b"", b".", b"q", b"no checkpoint", good[:len(good) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a checkpoint that can be read"):
            gpt.load(path)
    gpt.save(path, gpt.GPT(config), tokenizer)  # 40 tokens in the model, 260 in the tokenizer
    with pytest.raises(UserError, match="the tokenizer has 260 tokens, the model 40"):
        gpt.load(path)
    path.write_bytes(good)
    with pytest.raises(UserError, match="holds a GPT, but a ScalarGPT is needed"):
        gpt.load(path, gpt.ScalarGPT)


def test_only_matrices_decay(model):
    decaying, others = optim.adamw(model, 1e-3, weight_decay=.1).param_groups
    assert decaying["weight_decay"] == .1 and all(p.dim() == 2 for p in decaying["params"])
    assert others["weight_decay"] == 0 and all(p.dim() == 1 for p in others["params"])
    assert len(decaying["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_orthogonal_keeps_singular_vectors_and_brings_their_values_near_1():
    torch.manual_seed(0)
    for shape in (12, 30), (30, 12):
        x = torch.randn(shape, dtype=torch.float64)
        u, s, v = torch.linalg.svd(x, full_matrices=False)
        core = u.T @ optim.orthogonal(x) @ v.T
        assert (core - torch.diag(core.diag())).abs().max() < 1e-12
        assert s.min() < .5 * s.max() and core.diag().min() > .6 and core.diag().max() < 1.25


def test_orthogonal_keeps_small_directions_in_fp32():
    """A gradient of nearly rank 1: its Gram matrix holds the squares of what is small."""
    torch.manual_seed(0)
    x = torch.randn(12, 1) @ torch.randn(1, 48) + .02 * torch.randn(12, 48)
    exact = optim.orthogonal(x.double())
    assert (optim.orthogonal(x) - exact).norm() < 2e-3 * exact.norm()
    seen, product = [], torch.Tensor.__matmul__
    torch.set_float32_matmul_precision("high")
    try:
        with mock.patch.object(torch.Tensor, "__matmul__", lambda a, b: seen.append(
                torch.get_float32_matmul_precision()) or product(a, b)):
            optim.orthogonal(x)
        assert set(seen) == {"highest"} and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    rates = [optim.learning_rate(step, 100, 1.0, warmup=10, floor=.1) for step in range(100)]
    assert rates[0] == .1 and rates[9] == 1 and rates[10] == 1
    assert rates[55] == pytest.approx(.55) and rates[99] == pytest.approx(.1, abs=.01)


def test_batches_go_through_all_examples_once_an_epoch():
    examples = [[0] * n for n in range(1, 101)]
    for length in (None, len):
        supply = gpt.batches(examples, 10, 0, length=length)
        both = [next(supply) for _ in range(20)]
        for epoch in both[:10], both[10:]:
            assert sorted(len(e) for b in epoch for e in b) == list(range(1, 101))
        assert both[:10] != both[10:]
        later = gpt.batches(examples, 10, 0, first=13, length=length)
        assert [next(later) for _ in range(7)] == both[13:]  # batch n follows from n


def test_a_tiny_model_learns_the_almanac_by_heart():
    """The loss on a few documents falls to almost nothing: model, loss and optimiser fit
    together."""
    documents = almanac.text(4, 0)
    tokenizer = Tokenizer(train(documents, 300))
    rows = [tokenizer.encode(d)[:48] + [tokenizer.end] for d in documents]
    model = gpt.GPT(gpt.GPTConfig(tokenizer.vocab_size, 64, 2, 2, 32))
    opt = optim.adamw(model, 1e-2)
    idx, lengths = gpt.pad(rows, tokenizer.pad)
    mask = gpt.response_mask(torch.ones_like(lengths), lengths, idx.shape[1])
    for _ in range(150):
        loss = -gpt.masked_mean(gpt.token_logprobs(model, idx, mask=mask), mask)
        loss.backward()
        optim.optimizer_step(model, opt, 1e-2)
    assert loss.item() < .1


def test_a_step_is_taken_along_the_clipped_gradient_of_this_loss_alone(model):
    """Against plain gradient descent: twice the same large loss, each step of length lr * clip."""
    opt = torch.optim.SGD(model.parameters(), 1.0)
    for _ in range(2):
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        (1e3 * model(torch.tensor([[1, 2, 3]])).square().mean()).backward()
        norm = optim.optimizer_step(model, opt, lr=.01, clip=.5)
        step = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
        assert norm > .5 and step.norm().item() == pytest.approx(.01 * .5, rel=1e-3)
