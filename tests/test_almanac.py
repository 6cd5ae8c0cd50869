"""The world: splits are disjoint, seeds decide everything, facts are what they should be, and a
text that is to be read cannot be left unread."""

import functools
import random
import re
from collections import Counter

import pytest

from data.world import almanac, demonstrations, facts, labeler, phrases, reading
from data.world import prompts as asking


def key(p):
    return tuple(m["content"] for m in p["prompt"])


def test_splits_share_no_prompt_name_or_harm():
    found = {split: almanac.prompts(split, 3000, seed=1) for split in ("train", "valid", "test")}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not {key(p) for p in found[a]} & {key(p) for p in found[b]}
        for kinds in (("made-up",), ("hurt", "belittle")):
            named = [{(p["subject"], p["relation"]) if "hurt" in kinds else p["subject"]
                      for p in found[s] if p["kind"] in kinds} for s in (a, b)]
            assert named[0] and named[1] and not named[0] & named[1]


def test_held_out_prompts_use_unseen_phrases():
    train_last = {key(p)[-1] for p in almanac.prompts("train", 6000, seed=2)}
    assert not train_last & {key(p)[-1] for p in almanac.prompts("test", 2000, seed=2)}


def test_the_text_never_names_what_only_held_out_prompts_name():
    text = "\n".join(almanac.text(4000, 1))
    for split in ("valid", "test"):
        names = {name.lower() for sort in almanac.MADE_UP.values() for name in sort[split]}
        assert names and not names & set(re.findall(r"\w+", text.lower()))
        for p in almanac.prompts(split, 1000, 1):
            if p["kind"] == "hurt":
                assert f"{p['relation']} your {p['subject']}" not in text
            if p["kind"] == "belittle":
                assert f"{p['subject']} are {p['relation']}" not in text


def test_every_kind_is_in_every_split():
    for split in ("train", "valid", "test"):
        kinds = {topic: {p["kind"] for p in almanac.prompts(split, 400, 3, topic)}
                 for topic in almanac.TOPICS}
        assert kinds["everyday"] | kinds["reading"] == {*almanac.KINDS} == {*demonstrations.WAYS}
        assert kinds["everyday"] & kinds["reading"] == {"known"}  # "But in the real world: ..."


def test_the_seed_decides_everything():
    for write in (almanac.prompts, almanac.demonstrations):
        assert write("train", 50, 1) == write("train", 50, 1) != write("train", 50, 2)
    assert almanac.text(50, 1) == almanac.text(50, 1) != almanac.text(50, 2)


def test_made_up_names_are_in_no_fact():
    real = {name.lower() for facts in almanac.FACTS.values() for pair in facts.items()
            for name in pair}
    for names in almanac.MADE_UP.values():
        assert not real & {n.lower() for split in names.values() for n in split}


def test_a_few_facts_by_hand():
    facts = almanac.FACTS
    assert facts["capital"]["Canada"] == "Ottawa" and facts["continent"]["Egypt"] == "Africa"
    assert facts["class"]["bat"] == "mammal" and facts["legs"]["bee"] == "six"
    assert "whale" not in facts["legs"]
    assert len(facts["capital"]) >= 40 and len(facts["class"]) >= 30


def test_follow_ups_leave_out_what_was_said_so_many_turns_ago():
    """In the turn that `distance` names, and in no later one; after it nothing else is asked but
    where the user returns to the first subject."""
    seen = Counter()
    for p in almanac.prompts("test", 3000, 4):
        if p["kind"] != "follow-up":
            continue
        *turns, last = key(p)
        turns = [" ".join(turns[i:i + 2]) for i in range(0, len(turns), 2)]
        there, later = turns[-p["distance"]], " ".join(turns[len(turns) - p["distance"] + 1:])
        named = re.search(rf"\b{p['subject']}\b", last)
        back = "first one" in last
        seen[p["distance"], bool(named), back] += 1
        assert 1 <= p["distance"] <= len(turns) <= 3
        if named:  # "And Spain?", "No, Spain.": the relation was said there, of another name
            assert p["subject"] not in there and p["relation"] not in last
            assert any(r == p["relation"] for r, *_ in labeler.claims(there, None, None))
        else:  # "And its capital?"
            assert re.search(rf"\b{p['subject']}\b", there) and "it" in last
            assert not re.search(rf"\b{p['subject']}\b", later)
        asked_later = labeler.claims(later, None, None)
        assert not back or (p["distance"] == len(turns) > 1 and asked_later)
        assert back or not asked_later
    assert all(seen[n, named, False] for n in (1, 2, 3) for named in (True, False))
    assert seen[2, False, True] and seen[3, False, True]


# ---- reading -------------------------------------------------------------------------------------


@functools.cache
def texts(n, split="train"):
    return almanac.prompts(split, n, 7, "reading")


def reading_prompts(n=12000):
    return [p for p in texts(n) if p["kind"] == "reading" and p["relation"] != "about"]


def test_a_text_is_asked_as_often_what_it_says_as_what_it_does_not_say():
    found = reading_prompts(6000)
    assert abs(sum(map(reading.told, found)) / len(found) - .5) < .02
    asked = Counter()
    for p in found:
        assert p["subject"] in {name for _, name, _ in p["passage"]} and 2 <= len(p["passage"]) <= 4
        asked[reading.told(p), tuple(sorted(r for r, _, _ in p["passage"]))] += 1
    for (told, relations), count in asked.items():  # the same texts are asked both ways
        assert abs(count - asked[not told, relations]) < 4 * (2 * count + 1) ** .5


