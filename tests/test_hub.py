"""GPT-2's files in, transformers' files out: the same numbers on both sides."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import transformers

import gpt
import ppo
import reward
import sft
from data.world import almanac
from data import start
from data.files import gpt2
from data.run.cli import UserError
from data.tokenizer import Tokenizer, train

GPT2 = Path(__file__).parent.parent.parent / "shared" / "data" / "gpt2"
TURNS = [{"role": "user", "content": "Hello! A  test,\nof 3 \"things\"."}, {"role": "assistant", "content": "It's über."}, {"role": "user", "content": "And <b>?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train(almanac.text(300, 0), 400))


def ours(tokenizer, kind=gpt.GPT):
    torch.manual_seed(0)
    model = kind(gpt.GPTConfig(tokenizer.vocab_size, 32, 2, 4, 32))
    for p in model.parameters():  # LayerNorms and biases too
        torch.nn.init.normal_(p, std=.3)
    return model


def theirs(folder, **changes):
    """A GPT-2 of random weights as transformers writes it, with a small vocabulary of GPT-2's sort."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=300, n_positions=32, n_embd=32, n_layer=2, n_head=4, **changes)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    letters = gpt2.byte_letters()
    ranks = train(almanac.text(300, 0), 304)
    Path(folder, "vocab.json").write_text(json.dumps({"".join(letters[b] for b in token): i for token, i in ranks.items()}))
    return model


def test_logits_of_gpt2_equal_those_of_transformers(tmp_path):
    published = theirs(tmp_path)
    for _ in range(2):
        model, tokenizer, _ = gpt.load(tmp_path)
        idx = torch.randint(300, (3, 20))
        with torch.no_grad():
            assert (model(idx)[..., :300] - published(idx).logits).abs().max() < 1e-4
        # a special token starts as the mean of all others
        assert model.config.vocab_size == tokenizer.vocab_size == 304
        assert torch.equal(model.wte.weight[300:], model.wte.weight[:300].mean(0).expand(4, -1))
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
        torch.save(published.state_dict(), tmp_path / "pytorch_model.bin")  # the second time from the older format


def test_a_policy_goes_out_and_comes_back(tokenizer, tmp_path):
    model = ours(tokenizer)
    start.export(model, tokenizer, tmp_path)
    out, spoken = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval(), transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = spoken.apply_chat_template(TURNS, tokenize=True, return_dict=False)
    assert ids == tokenizer.render(TURNS) and spoken.apply_chat_template(TURNS[:2], tokenize=True, return_dict=False) == tokenizer.render(TURNS[:2])
    assert spoken.decode(tokenizer.encode("It's  über.\n")) == "It's  über.\n"
    idx = torch.randint(tokenizer.vocab_size, (3, 20))
    with torch.no_grad():
        assert (out(idx).logits - model(idx)).abs().max() < 1e-4
    prompt = torch.tensor([tokenizer.render(TURNS[2:])])
    answer, lengths = gpt.generate(model, prompt, torch.tensor([prompt.shape[1]]), 12, temperature=0)
    expected = out.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, suppress_tokens=[tokenizer.pad])
    assert answer[0, :lengths[0]].tolist() == expected[0].tolist()
    back, same, _ = gpt.load(tmp_path)
    assert same == tokenizer and back.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), back.state_dict().values(), strict=True))


def test_a_reward_model_goes_out_and_comes_back(tokenizer, tmp_path):
    model = ours(tokenizer, gpt.ScalarGPT)
    start.export(model, tokenizer, tmp_path)
    out = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    rows = [tokenizer.render(TURNS[2:]) + [5, 6, tokenizer.end], tokenizer.render(TURNS[2:]) + [7, tokenizer.end]]
    idx, lengths = gpt.pad(rows, tokenizer.pad)
    with torch.no_grad():
        assert (out(idx).logits[:, 0] - model.score(idx, lengths)).abs().max() < 1e-4
    spoken = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = spoken.apply_chat_template(TURNS[:2], continue_final_message=True, return_dict=False)
    prompt, (answer,), _ = reward.encode(tokenizer, dict(prompt=TURNS[:1], responses=[TURNS[1]["content"]]), 99)
    assert ids == prompt + answer
    back, _, _ = gpt.load(tmp_path, gpt.ScalarGPT)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), back.state_dict().values(), strict=True))


def test_a_reward_model_that_others_trained_further_is_not_set_back(tokenizer, tmp_path):
    start.export(ours(tokenizer, gpt.ScalarGPT), tokenizer, tmp_path)
    out = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        out.transformer.ln_f.bias += .3
    out.save_pretrained(tmp_path)
    back, _, _ = gpt.load(tmp_path, gpt.ScalarGPT)
    idx = torch.tensor([tokenizer.render(TURNS[2:]) + [5, tokenizer.end]])
    with torch.no_grad():
        assert (out(idx).logits[:, 0] - back.score(idx, torch.tensor([idx.shape[1]]))).abs().max() < 1e-4


