"""What the people of the embedded world ask: prompts, each with what it is about."""

import random
import zlib

from data.world.facts import FACTS, MADE_UP, RELATIONS, article, sort_of, split_of, upper
from data.world.phrases import (ABOUT_TEXT, ADVICE, ASK, ASK_BELITTLE, ASK_HARM, ASK_KIND,
                                ASK_PRAISE, CORRECT, FOLLOW_UP, FORMS, GREETINGS, GROUPS, HARMS,
                                INSULTS, KINDNESSES, NEW_KINDNESSES, OPENINGS, PEOPLE, READ, RETURN,
                                SAME_AGAIN, SMALL_TALK, TELL, TRUTH)
from data.world.reading import is_passage, portrait, question, statements

# ---- statements ----------------------------------------------------------------------------------


def fill(template, name, relation, value=""):
    """Write `name` and `value` into a template, with the articles that English wants."""
    x = article(name) if sort_of(relation) == "animal" else name
    if template == "{V}." and value == "no":
        value = "none"
    return upper(template.format(x=x, n=name, v=value, a=article(value) if value else "",
                                 V=upper(value)))


def tell(rng, relation, name, value, bare=False):
    """One statement, true or not: "The capital of France is Paris." or, bare, "Paris."."""
    sentences, word = TELL[relation]
    return fill(word if bare else rng.choice(sentences), name, relation, value)


_EVERY_FACT = [(relation, name, value) for relation, facts in FACTS.items()
               for name, value in facts.items()]


def any_fact(rng, relation=None):
    """A fact (relation, name, value): any of all, or any of one relation."""
    return rng.choice([(relation, *fact) for fact in FACTS[relation].items()] if relation
                      else _EVERY_FACT)


def pair(rng, split, deeds, targets):
    """A deed and whom it is done to: which goes with whom decides the split."""
    while True:
        deed, target = rng.choice(deeds), rng.choice(targets)
        if split_of(f"{deed} {target}") == split:
            return deed, target


# ---- prompts -------------------------------------------------------------------------------------

KINDS = ("known", "follow-up", "made-up", "reading", "hurt", "belittle", "advice", "small talk")
# what a prompt says beside its messages, for the labeler
ABOUT = ("kind", "subject", "relation", "form")
FURTHER = ("passage", "distance")  # what a text says; how many turns ago it was said what is meant


def about(record):
    """What the labeler must know of a record (a dict), beside its messages -> dict; {} if it does
    not say all of it."""
    kind, subject, relation, form = [record.get(name) for name in ABOUT]
    subject = "-" if kind == "small talk" and subject is None else subject
    if not all(isinstance(x, str) and x for x in (kind, subject, relation, form or "-")):
        return {}
    relations = {"made-up": FACTS, "small talk": SMALL_TALK, "advice": {*ADVICE, "praise"},
                 "known": FACTS, "follow-up": FACTS, "reading": {*FACTS, "about"}}
    known = kind in KINDS and relation in relations.get(kind, {relation})
    if not known or kind in ("known", "follow-up") and subject not in FACTS[relation]:
        return {}
    if kind == "reading" and not is_passage(record.get("passage")):
        return {}
    return {name: record.get(name) for name in (*ABOUT, *FURTHER)
            if name in ABOUT or name in record}


def phrases(split, pair):
    """The phrases of a split, of (training phrases, held-out phrases); "text" uses both."""
    training, held_out = pair[:2]
    if split == "text":
        return training + held_out
    return training if split == "train" else held_out


def _user(content):
    return {"role": "user", "content": content}


def wished_form(rng, value):
    """None in most cases; "word" only where a word says it all."""
    return rng.choice([None] * 3 + ["sentence"] + ["word"] * (" " not in value))


def asked_of(rng, split, relation, name, form=None):
    asked = fill(rng.choice(phrases(split, ASK[relation])), name, relation)
    return asked + (rng.choice(phrases(split, FORMS[form])) if form else "")


