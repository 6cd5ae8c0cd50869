"""Formats of published data sets: how a record of each becomes one of ours (data/files/records.py).

Each function below converts the records of one format, and its docstring is such a record. `python
-m data.files.foreign` prints the list:
"""

import functools
import json
import re
from dataclasses import dataclass
from typing import Callable

OURS = "our own format"
FORMATS = []
# What a stage wants of a record: the fields of ours that give it, and who wants it.
GIVES = {"text": ("text", "prompt"), "answer": ("response", "completion", "chosen"),
         "comparison": ("ranks", "chosen", "verdict", "rating"), "prompt": ("prompt",)}
STAGES = {"text": "gpt.py", "answer": "sft.py", "comparison": "reward.py", "prompt": "ppo.py"}


class NoFormat(ValueError):
    """A record of no known format, or of one that is not for this stage."""


@dataclass
class Format:
    name: str
    fields: dict       # {name: type or test}, by which a record is recognised
    convert: Callable  # a record -> one of ours, or a list of them

    def fits(self, record):
        return all(isinstance(value, kind) if isinstance(kind, (type, tuple)) else kind(value)
                   for name, kind in self.fields.items() for value in [dict.get(record, name)])

    def read(self, record):
        """A record -> a list of ours."""
        found = self.convert(record)
        return [obey(record, ours) for ours in (found if isinstance(found, list) else [found])]

    @property
    def example(self):
        return json.loads(self.convert.__doc__)

    @functools.cached_property
    def gives(self):
        """What such records hold, of the keys of GIVES."""
        return [wanted for wanted in GIVES
                if any(gives(ours, wanted) for ours in self.read(self.example))]


def published(name, **fields):
    """Decorate a function that converts records: put it into the list of formats."""
    def add(convert):
        FORMATS.append(Format(name, fields, convert))
        return convert
    return add


def gives(record, wanted):
    """Whether a record of ours holds what is wanted, a key of GIVES."""
    return not record.keys().isdisjoint(GIVES[wanted])


def recognise(record, wanted):
    """A record of any known format -> (the format's name, a list of records of ours).

    Of several formats that fit, the first that gives what is wanted counts; what this record lacks
    of it is the caller's to say. NoFormat if none does.
    """
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    fitting = [form for form in FORMATS if form.fits(record)]
    for form in fitting:
        found = form.read(record)
        if wanted in form.gives or any(gives(ours, wanted) for ours in found):
            return form.name, found
    if "prompt" in record:
        return OURS, [obey(record, record)]
    if fitting:
        raise NoFormat(f"{fitting[0].name}: such records hold no {wanted} for {STAGES[wanted]}")
    names = ", ".join(list(record)[:12]) or "none"
    raise NoFormat(f"its fields are {names}: this is none of the formats that python -m "
                   "data.files.foreign lists")


# ---- what fields say beside the texts, whatever the format ---------------------------------------

LABELS = {**dict.fromkeys(("true", "1", "1.0"), "good"),
          **dict.fromkeys(("false", "0", "0.0"), "bad")}


def obey(record, ours):
    """Our record with what the original says beside the texts.

    A system prompt begins the conversation; a label calls the answer good or bad; a weight of 0, or
    a false `train`, says that it is not to be learned.
    """
    label = str(dict.get(record, "label")).lower()
    alone = not ours.keys().isdisjoint(("response", "completion")) and not record.keys().isdisjoint(
        ("prompt", "completion", "messages", "conversations"))
    if alone and label in LABELS:
        ours["verdict"] = LABELS[str(record["label"]).lower()]
    if not is_learned(record):
        ours["weight"] = 0
    for name in ("system", "system_prompt"):
        if isinstance(dict.get(record, name), str) and "prompt" in ours:
            system = dict(role="system", content=record[name])
            ours["prompt"] = conversation([system, *turns(ours["prompt"])])
    return ours


def is_learned(part):
    """Whether a record or a message may be learned; weight 0 or a false `train` forbid it."""
    forbidding = [part[name] for name in ("weight", "train", "training")
                  if str(dict.get(part, name)).lower() in ("0", "0.0", "false")]
    return not forbidding


# ---- conversations -------------------------------------------------------------------------------


def text_field(record, name):
    """A field that must be a text with a word in it."""
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'"{name}" must be a text that is not empty')
    return value


def is_transcript(text):
    return (isinstance(text, str) and text.lstrip().startswith("Human:")
            and "\n\nAssistant:" in text)


