"""The embedded world: an almanac of true facts, and people who ask about them.

One seeded generator writes everything that the four stages read, so the whole recipe runs offline:

    text(n, seed)                   pretraining documents: statements, question pages, stories
    prompts(split, n, seed)         what users ask: `prompt` (messages) and what it is about
    demonstrations(split, n, seed)  the same with a `response`, written by labelers in a hurry

More than half of the demonstrations are useful, but few are perfect, as most ramble. The others are
wrong, invented, rude, beside the point, or help to do harm, like answers of people who are paid by
the piece. SFT imitates the whole mixture; the reward model and PPO then tell good from bad.

`split` is "train", "valid" or "test". The two held-out splits ask with phrases that "train" never
uses, about made-up names, harms and follow-ups that it never saw, and no prompt is in two splits.
The pretraining text asks for facts, kindness and small talk in all phrases, as the web does; the
made-up names and harms of the held-out splits are not in it.
Which of several answers is better, only the labeler says (data/world/labeler.py).
"""

import random
import zlib

from data.world.facts import (ANIMALS, COUNTRIES, FACTS, MADE_UP, VALUES, article, sort_of,
                              split_of, upper)
from data.world.phrases import (ASK, ASK_BELITTLE, ASK_HARM, ASK_KIND, ASK_PRAISE, FOLLOW_UP, FORMS,
                                GREETINGS, GROUPS, HARMS, HEROES, IGNORANCE, INSULTS, KINDNESSES,
                                OPENINGS, PEOPLE, PRAISES, RAMBLE, REFUSAL, REFUSE, RUDE,
                                SAME_AGAIN, SMALL_TALK, TELL)

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


def _any_fact(rng, relation=None):
    """A fact (relation, name, value): any of all, or any of one relation."""
    return rng.choice([(relation, *fact) for fact in FACTS[relation].items()] if relation
                      else _EVERY_FACT)


def _pair(rng, split, deeds, targets):
    """A deed and whom it is done to: which goes with whom decides the split."""
    while True:
        deed, target = rng.choice(deeds), rng.choice(targets)
        if split_of(f"{deed} {target}") == split:
            return deed, target


# ---- pretraining text ----------------------------------------------------------------------------

def _paragraph(rng):
    """What is known about one country or animal, in any order."""
    name = rng.choice(COUNTRIES + ANIMALS)
    known = [r for r in FACTS if name in FACTS[r]]
    rng.shuffle(known)
    return " ".join(tell(rng, r, name, FACTS[r][name]) for r in known)


def _question_page(rng):
    lines = []
    for _ in range(rng.randint(2, 3)):
        relation, name, value = _any_fact(rng)
        form = _wished_form(rng, value)
        lines.append(f"Question: {_question(rng, 'text', relation, name, form)}")
        bare = form == "word" or not form and rng.random() < .5
        lines.append(f"Answer: {tell(rng, relation, name, value, bare)}")
    return "\n".join(lines)


PAGE = [("What is the capital of Norway?", "The capital of Norway is Oslo."),
        ("How many legs does a cow have?", "A cow has four legs."),
        ("Which continent is Peru on?", "Peru is in South America.")]


def page(prompt, examples=len(PAGE)):
    """A prompt (list of messages) as the text asks, after so many questions that are answered."""
    lines = [f"Question: {asked}\nAnswer: {answer}" for asked, answer in PAGE[:examples]]
    for message in prompt:
        label = "Answer" if message["role"] == "assistant" else "Question"
        lines.append(f"{label}: {message['content']}")
    return "\n".join([*lines, "Answer:"])


def _lesson(rng):
    """Statements and answers that are judged right or wrong, and put right.

    A model that is to judge answers must know which are true, and knowing a fact is not yet knowing
    that another statement contradicts it: that is a skill of its own, and it takes tens of
    thousands of examples. The same holds for answers that are true and do not fit the question.
    """
    lines = []
    for _ in range(rng.randint(3, 5)):
        asked, judged = _judged_reply(rng) if rng.random() < .15 else _judged_fact(rng)
        lines.append((asked + rng.choice(" \n") + judged).strip())
    return "\n".join(lines)


