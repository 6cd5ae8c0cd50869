"""The world: splits are disjoint, seeds decide everything, facts are what they should be."""

import re

from data.world import almanac


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
        kinds = {p["kind"] for p in almanac.prompts(split, 400, seed=3)}
        assert (kinds
                == {"known", "follow-up", "made-up", "hurt", "belittle", "advice", "small talk"})


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


def test_follow_ups_name_what_they_refer_to_only_in_an_earlier_turn():
    for p in almanac.prompts("test", 1000, 4):
        if p["kind"] == "follow-up":
            first, answer, last = key(p)
            if p["subject"] in last:  # "And Spain?": which relation is in the first turn only
                assert p["subject"] not in first + answer and p["relation"] not in last
            else:  # "And its capital?"
                assert p["subject"] in first and "it" in last


def test_pretraining_text_tells_no_lies_but_those_it_calls_wrong():
    from data.world import labeler
    for document in almanac.text(400, 5):
        for line in document.split("\n"):
            if line.startswith("Question") or line.endswith(
                ("Right.", "Wrong.")) or "Wrong:" in line or '"' in line or "tale" in line:
                continue
            for relation, subject, value, affirmed in labeler.claims(
                line.removeprefix("Answer:"), None, None):
                assert labeler.is_true(relation, subject, value) == affirmed, line