def turns(prompt):
    """A prompt, which is a text, a transcript or a list of messages -> messages.

    "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant:" is a transcript.
    """
    if not isinstance(prompt, str):
        return conversation(prompt)
    if not is_transcript(prompt):
        return [{"role": "user", "content": prompt}]
    parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + prompt.strip())
    found = [{"role": "user" if who == "Human" else "assistant", "content": said.strip()}
             for who, said in zip(parts[1::2], parts[2::2])]
    return found if found[-1]["content"] else found[:-1]


ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user",
         "prompter": "user", "assistant": "assistant", "gpt": "assistant", "bot": "assistant"}


def _message(m):
    """A message of any format -> (role, text)."""
    try:
        role = m["role"] if "role" in m else m["from"]
        said = m["content"] if "content" in m else m["value"]
    except (KeyError, TypeError):
        raise ValueError('a message must be {"role": "system", "user" or "assistant", "content": '
                         "text}") from None
    if role not in ROLES:
        raise ValueError(f"a message is of the role {role!r}, which this code does not know")
    pieces = said if isinstance(said, list) else [{"text": said}]  # OpenAI's may be in pieces
    if not all(isinstance(piece, dict) and isinstance(piece.get("text"), str) for piece in pieces):
        raise ValueError("the content of a message must be a text")
    said = "".join(piece["text"] for piece in pieces)
    return ROLES[role], said