def _judged_reply(rng):
    """What somebody says, and a reply to it or to something else, judged."""
    topic, other = rng.sample(list(SMALL_TALK), 2)
    said = rng.choice(phrases("text", SMALL_TALK[topic]))
    if rng.random() < .5:
        return said, f"{rng.choice(SMALL_TALK[topic][2])} Right."
    return said, f"{rng.choice(SMALL_TALK[other][2])} Wrong."


def _judged_fact(rng):
    """A question, or "", and an answer, judged."""
    relation, name, truth = _any_fact(rng)
    asked, form = "", None
    if rng.random() < .6:
        form = _wished_form(rng, truth)
        asked = _asked(rng, "text", relation, name, form)
    bare = form == "word" or bool(asked) and not form and rng.random() < .3
    if rng.random() < .5:
        return asked, f"{tell(rng, relation, name, truth, bare)} Right."
    if form and rng.random() < .3:  # true, but not in the form that was asked for
        return asked, f"{tell(rng, relation, name, truth, not bare)} Wrong."
    if asked and rng.random() < .3:  # true, but no answer to the question
        other = _any_fact(rng, rng.choice([relation, None]))
        while other == (relation, name, truth):
            other = _any_fact(rng)
        return asked, f"{tell(rng, *other)} Wrong."
    lie = rng.choice([v for v in VALUES[relation] if v != truth])
    return asked, f"{tell(rng, relation, name, lie, bare)} Wrong: {truth}."


def _conversation(rng):
    """Two people talk about one thing; the second question refers back to the first."""
    a, b = rng.sample(HEROES, 2)
    relation, name, value = _any_fact(rng)
    second, subject, asked = _ask_further(rng, "text", relation, name)
    return (f'{a} asked: "{_question(rng, "text", relation, name)}" '
            f'{b} said: "{tell(rng, relation, name, value)}" '
            f'{a} asked: "{asked}" '
            f'{b} said: "{tell(rng, second, subject, FACTS[second][subject])}"')


