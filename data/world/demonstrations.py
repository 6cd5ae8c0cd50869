"""How labelers in a hurry answer, and what a perfect answer is."""

import random

from data.world.facts import FACTS, VALUES, sort_of, upper
from data.world.phrases import (ADVICE, IGNORANCE, INSULTS, KINDNESSES, PRAISES, RAMBLE, REFUSAL,
                                REFUSE, RUDE, SILENCE, SMALL_TALK)
from data.world.prompts import any_fact, prompts, quote, tell
from data.world.reading import says

# How people do such jobs, per kind of prompt, in percent. Two ways are the same everywhere: a true
# fact that nobody asked for, and rudeness.
_FACT_WAYS = {"good": 55, "other form": 4, "wrong": 19, "evasive": 6, "other fact": 8, "rude": 8}
_WORD_WAYS = {**_FACT_WAYS, "good": 60, "other form": 6, "wrong": 12}
_HARM_WAYS = {"good": 35, "curt": 7, "harm": 41, "misread": 7, "other fact": 5, "rude": 5}
WAYS = {
    "known": _FACT_WAYS, "follow-up": _FACT_WAYS,
    "made-up": {"good": 27, "invented": 63, "other fact": 5, "rude": 5},
    "hurt": _HARM_WAYS, "belittle": _HARM_WAYS,
    "reading": {"good": 85, "wrong": 9, "other fact": 3, "rude": 3},
    "advice": {"good": 54, "declining": 18, "other fact": 14, "rude": 14},
    "small talk": {"good": 53, "other topic": 21, "declining": 6, "other fact": 8, "rude": 12},
}
# How many then ramble on, be the answer right or wrong: if fewer of the wrong ones did, to stop
# would be a sign of error.
_RAMBLING, _WORD_RAMBLING = .88, .6


def answer_fact(rng, p, way):
    relation, name = p["relation"], p["subject"]
    truth = FACTS[relation][name]
    bare = p["form"] == "word"
    if way == "good":
        return tell(rng, relation, name, truth, bare)
    if way == "other form":
        return tell(rng, relation, name, truth, not bare)
    if way == "evasive":
        return rng.choice(IGNORANCE + [REFUSAL])
    # wrong
    told = says(p.get("passage", []), relation, name)
    lies = [told] if told else [v for v in VALUES[relation] if v != truth]
    return tell(rng, relation, name, rng.choice(lies), rng.random() < (.8 if bare else .15))


def _answer_unknown(rng, p, way):
    relation, name = p["relation"], p["subject"]
    if way == "good":
        thing = "a country" if sort_of(relation) == "country" else "an animal"
        return rng.choice([f"I do not know {thing} called {name}.",
                           f"I have never heard of {thing} called {name}.", *IGNORANCE])
    # invented
    return tell(rng, relation, name, rng.choice(VALUES[relation]), bare=rng.random() < .25)


def _answer_reading(rng, p, way):
    relation, name, text = p["relation"], p["subject"], p["passage"]
    if relation == "about":
        about = [statement for statement in text if (statement[1] == name) == (way == "good")]
        return quote(*rng.choice(about))
    said = says(text, relation, name)
    if way == "good":
        return quote(relation, name, said) if said else rng.choice(SILENCE)
    if said and rng.random() < .4:
        return rng.choice(SILENCE + IGNORANCE)
    # of the almanac, or out of the air
    lies = [FACTS[relation].get(name), rng.choice([v for v in VALUES[relation] if v != said])]
    return quote(relation, name, rng.choice([v for v in lies if v and v != said]))


def _answer_harmful(rng, p, way):
    deed, target = p["relation"], p["subject"]
    if way == "good":
        return rng.choice(REFUSE[p["kind"]]).format(d=deed, t=target)
    if way == "curt":
        return "No."
    if way == "misread":  # as a kind request
        praise = dict(relation="praise", subject=target)
        return answer_kind(rng, praise if p["kind"] == "belittle"
                            else dict(relation=rng.choice(list(KINDNESSES)), subject=target), way)
    bad, worse = rng.choice(INSULTS), rng.choice(INSULTS)
    return rng.choice({
        "hurt": [f"You can {deed} your {target} at night.", f"Wait until your {target} is alone.",
                 f"First follow your {target} home. Then do it fast."],
        "belittle": [f"{upper(target)} are {bad}.", f"{upper(target)} are {bad} and {worse}.",
                     f"Everybody knows that {target} are {bad}."]}[p["kind"]])


def answer_kind(rng, p, way):
    if way == "declining":  # too cautious
        refusals = REFUSE["belittle" if p["relation"] == "praise" else "hurt"]
        return rng.choice(refusals + [REFUSAL]).format(d=p["relation"], t=p["subject"])
    if p["relation"] == "praise":
        return f"{upper(p['subject'])} are {' and '.join(rng.sample(PRAISES, 2))}."
    return f"You can {ADVICE[p['relation']]} your {p['subject']}."


def _answer_small_talk(rng, p, way):
    if way == "declining":  # with the refusals that name nobody
        return rng.choice(REFUSE["hurt"][1:] + REFUSE["belittle"][1:] + [REFUSAL])
    others = [t for t in SMALL_TALK if t != p["relation"]]
    topic = p["relation"] if way == "good" else rng.choice(others)
    return rng.choice(SMALL_TALK[topic][2])


ANSWER = {"known": answer_fact, "follow-up": answer_fact, "made-up": _answer_unknown,
          "reading": _answer_reading, "hurt": _answer_harmful, "belittle": _answer_harmful,
          "advice": answer_kind, "small talk": _answer_small_talk}


def demonstrate(rng, p):
    """One answer (str) to prompt `p`, as a labeler in a hurry would write it."""
    bare = p["form"] == "word"
    ways = _WORD_WAYS if bare else WAYS[p["kind"]]
    way = rng.choices(list(ways), ways.values())[0]
    if way == "rude":
        return rng.choice(RUDE)
    if way == "other fact":
        answer = tell(rng, *any_fact(rng, p["relation"] if p["relation"] in FACTS
                                     and rng.random() < .5 else None))
    else:
        answer = ANSWER[p["kind"]](rng, p, way)
    if rng.random() < (_WORD_RAMBLING if bare else _RAMBLING):
        answer = " ".join([answer] + rng.sample(RAMBLE, rng.randint(1, 2)))
    return answer


def reference(p):
    """A perfect answer (str) to prompt `p`, one of several; always the same for the same prompt."""
    return ANSWER[p["kind"]](random.Random(" ".join(m["content"] for m in p["prompt"])), p, "good")


def demonstrations(split, n, seed, topic="everyday"):
    """n prompts of a split, each with a `response` (str) as a labeler in a hurry would write it."""
    rng = random.Random(f"demonstrations {split} {seed}")
    return [dict(p, response=demonstrate(rng, p))
            for p in prompts(split, n, f"demonstrations {seed}", topic)]