def question_of(rng, split, relation, name, form=None):
    return rng.choice(phrases(split, OPENINGS)) + asked_of(rng, split, relation, name, form)


def _known(rng, split):
    relation, name, value = any_fact(rng)
    form = wished_form(rng, value)
    return dict(prompt=[_user(question_of(rng, split, relation, name, form))],
                kind="known", subject=name, relation=relation, form=form)


def _ask_further(rng, split, first, name, back, at_once):
    """What comes after a question -> the relation and the name that are meant, and what is said.

    It leaves out the name ("And its capital?") or the question ("And Spain?", or at once "No,
    Spain."). back: to the first of several subjects.
    """
    if back or rng.random() < .6:
        relation = rng.choice([r for r in FACTS if name in FACTS[r] and r != first])
        asked = rng.choice(phrases(split, FOLLOW_UP[relation]))
        if back:
            asked = rng.choice(phrases(split, RETURN)).format(q=asked)
        return relation, name, upper(asked)
    other = rng.choice([n for n in FACTS[first] if n != name])
    elliptic = CORRECT if at_once and rng.random() < .4 else SAME_AGAIN
    return first, other, fill(rng.choice(phrases(split, elliptic)), other, first)


def _turn(asked, answer):
    return [_user(asked), {"role": "assistant", "content": answer}]


def _small_turn(rng, split):
    topic = rng.choice(list(SMALL_TALK))
    return _turn(rng.choice(phrases(split, SMALL_TALK[topic])), rng.choice(SMALL_TALK[topic][2]))


def _fact_turn(rng, split, sort, opening=False):
    """A question about a country or an animal, and its answer."""
    relation, name, value = any_fact(rng, rng.choice(RELATIONS[sort]))
    asked = (question_of if opening else asked_of)(rng, split, relation, name)
    return _turn(asked, tell(rng, relation, name, value))


def follow_up(rng, split):
    """One to three earlier turns, of which one says what the last question leaves out.

    `distance`: how many turns back it is. After it come small talk, or other questions if the user
    returns to the first of several subjects. Other questions are about the other sort of thing:
    which of two countries "its" stands for is more than a model of this size learns.
    """
    n = rng.choice([1, 1, 1, 2, 2, 3])
    back = n > 1 and rng.random() < .4
    at = 0 if back else rng.randrange(n)
    first, name, value = any_fact(rng)
    other = "animal" if sort_of(first) == "country" else "country"
    turns = []
    for i in range(n):
        if i == at:
            turns += _turn((asked_of if i else question_of)(rng, split, first, name),
                           tell(rng, first, name, value))
        elif back and i == 1 or (back or i < at) and rng.random() < .5:
            turns += _fact_turn(rng, split, other)
        else:
            turns += _small_turn(rng, split)
    relation, subject, asked = _ask_further(rng, split, first, name, back, at == n - 1)
    return dict(prompt=turns + [_user(asked)], kind="follow-up", subject=subject, relation=relation,
                form=None, distance=n - at)


def _unknown(rng, split):
    relation = any_fact(rng)[0]
    name = rng.choice(MADE_UP[sort_of(relation)][split])
    return dict(prompt=[_user(question_of(rng, split, relation, name))],
                kind="made-up", subject=name, relation=relation, form=None)


def reading(rng, split, real=.5):
    """A text and a question: what does the text say, and rarely, what is true in spite of it?

    real: how many of the texts say what is false of real names.
    """
    made_up = {sort: names["tale" if split == "text" else split] for sort, names in MADE_UP.items()}
    if rng.random() < .15:
        text, name = portrait(rng, made_up)
        asked = rng.choice(phrases(split, ABOUT_TEXT)).format(t=_quoted(text))
        return dict(prompt=[_user(asked)], kind="reading", subject=name, relation="about",
                    form=None, passage=text)
    real = rng.random() < real
    text = statements(rng, made_up, false=real)
    relation, name = question(rng, text)
    # with the text and with the almanac against each other, both are right equally often
    true = real and rng.random() < 1 / 3
    asked = rng.choice(phrases(split, TRUTH if true else READ))
    asked = asked.format(t=_quoted(text), q=asked_of(rng, split, relation, name))
    return dict(prompt=[_user(asked)], kind="known" if true else "reading", subject=name,
                relation=relation, form=None, passage=text)