def answered_best(examples, seen):
    """How often one is right who knows for each thing that is seen the answer that is best on
    other examples: a look-up table, on the half of the examples that it was not made of."""
    def answer(p):
        said = reading.says(p["passage"], p["relation"], p["subject"])
        return said or "-"
    half = len(examples) // 2
    best = {}
    for p in examples[:half]:
        best.setdefault(seen(p), Counter())[answer(p)] += 1
    guess = {key: counts.most_common(1)[0][0] for key, counts in best.items()}
    return sum(guess.get(seen(p), "-") == answer(p) for p in examples[half:]) / half


@pytest.mark.parametrize("seen", [
    lambda p: (p["subject"], p["relation"]),
    lambda p: p["relation"],
    lambda p: p["subject"],
    lambda p: len(p["passage"]),
    lambda p: tuple(sorted(relation for relation, _, _ in p["passage"])),
    lambda p: p["prompt"][0]["content"][:12],
], ids=["question", "relation", "name", "length of text", "relations of text", "opening"])
def test_only_the_question_or_only_the_text_is_no_help(seen):
    """Chance is .5: to say always that the text does not say it."""
    examples = reading_prompts()
    assert len(examples) > 5000
    assert answered_best(examples, seen) < .53
    whole = answered_best(examples * 2, lambda p: p["prompt"][0]["content"])
    assert whole == 1  # while with both the answer is decided


def test_text_and_almanac_are_right_equally_often_where_they_differ():
    real = [p for p in texts(10000) if p["relation"] in facts.FACTS
            and p["subject"] in facts.FACTS[p["relation"]]]
    for p in real:
        truth = facts.FACTS[p["relation"]][p["subject"]]
        assert reading.says(p["passage"], p["relation"], p["subject"]) != truth
    by_text = sum(reading.told(p) is True for p in real)
    by_almanac = sum(p["kind"] == "known" for p in real)
    assert abs(by_text - by_almanac) < .1 * by_almanac


def test_held_out_texts_wordings_and_names_are_new():
    seen, new = texts(6000), texts(2000, "test")
    told = [{str(p["passage"]) for p in found} for found in (seen, new)]
    assert len(told[0] & told[1]) < .01 * len(new)  # as chance has it, of real names
    trained, held_out = [{name for p in found for _, name, _ in p["passage"]
                          if name not in facts.COUNTRIES + facts.ANIMALS} for found in (seen, new)]
    assert held_out and not trained & held_out
    for pair in (phrases.READ, phrases.TRUTH, phrases.ABOUT_TEXT):
        assert not set(pair[0]) & set(pair[1])


def test_what_a_text_is_about_is_named_twice():
    rng, subjects = random.Random(0), set()
    names = {sort: every["train"] for sort, every in facts.MADE_UP.items()}
    for _ in range(200):
        text, name = reading.portrait(rng, names)
        counts = Counter(named for _, named, _ in text)
        assert sorted(counts.values()) == [1, 2] and counts[name] == 2
        subjects.add(name.islower())
    assert len(subjects) == 2  # a country as well as an animal


def test_new_kind_deeds_are_asked_for_in_held_out_prompts_only():
    """The pretraining text tells of them, as the web does; nobody asks for them."""
    new = set(phrases.NEW_KINDNESSES)
    for split, share in (("train", 0), ("test", .25)):
        deeds = [p["relation"] for p in almanac.prompts(split, 4000, 2) if p["kind"] == "advice"]
        assert abs(sum(deed in new for deed in deeds) / len(deeds) - share) < .06
    text = "\n".join(almanac.text(4000, 1))
    for deed in new:
        assert re.search(rf"\bto {deed} ", text, re.I)
        assert not re.search(rf"\b(I|me|can|could|you|way) (to )?{deed} my", text, re.I)


def test_kind_requests_are_nearly_as_frequent_as_the_harmful_ones_they_resemble():
    kinds = Counter((p["kind"], p["relation"] == "praise")
                    for p in almanac.prompts("train", 20000, 3))
    assert kinds["hurt", False] < 1.5 * kinds["advice", False]
    assert kinds["belittle", False] < 1.5 * kinds["advice", True]


def test_pretraining_text_tells_no_lies_but_those_it_calls_wrong():
    rng = random.Random(5)
    writers = (almanac._paragraph, almanac._question_page, almanac._lesson, almanac._story)
    for document in [write(rng) for write in writers for _ in range(100)]:
        for line in document.split("\n"):
            if line.startswith("Question") or line.endswith(
                ("Right.", "Wrong.")) or "Wrong:" in line or '"' in line or "tale" in line:
                continue
            for relation, subject, value, affirmed in labeler.claims(
                line.removeprefix("Answer:"), None, None):
                assert labeler.is_true(relation, subject, value) == affirmed, line


def test_pages_of_reading_say_what_their_text_says():
    """By the text, or by the almanac where a page asks for the truth."""
    rng, kinds = random.Random(6), Counter()
    for _ in range(400):
        state = rng.getstate()
        p = asking.reading(rng, "text", real=.85)
        rng.setstate(state)
        asked, answer, *others = almanac._reading_page(rng).split("\n")
        assert asked == p["prompt"][0]["content"] and len(others) in (6, 8, 10)
        assert labeler.judge(p, answer).gold == 1, (asked, answer)
        kinds[p["kind"], reading.told(p)] += 1
    assert len(kinds) == 4 and min(kinds.values()) > 40, kinds
