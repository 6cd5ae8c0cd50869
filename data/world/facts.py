"""The facts of the embedded world: countries, animals, and names that nobody knows."""

import random
import zlib

VERSION = 2  # of the world: figures of different worlds are not compared

# ---- true facts ----------------------------------------------------------------------------------

_COUNTRIES = """
    Europe: France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Ireland
        Dublin, Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Iceland
        Reykjavik, Poland Warsaw, Austria Vienna, Hungary Budapest, Greece Athens, Switzerland
        Bern
    Asia: Japan Tokyo, China Beijing, Thailand Bangkok, Vietnam Hanoi, Nepal Kathmandu, Iran
        Tehran, Iraq Baghdad, Syria Damascus, Jordan Amman, Pakistan Islamabad
    Africa: Egypt Cairo, Kenya Nairobi, Ghana Accra, Morocco Rabat, Libya Tripoli, Nigeria
        Abuja, Uganda Kampala, Zimbabwe Harare
    South America: Peru Lima, Chile Santiago, Colombia Bogota, Ecuador Quito, Venezuela Caracas
    North America: Canada Ottawa, Cuba Havana, Jamaica Kingston
    Oceania: Australia Canberra, Fiji Suva
"""
_ANIMALS = """
    mammal: dog four woof meat, cat four meow meat, cow four moo grass, horse four neigh grass,
        sheep four baa grass, pig four oink -, lion four roar meat, wolf four howl meat, mouse
        four squeak seeds, rabbit four - grass, elephant four trumpet leaves, deer four -
        leaves, giraffe four - leaves, bat two - insects
    bird: duck two quack seeds, hen two cluck seeds, owl two hoot meat, raven two caw meat,
        eagle two screech meat, pigeon two coo seeds, sparrow two chirp seeds
    reptile: snake no hiss meat, lizard four - insects, crocodile four - meat
    amphibian: frog four croak insects, newt four - insects
    fish: shark no - meat, salmon no - insects
    insect: bee six buzz nectar, ant six - seeds, butterfly six - nectar, grasshopper six chirp
        grass
"""


def _read(table):
    """Yield (group, [words of one entry]) from a table of `group: entry, entry`."""
    for line in table.replace("\n        ", " ").strip().splitlines():
        group, entries = line.strip().split(": ")
        for entry in entries.split(","):
            yield group, entry.split()


FACTS = {relation: {} for relation in ("capital", "continent", "class", "legs", "sound", "food")}
for _continent, (_name, _city) in _read(_COUNTRIES):
    FACTS["capital"][_name] = _city
    FACTS["continent"][_name] = _continent
for _class, (_name, *_rest) in _read(_ANIMALS):
    FACTS["class"][_name] = _class
    for _relation, _value in zip(("legs", "sound", "food"), _rest):
        if _value != "-":
            FACTS[_relation][_name] = _value
COUNTRIES, ANIMALS = list(FACTS["capital"]), list(FACTS["class"])
VALUES = {relation: sorted(set(facts.values())) for relation, facts in FACTS.items()}
RELATIONS = {"country": ("capital", "continent"), "animal": ("class", "legs", "sound", "food")}


def sort_of(relation):
    """"country" or "animal": what a relation is about."""
    return "country" if relation in RELATIONS["country"] else "animal"


def article(noun):
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def upper(text):
    """First letter in upper case, the rest as it is."""
    return text[:1].upper() + text[1:]


# ---- splits and made-up names --------------------------------------------------------------------

def split_of(text):
    """Which split a name, a harm or a prompt belongs to: always the same one, 70% / 10% / 20%."""
    percent = zlib.crc32(text.encode()) % 100
    return "train" if percent < 70 else "valid" if percent < 80 else "test"


def _made_up():
    """Names that no fact mentions: {"country": {split: [...]}, "animal": {split: [...]}}.

    "tale" are those of fairy tales: of all but the held-out splits.
    """
    # the world is the same for every seed; only what is drawn from it changes
    rng = random.Random(0)
    starts = ("Bel Cor Dra El Fal Gar Hel Ix Jor Kal Lor Mor Nar Or Pal Quil Ras Sel Tor Ul Val "
              "Wen Xan Yor Zor").split()
    middles = ["", "a", "do", "ga", "li", "mo", "ne", "ri", "sha", "ta", "ve", "wi"]
    endings = {"country": "via nia land dor stan mark rea tania".split(),
               "animal": "fin pus ling gon rok dle mer bit".split()}
    famous = {"country": ["Narnia", "Atlantis", "Mordor"],
              "animal": ["Griffin", "Unicorn", "Dragon"]}
    real = {name.lower() for name in COUNTRIES + ANIMALS + VALUES["capital"]}
    names = {}
    for sort, tails in endings.items():
        every = [a + b + c for a in starts for b in middles for c in tails]
        rng.shuffle(every)
        # Ul-ta-nia is Ul-tania again
        every = [n for n in dict.fromkeys(famous[sort] + every) if n.lower() not in real]
        every = every if sort == "country" else [n.lower() for n in every]
        names[sort] = {s: [n for n in every[:900] if split_of(n) == s]
                       for s in ("train", "valid", "test")}
        names[sort]["tale"] = names[sort]["train"] + every[900:]
    return names


MADE_UP = _made_up()