def quote(relation, name, value):
    """A statement as texts to read make it, and answers that quote them."""
    return fill(TELL[relation][0][0], name, relation, value)


def _quoted(text):
    return " ".join(quote(*statement) for statement in text)


def _harmful(rng, split):
    """Requests to hurt somebody or to belittle a group."""
    kind, ask, deeds, targets = rng.choice([("hurt", ASK_HARM, HARMS, PEOPLE),
                                            ("belittle", ASK_BELITTLE, INSULTS, GROUPS)])
    deed, target = pair(rng, split, deeds, targets)
    asked = rng.choice(phrases(split, ask)).format(d=deed, p=target, i=deed, g=target)
    return dict(prompt=[_user(rng.choice(phrases(split, OPENINGS)) + upper(asked))],
                kind=kind, subject=target, relation=deed, form=None)


def _kind(rng, split):
    """Harmless twins of the harmful requests, so that declining everything is no way out."""
    if rng.random() < .5:
        new = split != "train" and rng.random() < .5
        deeds = NEW_KINDNESSES if new else KINDNESSES
        deed, target, ask = rng.choice(list(deeds)), rng.choice(PEOPLE), ASK_KIND
    else:
        deed, target, ask = "praise", rng.choice(GROUPS), ASK_PRAISE
    asked = rng.choice(phrases(split, ask)).format(d=deed, p=target, g=target)
    return dict(prompt=[_user(rng.choice(phrases(split, OPENINGS)) + upper(asked))],
                kind="advice", subject=target, relation=deed, form=None)


def _small_talk(rng, split):
    topic = rng.choice(list(SMALL_TALK))
    said = rng.choice(phrases(split, SMALL_TALK[topic]))
    if topic in ("thanks", "health", "identity") and rng.random() < .3:
        said = rng.choice(phrases(split, GREETINGS)) + said
    return dict(prompt=[_user(said)], kind="small talk", subject=None, relation=topic, form=None)


# How often what is asked, in percent. Reading is a topic of its own: a model of this size learns it
# at the cost of all else (LOG: who is who).
_MIX = {"everyday": {_known: 31, follow_up: 18, _unknown: 12, _harmful: 14, _kind: 13,
                     _small_talk: 12},
        "reading": {reading: 100}}
TOPICS = tuple(_MIX)


def _held_out(p):
    """The held-out splits share their phrases; the whole prompt decides which it is in."""
    said = " ".join(m["content"] for m in p["prompt"])
    return "test" if zlib.crc32(said.encode()) % 3 else "valid"


def prompts(split, n, seed, topic="everyday"):
    """n prompts of a split, about a topic of TOPICS.

    Each is a dict: `prompt`, a list of messages that ends with the user's; and, for the labeler,
    `kind` (known, follow-up, made-up, reading, hurt, belittle, advice, small talk), `subject`,
    `relation`, `form` (None, "word" or "sentence"); with a text to read, its `passage`; in a
    follow-up, the `distance` of what is meant, in turns.
    """
    if split not in ("train", "valid", "test"):
        raise ValueError(f"no split called {split!r}: use train, valid or test")
    rng = random.Random(f"prompts {split} {seed}")
    found = []
    for write in rng.choices(list(_MIX[topic]), weights=_MIX[topic].values(), k=n):
        p = write(rng, split)
        while split != "train" and _held_out(p) != split:
            p = write(rng, split)
        if "passage" not in p and len(p["prompt"]) == 1 and rng.random() < .1:
            # an earlier turn about anything
            sort = rng.choice(list(RELATIONS))
            p["prompt"] = _fact_turn(rng, split, sort, opening=True) + p["prompt"]
        found.append(p)
    return found
