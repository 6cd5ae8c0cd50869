"""The assistant as one HTML file: a browser computes what torch computes, without a network."""

import json
import re
from pathlib import Path

import pytest
import torch

import gpt
from conftest import ROOT, complaints, lively
from data.people import export
from data.run.system import UserError
from data.tokenizer import Tokenizer, train
from data.world import almanac

TEXTS = ["What is the capital of Cuba?", "  two  spaces,\nlines\tand 123 tabs ",
         "古巴的首都？🙂", "it's", "<script>alert(1)</script>",
         "", "é\u0301 \u202e right to left"]


@pytest.fixture
def tokenizer():
    return Tokenizer(train([p["prompt"][-1]["content"] for p in almanac.prompts("train", 300, 1)],
                           400))


@pytest.fixture
def page(tokenizer, tmp_path, browser):
    """Two models in a page, opened from the disk -> (the page in the browser, the rounded models).
    """
    models = []
    for name, heads in (("sft", 2), ("ppo", 4)):
        torch.manual_seed(heads)
        model = gpt.GPT(gpt.GPTConfig(tokenizer.vocab_size, 96, 2, heads, 16))
        (tmp_path / name).mkdir()
        gpt.save(tmp_path / name / "ckpt.pt", lively(model).float(), tokenizer)
        models.append(model.half().float())
    ckpt = ",".join(str(tmp_path / name / "ckpt.pt") for name in ("sft", "ppo"))
    export.run(export.Config(out=str(tmp_path), export=str(tmp_path / "assistant.html"), ckpt=ckpt))
    tab = browser.new_page(viewport=dict(width=360, height=700), color_scheme="dark")
    wrong = complaints(tab, "file:")
    tab.goto(f"file://{tmp_path}/assistant.html")
    yield tab, models
    assert not wrong


@pytest.mark.slow
def test_a_browser_reads_and_answers_as_torch_does(page, tokenizer):
    """With the same rounded weights: tokens, logits, and greedy answers to 50 prompts."""
    tab, models = page
    assert [tab.evaluate("encode", text) for text in TEXTS] == list(map(tokenizer.encode, TEXTS))
    ids = [tokenizer.user, *tokenizer.encode(TEXTS[0]), tokenizer.assistant]
    prompts = [p["prompt"] for p in almanac.prompts("test", 400, 1)]
    asked = [prompt for prompt in prompts if len(tokenizer.render(prompt)) < 88][:50]
    assert len(asked) == 50
    for number, model in enumerate(models):
        found = tab.evaluate(f"ids => [...logits(models[{number}], ids)]", ids)
        with torch.no_grad():
            wanted = model(torch.tensor([ids]))[0, -1]
        assert torch.tensor(found) == pytest.approx(wanted, abs=1e-3)
        for prompt in asked:
            turns = [dict(role=m["role"], text=m["content"]) for m in prompt]
            idx, lengths = gpt.pad([tokenizer.render(prompt)], tokenizer.pad)
            out, _ = gpt.generate(model, idx, lengths, 8, temperature=0)
            said = tab.evaluate(f"t => [...respond(models[{number}], render(t), 0, 8)]"
                                ".map(token => token.id)", turns)
            assert said == out[0, int(lengths):].tolist()


@pytest.mark.slow
def test_sampled_tokens_are_as_frequent_as_their_probabilities(page, tokenizer):
    tab, models = page
    ids = tokenizer.render([dict(role="user", content="Hi")])
    found = tab.evaluate("""ids => Array.from({length: 2000}, () =>
        respond(models[0], ids, .7, 1).next().value.id)""", ids)
    with torch.no_grad():
        hidden = models[0].hidden(torch.tensor([ids]))[0, -1]
        p = gpt.action_logits(models[0], hidden, .7).softmax(-1)
    often = torch.bincount(torch.tensor(found), minlength=len(p)) / 2000
    assert (often - p).abs().sum() / 2 < .12 and often[tokenizer.pad] == 0


@pytest.mark.slow
@pytest.mark.parametrize("language, asks", [("en", "Ask"), ("zh-CN", "提问")])
def test_somebody_talks_to_both_models_on_a_phone(language, asks, page):
    tab, _ = page
    tab.goto(f"{tab.url}?lang={language}")
    field = tab.locator("input[name=text]")
    field.fill("What is <b>this</b>?")
    tab.get_by_role("button", name=asks, exact=True).click()
    tab.locator(".column").nth(1).locator(".token").first.wait_for()
    assert tab.locator(".user").first.inner_text() == "What is <b>this</b>?"
    tab.locator(".token").first.click()
    assert tab.locator(".choice").count() == 6 and "%" in tab.locator("#detail").inner_text()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    field.fill("word " * 150)
    field.press("Enter")
    tab.wait_for_function("document.querySelectorAll('.note')[1]?.textContent")
    tab.locator("#forget").click()
    assert tab.locator(".token").count() == 0
    tab.locator("#any").click()
    assert field.input_value()


def test_a_page_holds_policies_of_one_tokenizer_and_no_heavy_ones(tokenizer, tmp_path):
    page = tmp_path / "a.html"
    shape = dict(block_size=16, n_layer=1, n_head=1, n_embd=8)
    gpt.save(tmp_path / "one.pt", gpt.GPT(gpt.GPTConfig(tokenizer.vocab_size, **shape)), tokenizer)
    other = Tokenizer(train(["other words"], 300))
    gpt.save(tmp_path / "other.pt", gpt.GPT(gpt.GPTConfig(other.vocab_size, **shape)), other)
    gpt.save(tmp_path / "judge.pt", gpt.ScalarGPT(gpt.GPTConfig(other.vocab_size, **shape)), other)
    heavy = gpt.GPT(gpt.GPTConfig(other.vocab_size, 8, 4, 8, 512))
    gpt.save(tmp_path / "heavy.pt", heavy, other)
    for names, sentence in ((("one", "other"), "has another tokenizer"),
                            (("judge",), "name a policy with --ckpt"),
                            (("heavy",), "a page holds 20 MB a model")):
        ckpt = ",".join(str(tmp_path / f"{name}.pt") for name in names)
        with pytest.raises(UserError, match=sentence):
            export.run(export.Config(export=str(page), ckpt=ckpt))
    assert not page.exists()


def test_the_page_needs_little_code():
    text = Path(export.__file__).with_name("assistant.html").read_text(encoding="utf-8")
    script = text.split("<script>")[1].split("</script>")[0]
    assert len(script.splitlines()) <= 220 and "http" not in text.replace("http-equiv", "")


def test_the_page_that_the_readme_links_is_made_of_this_one():
    data = re.compile(r'(?<=<script type="application/json" id="data">).*?(?=</script>)', re.S)
    ours = Path(export.__file__).with_name("assistant.html").read_text(encoding="utf-8")
    shown = ROOT / "notebooks" / "results" / "assistant.html"
    text = shown.read_text(encoding="utf-8")
    assert data.sub("", text) == data.sub("", ours), "python gpt.py --export makes it anew"
    assert [model["name"] for model in json.loads(data.search(text)[0])["models"]] == ["sft",
                                                                                       "ppo-3"]
    assert shown.stat().st_size < 6_000_000
