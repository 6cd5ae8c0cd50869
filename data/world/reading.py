"""Texts to read, and questions that the text decides, not the almanac (a closed domain).

A text states something of a country and of an animal: of made-up names, or what is false of real
ones. It is asked about one of the two, as often what it says as what it does not say, so neither
the question alone nor the text alone tells the answer. Of two names of one sort a model of this
size does not learn which value is whose (LOG: who is who).
"""

from data.world.facts import FACTS, RELATIONS, VALUES, sort_of


def statements(rng, names, false=False):
    """Two to four statements, one of a country, the others of an animal -> [relation, name, value].

    names: {"country": [...], "animal": [...]}. false: of real names, what contradicts the almanac.
    """
    text = []
    for sort, n in (("country", 1), ("animal", rng.randint(1, 3))):
        name = rng.choice(_KNOWN[sort] if false else names[sort])
        relations = rng.sample(RELATIONS[sort], n)
        text += [[relation, name, _value(rng, relation, name)] for relation in relations]
    rng.shuffle(text)
    return text


# The real names of which every relation is known.
_KNOWN = {sort: [name for name in FACTS[relations[0]] if all(name in FACTS[r] for r in relations)]
          for sort, relations in RELATIONS.items()}


def _value(rng, relation, name):
    """Something to say of a name, not true in the almanac."""
    return rng.choice([v for v in VALUES[relation] if v != FACTS[relation].get(name)])


def portrait(rng, names):
    """A text that says two things of one name and one of the other -> (text, the name)."""
    text = statements(rng, names)
    relation, name, _ = rng.choice(text)
    other = rng.choice([r for r in RELATIONS[sort_of(relation)] if r != relation])
    beside = rng.choice([statement for statement in text if statement[1] != name])
    text = [[r, name, _value(rng, r, name)] for r in (relation, other)] + [beside]
    rng.shuffle(text)
    return text, name


def question(rng, text):
    """What to ask about a text -> (relation, name): half of the time it does not say it."""
    asked = rng.choice(sorted({name for _, name, _ in text}))
    said = [relation for relation, name, _ in text if name == asked]
    others = [r for r in RELATIONS[sort_of(said[0])] if r not in said]
    return rng.choice(said if rng.random() < .5 or not others else others), asked


def says(text, relation, name):
    """What a text says -> a value, or None."""
    return next((v for r, n, v in text if (r, n.lower()) == (relation, name.lower())), None)


def told(p):
    """Whether the text of a prompt says the fact that is asked for; None of other prompts."""
    if p["kind"] != "reading" or p["relation"] == "about":
        return None
    return says(p["passage"], p["relation"], p["subject"]) is not None


def is_passage(text):
    """Whether this is a list of [relation, name, value], as files may hold anything."""
    return isinstance(text, list) and all(
        isinstance(x, list) and list(map(type, x)) == [str] * 3 and x[0] in FACTS for x in text)
