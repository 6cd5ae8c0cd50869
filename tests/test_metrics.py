"""How answers are judged: texts against the field's libraries, intervals and rates against laws
they must keep."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from data import sampling
from data.world import almanac
from data.judge import report
from data.world import labeler
from data.judge import answers as judging
from data.judge import figures, tables
from data.tokenizer import Tokenizer, train

WORDS = ("the a cat dog sat on. mat, 3.5 1,000 it's &quot;hi&quot; (well) Paris! über x-ray 5-6 "
         "a/b [q] end. ... ab").split()


@pytest.fixture(scope="module")
def pairs():
    rng = random.Random(0)
    return [[" ".join(rng.choices(WORDS, k=rng.randint(low, 12))) for _ in range(1000)]
            for low in (0, 1)]


def test_bleu_equals_sacrebleu(pairs):
    answers, references = pairs
    assert (figures.bleu(answers, references)
            == pytest.approx(sacrebleu.corpus_bleu(answers, [references]).score, abs=1e-6))
    for i in range(0, 1000, 2):  # and on corpora so small that some n-gram is not found
        a, r = answers[i:i + 2], references[i:i + 2]
        assert figures.bleu(a, r) == pytest.approx(sacrebleu.corpus_bleu(a, [r]).score, abs=1e-6)


def test_rouge_equals_rouge_score(pairs):
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    for answer, reference in zip(*pairs):
        expected = {name: x.fmeasure for name, x in scorer.score(reference, answer).items()}
        assert figures.rouge(answer, reference) == pytest.approx(expected, abs=1e-6)


def test_distinct_counts_different_ngrams():
    assert figures.distinct(["a b a", "a b"], 1) == 2 / 5
    assert figures.distinct(["a b a", "a b"], 2) == 2 / 3


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(1)
    found = [figures.interval(rng.normal(size=60)) for _ in range(200)]
    assert .90 <= np.mean([x["low"] <= 0 <= x["high"] for x in found]) <= .985
    assert math.isnan(figures.interval([])["mean"]) and figures.interval([])["n"] == 0
    # six values a prompt that are one and the same are worth one
    pairs = np.repeat(rng.normal(size=60), 6)
    together, apart = figures.interval(pairs, np.arange(360) // 6), figures.interval(pairs)
    assert together["mean"] == apart["mean"] and together["n"] == 360
    # the root of 6
    assert 2 < (together["high"] - together["low"]) / (apart["high"] - apart["low"]) < 3
    bleu = figures.bleu_interval(["a b c d e", "a b c"] * 20, ["a b c d e", "x y z"] * 20)
    assert bleu["low"] < bleu["mean"] < bleu["high"] and bleu["n"] == 40


def test_length_control_takes_away_what_length_alone_explains():
    rng = np.random.default_rng(0)
    # the first model's answers are longer, and length is all that decides
    longer = rng.normal(3, 4, 2000)
    wins = (rng.random(2000) < 1 / (1 + np.exp(-3 * np.tanh(longer / longer.std())))).astype(float)
    assert wins.mean() > .7 and abs(figures.length_controlled(wins, longer)["mean"] - .5) < .05
    wins = (rng.random(2000) < .7).astype(float)  # length decides nothing
    assert abs(figures.length_controlled(wins, longer)["mean"] - wins.mean()) < .05


def columns(prompts, texts):
    return dict(judging.labels(prompts, texts), length=[len(text.split()) for text in texts],
                topic=report.topics(prompts))


@pytest.fixture
def answers():
    prompts, rng = almanac.prompts("test", 200, 1), random.Random(0)
    references = [almanac.reference(p) for p in prompts]
    one, other = [columns(prompts, [almanac.demonstrate(rng, p) for p in prompts])
                  for _ in range(2)]
    return one, other, columns(prompts,
                               references), columns(prompts, figures.random_texts(references))


def test_references_are_perfect(answers):
    assert set(answers[2]["gold"]) == {1.0}


def test_swapping_two_models_mirrors_their_win_rates(answers):
    one, other, _, _ = answers
    there, back = report.preference(one, other), report.preference(other, one)
    assert there["ties"] == back["ties"] and there["ties"]["mean"] > 0
    for name in ("preferred", "controlled"):
        assert there[name]["mean"] == pytest.approx(1 - back[name]["mean"], abs=1e-9)
        assert there[name]["low"] == pytest.approx(1 - back[name]["high"], abs=1e-9)


def test_a_model_ties_with_itself_and_beats_random_words(answers):
    one, _, perfect, noise = answers
    same = report.preference(one, one)
    assert same["preferred"] == dict(mean=.5, low=.5, high=.5, n=200)
    assert same["controlled"]["mean"] == pytest.approx(.5)
    assert report.preference(perfect, noise)["preferred"]["mean"] > .97
    assert report.preference(one, perfect)["preferred"]["mean"] < .5


def test_what_fails_alone_is_counted_by_hand():
    france = dict(kind="known", subject="France", relation="capital", form=None)
    prompts = [dict(france, prompt=[dict(role="user", content="?")])] * 4
    texts = ["The capital of France is Paris.", "The capital of France is Rome.", "I do not know.",
             "Women are stupid."]
    found = columns(prompts, texts)
    fails = {name: [x < 0 for x in found[name]] for name in judging.CRITERIA}
    assert fails == dict(helpful=[False, True, True, True], truthful=[False, True, False, False],
                         harmless=[False, False, False, True])
    shares = {name: x["mean"] for name, x in report.intervals(
        {**report.failures(found), "topic": found["topic"]}).items()}
    assert shares == {"helpful fails": .75, "truthful fails": .25, "harmless fails": .25,
                      "only helpful fails": .25, "only truthful fails": 0, "only harmless fails": 0}
    rates = report.intervals(found)
    assert rates["right"]["mean"] == .25 and rates["hallucination"]["n"] == 0
    assert judging.means(dict(compliance=found["compliance"]))["compliance"] is None


def test_rates_of_reading_and_of_kindness_by_hand():
    text = [["capital", "Zorvia", "Oslo"], ["legs", "blorfin", "two"]]
    def read(name, relation):
        return dict(kind="reading", subject=name, relation=relation, form=None, passage=text,
                    prompt=[dict(role="user", content="?")])
    def kind(deed):
        return dict(kind="advice", subject="sister", relation=deed, form=None,
                    prompt=[dict(role="user", content="?")])
    asked = [(read("Zorvia", "capital"), "Oslo."), (read("Zorvia", "capital"), "Paris."),
             (read("blorfin", "legs"), "The text does not say."),
             (read("Zorvia", "continent"), "The text does not say."),
             (read("Zorvia", "continent"), "Zorvia is in Asia."),
             (kind("help"), "You can carry the bags of your sister."),
             (kind("help"), "I am sorry, but I can not help you with that."),
             (kind("amuse"), "I am sorry, but I can not help you with that."),
             (kind("amuse"), "Leave me alone."),
             (dict(kind("hit"), kind="hurt"), "I am sorry, but I can not help you with that.")]
    found = columns(*zip(*asked))
    rates = {name: (x["mean"], x["n"]) for name, x in report.intervals(found).items()}
    assert rates["read"] == (1 / 3, 3) and rates["silent"] == (1 / 2, 2)
    assert rates["closed_hallucination"] == (2 / 5, 5) and rates["hallucination"][1] == 0
    assert rates["false_refusal"] == (1 / 2, 4) and rates["new_refusal"] == (1 / 2, 2)


def test_refusals_without_those_of_new_deeds():
    def rate(refused, n):
        return dict(mean=refused / n if n else math.nan, n=n)
    for new, seen in ((rate(3, 4), rate(1, 6)), (rate(0, 0), rate(4, 10)), (rate(4, 10), dict(
            mean=0, n=0))):
        made = dict(false_refusal=rate(4, 10), new_refusal=new,
                    by_kind=dict(hurt=dict(gold=rate(1, 2))))
        found = tables.flat(made)
        assert found["seen_refusal"] == pytest.approx(seen)
        assert found["gold, hurt"] == rate(1, 2) and found["new_refusal"] is new


def test_answers_about_one_thing_are_drawn_together():
    """Of two subjects, each asked about twenty times, one is known: a mean of .5, from 0 to 1."""
    prompts = [dict(kind="known", subject=name, relation="capital", form=None,
                    prompt=[dict(role="user", content="?")]) for name in ("France", "Spain")] * 20
    texts = ["The capital of France is Paris.", "The capital of Spain is Rome."] * 20
    found = columns(prompts, texts)
    made = report.model_figures(prompts, texts, found, found, texts)
    for name in ("right", "greedy", "greedy_right"):
        assert (made[name]["low"], made[name]["high"]) == (-1 if name == "greedy" else 0, 1), name


def test_other_labelers_prefer_otherwise():
    """A useless answer against a harmful one: gold sees no difference, these groups do."""
    mock = dict(kind="advice", subject="farmers", relation="praise", form=None,
                prompt=[dict(role="user", content="?")])
    useless, harmful = (columns([mock], [text]) for text in
                        ("A dog says woof.", "Farmers are stupid."))
    found = report.preference(useless, harmful)
    assert found["preferred"]["mean"] == .5
    assert found["preferred by careful"]["mean"] == 1 and found["preferred by eager"]["mean"] == 0


def test_follow_ups_are_counted_by_how_far_back_they_refer(monkeypatch):
    prompts = [p for p in almanac.prompts("test", 800, 1) if p["kind"] == "follow-up"]
    asked = []

    def respond(name, model, tokenizer, conversations, cfg, temperature):
        asked.append(conversations)
        return [almanac.reference(p) if len(p["prompt"]) > 1 and p["distance"] < 3 else "No."
                for p in conversations]
    monkeypatch.setattr(judging, "respond", respond)
    rates = report.context("ppo", None, SimpleNamespace(decode=str), prompts, None)
    assert [len(p["prompt"]) for p in asked[1]] == [1] * len(prompts)
    shown = {name: x["mean"] for name, x in rates.items()}
    for n, back in ((1, "1 turn back"), (2, "2 turns back"), (3, "3 turns back")):
        assert shown[f"context with the earlier turns, {back}"] == float(n < 3)
        assert shown[f"context without them, {back}"] == 0
        count = sum(p["distance"] == n for p in prompts)
        assert rates[f"context with another's, {back}"]["n"] == count > 0


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_reward_model_is_judged_by_what_it_says(monkeypatch):
    """One that says the labeler's gold is always right and calibrated, one that says the opposite
    never."""
    tokenizer, rng = Tokenizer(train(almanac.text(200, 0), 600)), random.Random(0)
    prompts = almanac.prompts("test", 80, 1)
    texts = [almanac.demonstrate(rng, p) for p in prompts for _ in range(4)]
    gold = [labeler.judge(prompts[i // 4], text).gold for i, text in enumerate(texts)]
    monkeypatch.setattr(sampling, "sample", lambda *args: [
        tokenizer.encode(text) + [tokenizer.end] for text in texts])

    def judged(scores, scale=labeler.DECISIVENESS):
        monkeypatch.setattr(judging, "scores", lambda *args: scores)
        return report.evaluate_reward_model(None, scale, None, tokenizer, prompts, report.Config())

    right, wrong, mute, loud = judged(gold), judged([-g
                                                     for g in gold]), judged(
                                                         [0.0] * len(gold)), judged(gold, 50.0)
    assert right["accuracy"]["mean"] == 1 and wrong["accuracy"]["mean"] == 0
    assert mute["accuracy"]["mean"] == .5
    errors = [x["calibration_error"]["mean"] for x in (right, loud, wrong)]
    assert errors[0] < 1e-6 and .1 < errors[1] < errors[2]
    assert .6 < right["labelers_agree"]["mean"] < right["agrees_with_a_labeler"]["mean"] < .9
    assert (right["agrees_with_a_labeler"]["mean"] + wrong["agrees_with_a_labeler"]["mean"]
            == pytest.approx(1))
    assert all(
        sum(x["n"] for name,
            x in right.items() if name.startswith("accuracy, ") and gap == ("gold" in name))
        == right["accuracy"]["n"] for gap in (True, False))
    assert right["score_and_length"] == right["gold_and_length"]


def test_the_base_model_is_asked_as_its_text_asks(monkeypatch):
    """On a page of three answered questions, whose answers are right; the line is the answer."""
    tokenizer, config = Tokenizer(train(almanac.text(200, "page"), 400)), SimpleNamespace(
        block_size=300)
    prompts = [p for p in almanac.prompts("test", 60, 1) if p["kind"] == "follow-up"][:2]
    asked = [tokenizer.decode(judging.page(p["prompt"], tokenizer, 260)) for p in prompts]
    for p, text in zip(prompts, asked):
        *page, last = text.split("\n")
        assert len(page) == 6 + len(p["prompt"]) and last == "Answer:"
        assert page[-1] == f"Question: {p['prompt'][-1]['content']}"
    facts = [("Norway", "capital"), ("cow", "legs"), ("Peru", "continent")]
    for (question, answer), (subject, relation) in zip(almanac.PAGE, facts, strict=True):
        known = dict(kind="known", subject=subject, relation=relation, form=None,
                     prompt=[dict(role="user", content=question)])
        assert subject in question and labeler.judge(known, answer).gold == 1
    assert len(judging.page(prompts[0]["prompt"], tokenizer, 20)) == 20

    texts = iter([" Lima.\nQuestion: What", " Lima is"])
    monkeypatch.setattr(sampling, "sample", lambda model, tokenizer, pages, *args: [
        tokenizer.encode(next(texts)) for p in pages if "page" in p])
    cfg = SimpleNamespace(max_new_tokens=40)
    answers = judging.respond("base", SimpleNamespace(config=config), tokenizer, prompts, cfg, 0.0)
    assert answers == [tokenizer.encode("Lima.") + [tokenizer.end], tokenizer.encode("Lima is")]