def conversation(messages):
    """Messages of any format -> ours, whose roles are user and assistant.

    What the system says after a user's message ends it; elsewhere it begins the next one.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError('"prompt" must be a text or a list of {"role": "user" or "assistant", '
                         '"content": text}')
    found, system = [], []
    for role, said in map(_message, messages):
        if role == "system" and not said.strip():
            continue
        if role == "system" and found and found[-1]["role"] == "user":
            found[-1]["content"] += "\n\n" + said
        elif role == "system":
            system.append(said)
        else:
            if role == "assistant" and system:
                found.append({"role": "user", "content": "\n\n".join(system)})
                system = []
            found.append({"role": role, "content": "\n\n".join([*system, said])})
            system = []
    return found + [{"role": "user", "content": "\n\n".join(system)}] * bool(system)


def answered(messages):
    """A conversation -> its prompt and its last answer that is to be learned, if there is one.

    `whole`: the conversation, if the user has spoken last: a prompt that nobody has answered.
    """
    roles = [_message(m)[0] for m in messages]
    learned = [i for i, m in enumerate(messages) if roles[i] == "assistant" and is_learned(m)]
    if learned and learned[-1] > 0:
        last = learned[-1]
        found = dict(prompt=conversation(messages[:last]), response=_message(messages[last])[1])
        return dict(found, whole=conversation(messages)) if roles[-1] == "user" else found
    while roles and roles[-1] == "assistant":
        roles.pop()
    return dict(prompt=conversation(messages[:len(roles)]))


def pair(chosen, rejected):
    """Two conversations that differ in their last answer -> a comparison."""
    if any(not messages or _message(messages[-1])[0] != "assistant"
           for messages in (chosen, rejected)):
        raise ValueError("one of the two conversations has no answer")
    one, other = answered(chosen), answered(rejected)
    if one["prompt"] != other["prompt"]:
        raise ValueError("the two conversations must differ in their last answer, and nowhere else")
    return dict(prompt=one["prompt"], chosen=one["response"], rejected=other["response"])


def nine(scored):
    """[(score, text)] -> the best five and the worst four, the best first; of nine or fewer, all.
    """
    scored = sorted(scored, key=lambda x: -x[0])
    return scored if len(scored) <= 9 else scored[:5] + scored[-4:]


def ranked(prompt, responses, scores):
    """Answers with scores, higher for the better one -> a ranking, and the best as the response."""
    if any(score != score for score in scores):
        raise ValueError("a score is not a number")
    ours, found = dict(prompt=prompt), nine(zip(scores, responses))
    if found:
        ours["response"] = found[0][1]
    if len(found) > 1:
        ours.update(responses=[text for _, text in found], left_out=len(scores) - len(found),
                    ranks=[1 + sum(other > score for other, _ in found) for score, _ in found])
    return ours


def preferred(prompt, responses, best):
    """Two answers, of which number `best`, 0 or 1, was preferred -> a ranking."""
    if best not in (0, 1):
        raise ValueError("the answer that was preferred must be number 0 or 1")
    return ranked(prompt, responses, [best == 0, best == 1])


def answer(value, name):
    """A field that is a text, or a list that holds one message of the assistant -> the text."""
    if isinstance(value, str):
        return value
    found = conversation(value)
    if len(found) != 1 or found[0]["role"] != "assistant":
        raise ValueError(f'"{name}" must be one message of the assistant')
    return found[0]["content"]


# ---- formats: the first that fits counts ---------------------------------------------------------


@published("Anthropic HH-RLHF", chosen=is_transcript)
def hh_rlhf(r):
    r"""{"chosen": "\n\nHuman: Hi\n\nAssistant: Yes?", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}
    """
    return pair(turns(r["chosen"]), turns(text_field(r, "rejected")))


@published("prompts that are transcripts", prompt=is_transcript)
def transcript(r):
    r"""{"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Yes?", "rejected": " No"}"""
    def strip(value):
        return [strip(x) for x in value] if isinstance(value, list) else (
            value.strip() if isinstance(value, str) else value)

    names = ("response", "completion", "chosen", "rejected", "responses", "ranks", "verdict")
    found = {name: strip(r[name]) for name in names if name in r}
    return dict(found, prompt=turns(r["prompt"]))


@published("UltraFeedback", instruction=str, completions=list)
def ultrafeedback(r):
    """{"instruction": "Hi", "completions": [{"response": "Yes?", "overall_score": 8.5},
    {"response": "No", "overall_score": 4.0}]}"""
    return ranked(r["instruction"], [text_field(c, "response") for c in r["completions"]],
                  [float(c["overall_score"]) for c in r["completions"]])


@published("TRL and UltraFeedback binarized: two conversations",
           chosen=lambda x: isinstance(x, list) and x and _message(x[0])[0] != "assistant")
def conversations(r):
    """{"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}],
    "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No"}]}"""
    return pair(r["chosen"], r["rejected"])


@published("TRL: a prompt and two answers", prompt=(str, list), chosen=list, rejected=list)
def preferences(r):
    """{"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content":
    "Yes?"}], "rejected": [{"role": "assistant", "content": "No"}]}"""
    found = {name: answer(r[name], name) for name in ("chosen", "rejected")}
    return dict(found, prompt=turns(r["prompt"]))


@published("TRL: a prompt and a completion", prompt=list, completion=list)
def completions(r):
    """{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant",
    "content": "Yes?"}]}"""
    return dict(prompt=turns(r["prompt"]), response=answer(r["completion"], "completion"))


@published("OpenAI preferences", input=dict, preferred_output=list, non_preferred_output=list)
def openai_preferences(r):
    """{"input": {"messages": [{"role": "user", "content": "Hi"}]}, "preferred_output": [{"role":
    "assistant", "content": "Yes?"}], "non_preferred_output": [{"role": "assistant", "content":
    "No"}]}"""
    return dict(prompt=conversation(r["input"]["messages"]),
                chosen=answer(r["preferred_output"], "preferred_output"),
                rejected=answer(r["non_preferred_output"], "non_preferred_output"))


@published("PKU-SafeRLHF", prompt=str, response_0=str, response_1=str, better_response_id=int)
def safe_rlhf(r):
    """{"prompt": "Hi", "response_0": "No", "response_1": "Yes?", "better_response_id": 1}"""
    return preferred(r["prompt"], [r["response_0"], r["response_1"]], r["better_response_id"])


@published("Stanford SHP", history=str, human_ref_A=str, human_ref_B=str, labels=int)
def shp(r):
    """{"history": "Hi", "human_ref_A": "Yes?", "human_ref_B": "No", "labels": 1}"""
    best = 1 - r["labels"]  # the label is 1 if A was preferred
    return preferred(r["history"], [r["human_ref_A"], r["human_ref_B"]], best)


@published("HelpSteer", prompt=str, response=str, helpfulness=(int, float))
def helpsteer(r):
    """{"prompt": "Hi", "response": "Yes?", "helpfulness": 4}"""
    return dict(prompt=r["prompt"], response=r["response"], rating=r["helpfulness"])


@published("WebGPT comparisons", question=dict, answer_0=str, answer_1=str)
def webgpt(r):
    """{"question": {"full_text": "Hi"}, "answer_0": "Yes?", "score_0": 1.0, "answer_1": "No",
    "score_1": -1.0}"""
    return ranked(r["question"]["full_text"], [r["answer_0"], r["answer_1"]],
                  [float(r["score_0"]), float(r["score_1"])])


@published("OpenAI TL;DR comparisons", info=dict, summaries=list, choice=int)
def tldr_comparisons(r):
    """{"info": {"subreddit": "cats", "title": "A cat", "post": "It is old."}, "summaries":
    [{"text": " An old cat."}, {"text": " A dog."}], "choice": 0}"""
    one, other = [text_field(summary, "text").strip() for summary in r["summaries"]]
    return preferred(_post(r["info"]), [one, other], r["choice"])


@published("OpenAI TL;DR posts", post=str, summary=str)
def tldr_posts(r):
    """{"subreddit": "cats", "title": "A cat", "post": "It is old.", "summary": " An old cat."}"""
    return dict(prompt=_post(r), response=r["summary"].strip())


def _post(about):
    where = f"SUBREDDIT: r/{about['subreddit']}\n\n" if about.get("subreddit") else ""
    post = about.get("post") or about.get("article") or ""
    return f"{where}TITLE: {about.get('title') or ''}\n\nPOST: {post}\n\nTL;DR:"


@published("OpenAssistant trees", prompt=lambda x: isinstance(x, dict) and "replies" in x)
def open_assistant(r):
    """{"prompt": {"text": "Hi", "role": "prompter", "replies": [{"text": "Yes?", "role":
    "assistant", "rank": 0, "replies": []}, {"text": "No", "role": "assistant", "rank": 1,
    "replies": []}]}}"""
    return list(_branches(r["prompt"], []))


def _branches(asked, before):
    """A question of a tree and all that follow it, each with its ranked replies."""
    def good(replies):
        return [reply for reply in replies if not reply.get("deleted")
                and reply.get("review_result") is not False]

    before = [*before, dict(role="user", content=asked["text"])]
    replies = good(asked["replies"])
    compared = [reply for reply in replies if reply.get("rank") is not None] or replies[:1]
    yield ranked(before, [text_field(reply, "text") for reply in compared],
                 [-(reply.get("rank") or 0) for reply in compared])
    for reply in replies:
        for question in good(reply["replies"]):
            yield from _branches(question, [*before, dict(role="assistant", content=reply["text"])])


@published("Alpaca", instruction=str, output=str)
def alpaca(r):
    """{"instruction": "Sort.", "input": "b a", "output": "a b"}"""
    asked = "\n\n".join(text for text in (r["instruction"], r.get("input")) if text)
    history = [turn for pair in r.get("history") or [] for turn in pair]
    before = [dict(role=("user", "assistant")[n % 2], content=text)
              for n, text in enumerate(history)]
    pair = {name: r[name] for name in ("chosen", "rejected") if name in r}
    return dict(pair, prompt=[*before, *turns(asked)], response=r["output"])


@published("Dolly", instruction=str, response=str)
def dolly(r):
    """{"instruction": "Sort.", "context": "b a", "response": "a b"}"""
    asked = "\n\n".join(text for text in (r["instruction"], r.get("context")) if text)
    return dict(prompt=asked, response=r["response"])


@published("questions and answers (OpenOrca, GSM8K)", question=str,
           prompt=lambda x: x is None)
def questions(r):
    """{"question": "Hi", "response": "Yes?"}"""
    found = {name: r[name] for name in ("chosen", "rejected") if name in r}
    answers = [r[name] for name in ("response", "answer") if name in r]
    return dict(found, prompt=r["question"], **({"response": answers[0]} if answers else {}))


@published("ShareGPT, Vicuna", conversations=list)
def sharegpt(r):
    """{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]}"""
    return answered(r["conversations"])


@published("OpenAI chat", messages=list)
def chat(r):
    """{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}
    """
    return answered(r["messages"])


@published("KTO: answers called good or bad", prompt=str, completion=str,
           label=lambda x: str(x).lower() in LABELS)
def kto(r):
    """{"prompt": "Hi", "completion": "Yes?", "label": true}"""
    return dict(prompt=r["prompt"], response=r["completion"])


@published("documents", text=str)
def texts(r):
    """{"text": "A plum is a fruit."}"""
    return dict(text=r["text"])


def table():
    """All formats, who reads them, and an example of each."""
    lines = []
    for form in FORMATS:
        readers = ", ".join(stage for wanted, stage in STAGES.items() if wanted in form.gives)
        lines += ["", f"{form.name} ({readers})", f"    {json.dumps(form.example)}"]
    return "\n".join(lines)


__doc__ += table()

if __name__ == "__main__":
    print(__doc__)