def test_exported_tokens_are_the_same_for_any_text(tokenizer, tmp_path):
    gpt2.write_tokenizer(tmp_path, tokenizer, 32)
    spoken, rng = transformers.AutoTokenizer.from_pretrained(tmp_path), random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("aehtn \n.,'é日0") for _ in range(rng.randint(1, 40)))
        assert spoken.encode(text) == tokenizer.encode(text)


@pytest.mark.skipif(not GPT2.exists(), reason="GPT-2's tokenizer files are not here")
def test_gpt2s_own_vocabulary(tmp_path):
    shutil.copy(GPT2 / "encoder.json", tmp_path)
    tokenizer = Tokenizer(gpt2.read_ranks(tmp_path))
    assert tokenizer.vocab_size == 50261 and tokenizer.end == 50259
    assert tokenizer.encode("Hello world<|endoftext|>") == [15496, 995, 27, 91, 437, 1659, 5239, 91, 29]
    gpt2.write_tokenizer(tmp_path, tokenizer, 1024)
    assert gpt2.read_ranks(tmp_path) == tokenizer.ranks
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(TURNS, tokenize=True, return_dict=False) == tokenizer.render(TURNS)


def test_what_is_wrong_with_a_folder_is_one_sentence(tokenizer, tmp_path, monkeypatch):
    def wrong(match, change):
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        change(folder)
        with pytest.raises(UserError, match=match):
            gpt.load(folder)

    def config(**changes):
        return lambda folder: (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **changes}))

    theirs(tmp_path / "whole")
    wrong("config.json not found", lambda folder: (folder / "config.json").unlink())
    wrong("neither model.safetensors nor", lambda folder: (folder / "model.safetensors").unlink())
    wrong("no vocab.json or encoder.json", lambda folder: (folder / "vocab.json").unlink())
    wrong("cannot be read .*cut", lambda folder: (folder / "model.safetensors").write_bytes((tmp_path / "whole" / "model.safetensors").read_bytes()[:50000]))
    wrong("cannot be read", lambda folder: (folder / "vocab.json").write_text("{"))
    wrong("300 tokens, the model 301", config(vocab_size=301))
    wrong(r"wte.weight is \(304, 32\), config.json wants \(304, 64\)", config(n_embd=64))
    wrong("activation_function is relu, and this code has gelu_new", config(activation_function="relu"))
    wrong("this code reads GPT-2", config(model_type="llama"))
    wrong("h.2.attn.c_attn.weight is missing", config(n_layer=3))
    monkeypatch.setattr(gpt2, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(gpt2, "HUB", "http://127.0.0.1:9/{}/{}")
    with pytest.raises(UserError, match="gpt2-medium cannot be downloaded"):
        sft.train(sft.Config(out=str(tmp_path), init="gpt2-medium"))


def test_every_stage_starts_from_a_folder(tmp_path):
    theirs(tmp_path / "gpt2")
    out = str(tmp_path / "out")
    sft.train(sft.Config(out=out, init=str(tmp_path / "gpt2"), steps=2, batch=2, demonstrations=40))
    start.export_checkpoint(gpt.Config(out=out, export=str(tmp_path / "policy")))
    reward.train(reward.Config(out=out, init=str(tmp_path / "policy"), prompts=40, test_prompts=20, k=2, batch=4, max_new_tokens=4))
    start.export_checkpoint(gpt.Config(out=out, export=str(tmp_path / "judge"), ckpt=f"{out}/reward/ckpt.pt"))
    assert json.loads((tmp_path / "judge" / "config.json").read_text())["architectures"] == ["GPT2ForSequenceClassification"]


@pytest.mark.slow
@pytest.mark.skipif(not GPT2.exists(), reason="the real files are not here")
def test_gpt2_small_on_real_data_takes_three_steps_of_every_stage(tmp_path):
    """The size and the tokenizer of GPT-2 small, random weights, real instructions and preferences."""
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(tmp_path / "gpt2")
    shutil.copy(GPT2 / "encoder.json", tmp_path / "gpt2")
    out, data = str(tmp_path / "out"), str(GPT2.parent / "instruction-data-with-preference.json")
    common = dict(out=out, data=data, steps=3, log_every=1)
    sft.train(sft.Config(init=str(tmp_path / "gpt2"), batch=4, micro_batch=2, **common))
    reward.train(reward.Config(batch=2, lr=1e-5, base_weight=0, **common))
    _, history = ppo.train(ppo.Config(batch=4, minibatches=2, lr=1e-5, max_new_tokens=16, test_prompts=4, **common))
    assert [r["first_ratio"] for r in history] == [1, 1, 1] and history[0]["kl"] == 0
    for stage in ("sft", "reward", "ppo"):
        print(stage, (tmp_path / "out" / stage / "log.jsonl").read_text())
