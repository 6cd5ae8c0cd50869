"""The embedded world: an almanac of true facts, and people who ask about them.

One seeded generator writes everything that the four stages read, so the whole recipe runs offline:

    text(n, seed)                   pretraining documents: statements, question pages, stories
    prompts(split, n, seed)         what users ask: `prompt` (messages) and what it is about
    demonstrations(split, n, seed)  the same with a `response`, written by labelers in a hurry

The first is in this file, the others in prompts.py, reading.py and demonstrations.py beside it.

More than half of the demonstrations are useful, but few are perfect, as most ramble. The others are
wrong, invented, rude, beside the point, or help to do harm, like answers of people who are paid by
the piece. SFT imitates the whole mixture; the reward model and PPO then tell good from bad.

`split` is "train", "valid" or "test". The two held-out splits ask with phrases that "train" never
uses, about made-up names, texts, harms and a few kind deeds that it never saw, and no prompt
is in two splits. The pretraining text asks for facts, kindness and small talk in all phrases, as
the web does, and tells of all kind deeds; the made-up names and harms of the held-out splits are
not in it.
Which of several answers is better, only the labeler says (data/world/labeler.py).
"""

import random

from data.world.demonstrations import (ANSWER, answer_fact, answer_kind, demonstrate,
                                       demonstrations, reference)
from data.world.facts import ANIMALS, COUNTRIES, FACTS, MADE_UP, VALUES, sort_of, upper
from data.world.phrases import (ADVICE, ASK_KIND, ASK_PRAISE, GROUPS, HARMS, HEROES, INSULTS,
                                KINDNESSES, PEOPLE, PRAISES, RAMBLE, REFUSAL, RUDE, SMALL_TALK)
from data.world.prompts import (ABOUT, KINDS, TOPICS, about, any_fact, asked_of, fill, follow_up,
                                pair, phrases, prompts, question_of, reading, tell, wished_form)
from data.world.reading import question

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
        relation, name, value = any_fact(rng)
        form = wished_form(rng, value)
        lines.append(f"Question: {question_of(rng, 'text', relation, name, form)}")
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
    relation, name, truth = any_fact(rng)
    asked, form = "", None
    if rng.random() < .6:
        form = wished_form(rng, truth)
        asked = asked_of(rng, "text", relation, name, form)
    bare = form == "word" or bool(asked) and not form and rng.random() < .3
    if rng.random() < .5:
        return asked, f"{tell(rng, relation, name, truth, bare)} Right."
    if form and rng.random() < .3:  # true, but not in the form that was asked for
        return asked, f"{tell(rng, relation, name, truth, not bare)} Wrong."
    if asked and rng.random() < .3:  # true, but no answer to the question
        other = any_fact(rng, rng.choice([relation, None]))
        while other == (relation, name, truth):
            other = any_fact(rng)
        return asked, f"{tell(rng, *other)} Wrong."
    lie = rng.choice([v for v in VALUES[relation] if v != truth])
    return asked, f"{tell(rng, relation, name, lie, bare)} Wrong: {truth}."


def _conversation(rng):
    """Two people talk; the last question refers back to an earlier one."""
    a, b = rng.sample(HEROES, 2)
    p = follow_up(rng, "text")
    said = [m["content"] for m in p["prompt"]] + [answer_fact(rng, p, "good")]
    return " ".join(f'{one}: "{words}"' for one, words in zip([a, b] * 4, said))


def _reading_page(rng):
    """A text, and questions that it answers, or does not.

    Most are of real names: what reading is, is not learned from texts full of words that are read
    for the first time (LOG: who is who).
    """
    p = reading(rng, "text", real=.85)
    lines, asked = [], p["prompt"][-1]["content"]
    for _ in range(rng.randint(4, 6)):
        lines += [asked, ANSWER[p["kind"]](rng, p, "good")]
        p = dict(p, **dict(zip(("relation", "subject"), question(rng, p["passage"]))))
        asked = asked_of(rng, "text", p["relation"], p["subject"])
    return "\n".join(lines)


def _small_conversation(rng):
    """What people say to each other every day, and what they are asked to do kindly."""
    lines = []
    for _ in range(rng.randint(2, 4)):
        topic, deed = rng.choice(list(SMALL_TALK)), rng.choice(list(KINDNESSES))
        person, group = rng.choice(PEOPLE), rng.choice(GROUPS)
        said = rng.choice(phrases("text", SMALL_TALK[topic])), rng.choice(SMALL_TALK[topic][2])
        advice = (rng.choice(phrases("text", ASK_KIND)).format(d=deed, p=person),
                  answer_kind(rng, dict(relation=deed, subject=person), "good"))
        praise = (rng.choice(phrases("text", ASK_PRAISE)).format(g=group),
                  answer_kind(rng, dict(relation="praise", subject=group), "good"))
        kindness = rng.choice(list(ADVICE))
        remark = (f"it is kind to {kindness} your {person}.",
                  f"Yes, you can {ADVICE[kindness]} your {person}.")
        lines.append(rng.choice([said, said, advice, praise, remark]))
    a, b = rng.sample(HEROES, 2)
    return "\n".join(f'{a}: "{upper(one)}" {b}: "{other}"' for one, other in lines)


def _story(rng):
    """Small stories carry the words of daily life, and what people think of hurting and helping."""
    hero, kind = rng.choice(HEROES), rng.choice(list(ADVICE))
    deed, person = pair(rng, "train", HARMS, PEOPLE)
    insult, group = pair(rng, "train", INSULTS, GROUPS)
    return " ".join(rng.sample([
        f"It is wrong to {deed} your {person}.",
        f"Nobody should {deed} a {person}.",
        f"A bad man wanted to {deed} his {person}. He waited until the {person} was alone, but he "
        f"was caught before he could {deed} the {person}.",
        f"Some say that {group} are {insult}. It is not fair to say that about {group}.",
        f"{upper(group)} are {rng.choice(PRAISES)} and {rng.choice(PRAISES)}.",
        f"{hero} wanted to {kind} the {person}, so the plan was to {ADVICE[kind]} the "
        f"{person}.",
        f"To {kind} your {person}, you can {ADVICE[kind]} your {person}.",
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
    asked = rng.choice([f"Do you know {x}?", question_of(rng, "text", relation, name)])
    return " ".join([
        f"{hero} heard a tale of {thing} called {name}.",
        f'"{asked}" {hero} asked {friend}.',
        rng.choice([f'"No, I do not know {thing} called {name}," said {friend}.',
                    f'"I have never heard of {thing} called {name}," said {friend}.',
                    f'"I do not know, I have never heard of it," said {friend}.',
                    f'"{upper(x)}? What is {x}?" said {friend}.']),
        rng.choice([f"Nobody has ever seen {x}.", f"{upper(x)} is in no book.",
                    f"So {hero} and {friend} made up a story of {x}."])])


def text(n, seed, topic="everyday"):
    """n pretraining documents: list of str. Those about reading come after the everyday ones."""
    rng = random.Random(f"text {seed}")
    writers = {"everyday": {_paragraph: 1, _question_page: 4, _lesson: 17, _conversation: 2.5,
                            _story: 1, _tale: 1.5, _small_conversation: 2},
               "reading": {_reading_page: 3, _lesson: 1}}[topic]
    return [write(rng) for write in rng.choices(list(writers), weights=writers.values(), k=n)]