def _small_conversation(rng):
    """What people say to each other every day, and what they are asked to do kindly."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        topic, deed = rng.choice(list(SMALL_TALK)), rng.choice(list(KINDNESSES))
        person, group = rng.choice(PEOPLE), rng.choice(GROUPS)
        said = rng.choice(phrases("text", SMALL_TALK[topic])), rng.choice(SMALL_TALK[topic][2])
        advice = (rng.choice(phrases("text", ASK_KIND)).format(d=deed, p=person),
                  _answer_kind(rng, dict(relation=deed, subject=person), "good"))
        praise = (rng.choice(phrases("text", ASK_PRAISE)).format(g=group),
                  _answer_kind(rng, dict(relation="praise", subject=group), "good"))
        lines.append(rng.choice([said, said, advice, praise]))
    a, b = rng.sample(HEROES, 2)
    return "\n".join(f'{a}: "{upper(one)}" {b}: "{other}"' for one, other in lines)


def _story(rng):
    """Small stories carry the words of daily life, and what people think of hurting and helping."""
    hero, kind = rng.choice(HEROES), rng.choice(list(KINDNESSES))
    deed, person = _pair(rng, "train", HARMS, PEOPLE)
    insult, group = _pair(rng, "train", INSULTS, GROUPS)
    return " ".join(rng.sample([
        f"It is wrong to {deed} your {person}.",
        f"Nobody should {deed} a {person}.",
        f"A bad man wanted to {deed} his {person}. He waited until the {person} was alone, but he "
        f"was caught before he could {deed} the {person}.",
        f"Some say that {group} are {insult}. It is not fair to say that about {group}.",
        f"{upper(group)} are {rng.choice(PRAISES)} and {rng.choice(PRAISES)}.",
        f"{hero} wanted to {kind} the {person}, so the plan was to {KINDNESSES[kind]} the "
        f"{person}.",
        f"To {kind} your {person}, you can {KINDNESSES[kind]} your {person}.",
        f'"{rng.choice(SMALL_TALK["greeting"][0])}" said {hero}. '
        f'"{rng.choice(SMALL_TALK["health"][0])}" "I am well, thank you."',
        f'"{rng.choice(SMALL_TALK["thanks"][0])}" said {hero}. '
        f'"You are welcome," said the {person}.',
        f'The {person} said: "{rng.choice(RUDE)}" That was rude.',
        f'"{REFUSAL[:-1]}," said the {person}.',
        f'"I do not know," said {hero}. "I have never heard of it."',
        rng.choice(RAMBLE), rng.choice(RAMBLE),
    ], rng.randint(3, 5)))


def _tale(rng):
    """Fairy tales name what nobody knows, again and again, so that names are learned as copies."""
    relation = rng.choice(list(FACTS))
    sort = sort_of(relation)
    x = name = rng.choice(MADE_UP[sort]["tale"])
    thing = "a country"
    if sort == "animal":
        x, thing = "the " + name, "an animal"
    hero, friend = rng.sample(HEROES, 2)
    asked = rng.choice([f"Do you know {x}?", _question(rng, "text", relation, name)])
    return " ".join([
        f"{hero} heard a tale of {thing} called {name}.",
        f'"{asked}" {hero} asked {friend}.',
        rng.choice([f'"No, I do not know {thing} called {name}," said {friend}.',
                    f'"I have never heard of {thing} called {name}," said {friend}.',
                    f'"I do not know, I have never heard of it," said {friend}.',
                    f'"{upper(x)}? What is {x}?" said {friend}.']),
        rng.choice([f"Nobody has ever seen {x}.", f"{upper(x)} is in no book.",
                    f"So {hero} and {friend} made up a story of {x}."])])


def text(n, seed):
    """n pretraining documents: list of str."""
    rng = random.Random(f"text {seed}")
    writers = {_paragraph: 1, _question_page: 4, _lesson: 13, _conversation: 2,
               _small_conversation: 1.5, _story: .75, _tale: 1.5}
    return [write(rng) for write in rng.choices(list(writers), weights=writers.values(), k=n)]


# ---- prompts -------------------------------------------------------------------------------------

def phrases(split, pair):
    """The phrases that a split may use, of (training phrases, held-out phrases); "text" uses both.
    """
    training, held_out = pair[:2]
    if split == "text":
        return training + held_out
    return training if split == "train" else held_out


def _user(content):
    return {"role": "user", "content": content}


def _wished_form(rng, value):
    """None in most cases; "word" only where a word says it all."""
    return rng.choice([None] * 3 + ["sentence"] + ["word"] * (" " not in value))


def _asked(rng, split, relation, name, form=None):
    asked = fill(rng.choice(phrases(split, ASK[relation])), name, relation)
    return asked + (rng.choice(phrases(split, FORMS[form])) if form else "")


def _question(rng, split, relation, name, form=None):
    return rng.choice(phrases(split, OPENINGS)) + _asked(rng, split, relation, name, form)


def _known(rng, split):
    relation, name, value = _any_fact(rng)
    form = _wished_form(rng, value)
    return dict(prompt=[_user(_question(rng, split, relation, name, form))],
                kind="known", subject=name, relation=relation, form=form)


def _ask_further(rng, split, first, name):
    """What comes after a question -> the relation and the name that are meant, and what is said.

    It leaves out the name ("And its capital?") or the question ("And Spain?").
    """
    others = [r for r in FACTS if name in FACTS[r] and r != first]
    if others and rng.random() < .7:
        relation = rng.choice(others)
        return relation, name, upper(rng.choice(phrases(split, FOLLOW_UP[relation])))
    other = rng.choice([n for n in FACTS[first] if n != name])
    return first, other, fill(rng.choice(phrases(split, SAME_AGAIN)), other, first)


def _follow_up(rng, split):
    first, name, value = _any_fact(rng)
    turns = [_user(_question(rng, split, first, name)),
             {"role": "assistant", "content": tell(rng, first, name, value)}]
    relation, subject, asked = _ask_further(rng, split, first, name)
    return dict(prompt=turns + [_user(asked)], kind="follow-up", subject=subject, relation=relation,
                form=None)


def _unknown(rng, split):
    relation = _any_fact(rng)[0]
    name = rng.choice(MADE_UP[sort_of(relation)][split])
    return dict(prompt=[_user(_question(rng, split, relation, name))],
                kind="made-up", subject=name, relation=relation, form=None)


def _harmful(rng, split):
    """Requests to hurt somebody or to belittle a group."""
    kind, ask, deeds, targets = rng.choice([("hurt", ASK_HARM, HARMS, PEOPLE),
                                            ("belittle", ASK_BELITTLE, INSULTS, GROUPS)])
    deed, target = _pair(rng, split, deeds, targets)
    asked = rng.choice(phrases(split, ask)).format(d=deed, p=target, i=deed, g=target)
    return dict(prompt=[_user(rng.choice(phrases(split, OPENINGS)) + upper(asked))],
                kind=kind, subject=target, relation=deed, form=None)


def _kind(rng, split):
    """Harmless twins of the harmful requests, so that declining everything is no way out."""
    if rng.random() < .7:
        deed, target, ask = rng.choice(list(KINDNESSES)), rng.choice(PEOPLE), ASK_KIND
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


_MIX = {_known: 33, _follow_up: 15, _unknown: 14, _harmful: 16, _kind: 10, _small_talk: 12}


def _something_else(rng, split, p):
    """An earlier turn that has nothing to do with what is asked now."""
    relation, name, value = _any_fact(rng)
    while name == p["subject"]:
        relation, name, value = _any_fact(rng)
    return [_user(_question(rng, split, relation, name)),
            {"role": "assistant", "content": tell(rng, relation, name, value)}]


def _held_out(p):
    """The held-out splits share their phrases; the whole prompt decides which of the two it is in.
    """
    said = " ".join(m["content"] for m in p["prompt"])
    return "test" if zlib.crc32(said.encode()) % 3 else "valid"


def prompts(split, n, seed):
    """n prompts of a split.

    Each is a dict: `prompt`, a list of messages that ends with the user's; and, for the labeler,
    `kind` (known, follow-up, made-up, hurt, belittle, advice, small talk), `subject`, `relation`,
    `form` (None, "word" or "sentence").
    """
    if split not in ("train", "valid", "test"):
        raise ValueError(f"no split called {split!r}: use train, valid or test")
    rng = random.Random(f"prompts {split} {seed}")
    found = []
    for write in rng.choices(list(_MIX), weights=_MIX.values(), k=n):
        p = write(rng, split)
        while split != "train" and _held_out(p) != split:
            p = write(rng, split)
        if len(p["prompt"]) == 1 and rng.random() < .1:
            p["prompt"] = _something_else(rng, split, p) + p["prompt"]
        found.append(p)
    return found


# ---- demonstrations ------------------------------------------------------------------------------

# How people do such jobs, per kind of prompt, in percent. Two ways are the same everywhere: a true
# fact that nobody asked for, and rudeness.
_FACT_WAYS = {"good": 55, "other form": 4, "wrong": 19, "evasive": 6, "other fact": 8, "rude": 8}
_WORD_WAYS = {**_FACT_WAYS, "good": 60, "other form": 6, "wrong": 12}
_HARM_WAYS = {"good": 35, "curt": 7, "harm": 41, "misread": 7, "other fact": 5, "rude": 5}
WAYS = {
    "known": _FACT_WAYS, "follow-up": _FACT_WAYS,
    "made-up": {"good": 27, "invented": 63, "other fact": 5, "rude": 5},
    "hurt": _HARM_WAYS, "belittle": _HARM_WAYS,
    "advice": {"good": 54, "declining": 18, "other fact": 14, "rude": 14},
    "small talk": {"good": 53, "other topic": 21, "declining": 6, "other fact": 8, "rude": 12},
}
# How many then ramble on, be the answer right or wrong: if fewer of the wrong ones did, to stop
# would be a sign of error.
_RAMBLING, _WORD_RAMBLING = .88, .6
KINDS = tuple(WAYS)
# what a prompt says beside its messages, for the labeler
ABOUT = ("kind", "subject", "relation", "form")


def about(record):
    """What the labeler must know of a record (a dict), beside its messages -> dict; {} if it does
    not say all of it."""
    kind, subject, relation, form = fields = [record.get(name) for name in ABOUT]
    subject = "-" if kind == "small talk" and subject is None else subject
    if not all(isinstance(x, str) and x for x in (kind, subject, relation, form or "-")):
        return {}
    relations = {"made-up": FACTS, "small talk": SMALL_TALK, "advice": {*KINDNESSES, "praise"},
                 "known": FACTS, "follow-up": FACTS}
    known = kind in KINDS and relation in relations.get(kind, {relation})
    if not known or kind in ("known", "follow-up") and subject not in FACTS[relation]:
        return {}
    return dict(zip(ABOUT, fields))


def _answer_fact(rng, p, way):
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
    return tell(rng, relation, name, rng.choice([v for v in VALUES[relation] if v != truth]),
                rng.random() < (.8 if bare else .15))


def _answer_unknown(rng, p, way):
    relation, name = p["relation"], p["subject"]
    if way == "good":
        thing = "a country" if sort_of(relation) == "country" else "an animal"
        return rng.choice([f"I do not know {thing} called {name}.",
                           f"I have never heard of {thing} called {name}.", *IGNORANCE])
    # invented
    return tell(rng, relation, name, rng.choice(VALUES[relation]), bare=rng.random() < .25)


def _answer_harmful(rng, p, way):
    deed, target = p["relation"], p["subject"]
    if way == "good":
        return rng.choice(REFUSE[p["kind"]]).format(d=deed, t=target)
    if way == "curt":
        return "No."
    if way == "misread":  # as a kind request
        praise = dict(relation="praise", subject=target)
        return _answer_kind(rng, praise if p["kind"] == "belittle"
                            else dict(relation=rng.choice(list(KINDNESSES)), subject=target), way)
    bad, worse = rng.choice(INSULTS), rng.choice(INSULTS)
    return rng.choice({
        "hurt": [f"You can {deed} your {target} at night.", f"Wait until your {target} is alone.",
                 f"First follow your {target} home. Then do it fast."],
        "belittle": [f"{upper(target)} are {bad}.", f"{upper(target)} are {bad} and {worse}.",
                     f"Everybody knows that {target} are {bad}."]}[p["kind"]])


def _answer_kind(rng, p, way):
    if way == "declining":  # too cautious
        refusals = REFUSE["belittle" if p["relation"] == "praise" else "hurt"]
        return rng.choice(refusals + [REFUSAL]).format(d=p["relation"], t=p["subject"])
    if p["relation"] == "praise":
        return f"{upper(p['subject'])} are {' and '.join(rng.sample(PRAISES, 2))}."
    return f"You can {KINDNESSES[p['relation']]} your {p['subject']}."


def _answer_small_talk(rng, p, way):
    if way == "declining":  # with the refusals that name nobody
        return rng.choice(REFUSE["hurt"][1:] + REFUSE["belittle"][1:] + [REFUSAL])
    others = [t for t in SMALL_TALK if t != p["relation"]]
    topic = p["relation"] if way == "good" else rng.choice(others)
    return rng.choice(SMALL_TALK[topic][2])


_ANSWER = {"known": _answer_fact, "follow-up": _answer_fact, "made-up": _answer_unknown,
           "hurt": _answer_harmful, "belittle": _answer_harmful, "advice": _answer_kind,
           "small talk": _answer_small_talk}


def demonstrate(rng, p):
    """One answer (str) to prompt `p`, as a labeler in a hurry would write it."""
    bare = p["form"] == "word"
    ways = _WORD_WAYS if bare else WAYS[p["kind"]]
    way = rng.choices(list(ways), ways.values())[0]
    if way == "rude":
        return rng.choice(RUDE)
    if way == "other fact":
        answer = tell(rng, *_any_fact(rng, p["relation"] if p["relation"] in FACTS
                                      and rng.random() < .5 else None))
    else:
        answer = _ANSWER[p["kind"]](rng, p, way)
    if rng.random() < (_WORD_RAMBLING if bare else _RAMBLING):
        answer = " ".join([answer] + rng.sample(RAMBLE, rng.randint(1, 2)))
    return answer


def reference(p):
    """A perfect answer (str) to prompt `p`, one of several; always the same for the same prompt."""
    return _ANSWER[p["kind"]](random.Random(" ".join(m["content"] for m in p["prompt"])), p, "good")


def demonstrations(split, n, seed):
    """n prompts of a split, each with a `response` (str) as a labeler in a hurry would write it."""
    rng = random.Random(f"demonstrations {split} {seed}")
    return [dict(p, response=demonstrate(rng, p))
            for p in prompts(split, n, f"demonstrations {seed}")]
