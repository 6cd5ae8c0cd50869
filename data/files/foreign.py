"""Formats of published data sets: how a record of each becomes one of ours (data/files/records.py).

A record is of a format if it has the fields of the format's example, and of the same kind; it may
have more. `python -m data.files.foreign` prints the formats, who reads them, and their examples:
"""

import functools
import json
import re
from dataclasses import dataclass
from typing import Callable

from data.files.messages import (LABELS, answer, answered, conversation, history, is_learned,
                                 is_transcript, text_field, turns, written_messages)

# Fields that mean the same in every format.
COMMON = {"verdict", "weight", "train", "training", "system", "system_prompt", "role", "content",
          "from", "value"}
# What stages want: {field of ours: (what it is, who wants it)}.
WANTED = {"text": ("text", "gpt.py"), "response": ("answer", "sft.py"),
          "ranks": ("comparison", "reward.py"), "prompt": ("prompt", "ppo.py")}


@dataclass
class Format:
    name: str
    example: dict
    convert: Callable     # a record -> one of ours, or a list of them
    optional: tuple = ()  # names of fields that may be missing

    @functools.cached_property
    def kinds(self):
        """{field: what it holds} of the fields that a record of this format must have."""
        return {name: kind_of(x) for name, x in self.example.items() if name not in self.optional}

    @functools.cached_property
    def provided(self):
        """The fields of ours that stages want, keys of WANTED, and find in such records."""
        every = convert(self, self.example)
        return [field for field in WANTED if any(provides(ours, field) for ours in every)]

    @functools.cached_property
    def fields(self):
        """The names of the fields that are read, whatever they hold."""
        return COMMON | set(self.optional) | set(names(self.example))

    def fits(self, record):
        return all(kind_of(record.get(name)).startswith(kind) for name, kind in self.kinds.items())

    def unused(self, record):
        """The names of the fields of a record that nobody reads."""
        is_verdict = "instruction" not in record and str(record.get("label")).lower() in LABELS
        return [name for name in names(record)
                if name not in self.fields and not (name == "label" and is_verdict)]


def names(value):
    """The names of the fields that hold something, also of those within others."""
    for part in value if isinstance(value, list) else []:
        yield from names(part)
    for name, part in value.items() if isinstance(value, dict) else []:
        if part not in ("", []):
            yield name
            yield from names(part)


def kind_of(value):
    """What a field holds, in a word."""
    if isinstance(value, str):
        return "text, a transcript" if is_transcript(value) else "text"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        role = value[0].get("role", value[0].get("from"))
        one = "answer" if len(value) == 1 else "conversation"
        return {None: "list", "assistant": one}.get(role, "conversation")
    if isinstance(value, dict):
        return "tree" if "replies" in value else "object"
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def provides(ours, field):
    """Whether a record of ours gives a stage what it wants."""
    others = {"text": {"prompt"}, "ranks": {"rating", "verdict"}}
    return bool(ours.keys() & {field, *others.get(field, ())})


def recognise(record, field):
    """A record of any known format -> (the format, a list of ours); ValueError if it is of none.

    Of several formats that fit, the first that provides the field a stage wants counts.
    """
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    fitting = [form for form in FORMATS if form.fits(record)]
    for form in fitting:
        converted = convert(form, record)
        if field in form.provided or any(provides(ours, field) for ours in converted):
            return form, converted
    if "prompt" in record:
        return OWN, convert(OWN, record)
    fields = ", ".join(str(name)[:40] for name in list(record)[:12]) or "none"
    if fitting:
        what, stage = WANTED[field]
        raise ValueError(f"{fitting[0].name}: such records hold no {what} for {stage} in a field "
                         f"that this code knows: they hold {fields}")
    raise ValueError(f"its fields are {fields}: this is none of the formats that python -m "
                     "data.files.foreign lists")


def convert(form, record):
    """A record of a format -> records of ours, with what it says beside the texts.

    A system prompt begins the conversation; a label calls the answer good or bad; a weight of 0, or
    a false `train`, says that it is not to be learned.
    """
    converted = form.convert(record)
    every = converted if isinstance(converted, list) else [converted]
    label = record.get("label")
    for ours in every:
        if "response" in ours and "verdict" in record:
            ours["verdict"] = record["verdict"]
        # Beside an instruction a label is a class; of a conversation it is the last answer's.
        if "response" in ours and "instruction" not in record and not ours.get("part"):
            if isinstance(label, (int, float)) and label not in (0, 1):
                raise ValueError(f'"label" is {label}, neither good (1) nor bad (0): rename the '
                                 "field if it means something else")
            if str(label).lower() in LABELS:
                ours["verdict"] = LABELS[str(label).lower()]
        if not is_learned(record):
            ours["weight"] = 0
        for name in ("system", "system_prompt"):
            text = record.get(name)
            if text is None or text == "" or "prompt" not in ours:
                continue
            if not isinstance(text, str) or re.fullmatch(r"\w+", text.strip(), re.ASCII):
                raise ValueError(f'"{name}" is {str(text)[:40]!r}, no sentence: rename the field '
                                 "if it is no system prompt")
            for messages in {"prompt", "whole"} & ours.keys():
                ours[messages] = conversation([dict(role="system", content=text),
                                               *ours[messages]])
    return every


# ---- comparisons ---------------------------------------------------------------------------------


def ranked(prompt, responses, scores):
    """Answers with scores, higher for the better one -> a ranking, and the best as the response.

    Of more than nine the best five and the worst four.
    """
    if any(score != score for score in scores):
        raise ValueError("a score is not a number")
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    order = order if len(order) <= 9 else order[:5] + order[-4:]
    ours = dict(prompt=prompt, **({"response": responses[order[0]]} if order else {}))
    if len(order) > 1:
        ours.update(responses=[responses[i] for i in order], left_out=len(scores) - len(order),
                    ranks=[1 + sum(scores[j] > scores[i] for j in order) for i in order])
    return ours


def preferred(prompt, one, other, best):
    """Two answers, of which number `best`, 0 or 1, was preferred -> a ranking."""
    if best not in (0, 1):
        raise ValueError("the answer that was preferred must be number 0 or 1")
    return ranked(turns(prompt), [one, other], [best == 0, best == 1])


def two_conversations(r):
    """Conversations that differ in their last answer -> a ranking."""
    both = [turns(r["chosen"]), turns(r["rejected"])]
    if any(not messages or messages[-1]["role"] != "assistant" for messages in both):
        raise ValueError("one of the two conversations has no answer")
    (*prompt, chosen), (*other, rejected) = both
    if prompt != other:
        raise ValueError("the two conversations must differ in their last answer, and nowhere else")
    return preferred(prompt, chosen["content"], rejected["content"], 0)


def tldr(r):
    """A post of Reddit and a summary, or two summaries, of which one was chosen."""
    about = r.get("info", r)
    where = f"SUBREDDIT: r/{about['subreddit']}\n\n" if about.get("subreddit") else ""
    post = about.get("post") or about.get("article") or ""
    prompt = f"{where}TITLE: {about.get('title') or ''}\n\nPOST: {post}\n\nTL;DR:"
    if "summary" in r:
        return dict(prompt=turns(prompt), response=r["summary"].strip())
    one, other = [text_field(summary, "text").strip() for summary in r["summaries"]]
    return preferred(prompt, one, other, r["choice"])


def branches(question, before=()):
    """A question of OpenAssistant's trees, and all that follow it, each with its ranked replies."""
    def good(replies):
        return [reply for reply in replies if not reply.get("deleted")
                and reply.get("review_result") is not False]

    before = [*before, dict(role="user", content=text_field(question, "text"))]
    replies = good(question["replies"])
    compared = [reply for reply in replies if reply.get("rank") is not None] or replies[:1]
    every = [ranked(before, [text_field(reply, "text") for reply in compared],
                    [-(reply.get("rank") or 0) for reply in compared])]
    for reply in replies:
        for following in good(reply["replies"]):
            every += branches(following, [*before, dict(role="assistant", content=reply["text"])])
    return every


def question(r):
    """An instruction or a question, with its input, and an answer or two."""
    ours = {name: value for name, value in r.items() if name in QUESTION}
    for name in ("output", "response", "answer"):
        if name in r:
            ours.setdefault("response", r[name])
    ours |= {name: r[f"response_{name}"] for name in ("chosen", "rejected")
             if f"response_{name}" in r}
    parts = [r[name] for name in ("instruction", "question") if r.get(name)]
    return own(dict(ours, prompt="\n\n".join(parts)))


def squad(r):
    """A text, a question, and answers that the text gives; none where it does not say."""
    found = r["answers"].get("text") or []
    return question({**{name: r[name] for name in ("context", "question")},
                     **({"answer": found[0]} if found else {})})


QUESTION = ("chosen", "rejected", "input", "context", "history")


def own(r):
    """A record of ours, checked; TRL's and KTO's are alike, with messages in the place of texts.

    Before the question come what was said earlier and a context to read; after it, an input.
    """
    if isinstance(r.get("chosen"), str) and len(written_messages(r["chosen"]) or ()) > 1:
        return two_conversations(r)
    text, more = [dict(role="system", content=r.get(name) or "") for name in ("context", "input")]
    asked = turns(r["prompt"]) if r["prompt"] or not text["content"] + more["content"] else []
    ours = {name: value for name, value in r.items() if name in OWN.optional and name != "response"}
    ours["prompt"] = history(r.get("history") or []) + conversation(
        [*asked[:-1], text, *asked[-1:], more])
    from_table = isinstance(r["prompt"], str) and is_transcript(r["prompt"])  # with blanks at ends
    for name in ("response", "completion", "chosen"):
        if name in r:
            text = answer(r, name)
            blanks = from_table or name == "completion"
            ours.setdefault("response", text.strip() if blanks else text)
    if "chosen" in r and "rejected" in r and "ranks" not in r:
        ours.update(responses=[answer(r, "chosen"), answer(r, "rejected")], ranks=[1, 2])
    elif "chosen" in r and "ranks" not in r:
        raise ValueError('"chosen" needs "rejected" beside it')
    if from_table and "responses" in ours:
        ours["responses"] = [text.strip() for text in ours["responses"]]
    return ours


# ---- formats: the first that fits counts ---------------------------------------------------------

USER, YES, NO = [[dict(role=role, content=text)] for role, text in
                 (("user", "Hi"), ("assistant", "Yes?"), ("assistant", "No"))]
HH = "\n\nHuman: Hi\n\nAssistant:"
FORMATS = [
    Format("Nectar",
           dict(prompt=HH, answers=[dict(answer="Yes?", rank=1), dict(answer="No", rank=2)]),
           lambda r: ranked(turns(r["prompt"]), [text_field(a, "answer") for a in r["answers"]],
                            [-a["rank"] for a in r["answers"]])),
    Format("MedicalGPT: a conversation and two answers",
           dict(conversations=[{"from": "human", "value": "Hi"}], chosen="Yes?", rejected="No"),
           lambda r: own({**r, "prompt": r["conversations"]})),
    Format("MedicalGPT: a question and two answers",
           dict(question="Hi", response_chosen="Yes?", response_rejected="No"), question, QUESTION),
    Format("Anthropic HH-RLHF", dict(chosen=f"{HH} Yes?", rejected=f"{HH} No"), two_conversations),
    Format("TRL and UltraFeedback binarized: two conversations",
           dict(chosen=USER + YES, rejected=USER + NO), two_conversations),
    Format("UltraFeedback",
           dict(instruction="Hi", completions=[dict(response="Yes?", overall_score=8.5),
                                               dict(response="No", overall_score=4.0)]),
           lambda r: ranked(turns(r["instruction"]),
                            [text_field(c, "response") for c in r["completions"]],
                            [float(c["overall_score"]) for c in r["completions"]])),
    Format("TRL: a prompt and two answers", dict(prompt=USER, chosen=YES, rejected=NO), own),
    Format("TRL: a prompt and a completion", dict(prompt=USER, completion=YES), own),
    Format("KTO: answers called good or bad", dict(prompt="Hi", completion="Yes?", label=True),
           own),
    Format("OpenAI preferences",
           dict(input=dict(messages=USER), preferred_output=YES, non_preferred_output=NO),
           lambda r: preferred(r["input"]["messages"], answer(r, "preferred_output"),
                               answer(r, "non_preferred_output"), 0)),
    Format("PKU-SafeRLHF",
           dict(prompt="Hi", response_0="No", response_1="Yes?", better_response_id=1),
           lambda r: preferred(r["prompt"], r["response_0"], r["response_1"],
                               r["better_response_id"])),
    Format("Stanford SHP", dict(history="Hi", human_ref_A="Yes?", human_ref_B="No", labels=1),
           lambda r: preferred(r["history"], r["human_ref_A"], r["human_ref_B"], 1 - r["labels"])),
    Format("HelpSteer", dict(prompt="Hi", response="Yes?", helpfulness=4),
           lambda r: dict(prompt=turns(r["prompt"]), response=r["response"],
                          rating=r["helpfulness"])),
    Format("WebGPT comparisons",
           dict(question=dict(full_text="Hi"), answer_0="Yes?", score_0=1.0, answer_1="No",
                score_1=-1.0),
           lambda r: ranked(turns(r["question"]["full_text"]), [r["answer_0"], r["answer_1"]],
                            [float(r["score_0"]), float(r["score_1"])])),
    Format("OpenAI TL;DR comparisons",
           dict(info=dict(subreddit="cats", title="A cat", post="It is old."),
                summaries=[dict(text=" An old cat."), dict(text=" A dog.")], choice=0), tldr),
    Format("OpenAI TL;DR posts",
           dict(subreddit="cats", title="A cat", post="It is old.", summary=" An old cat."), tldr,
           ("subreddit", "title")),
    Format("OpenAssistant trees",
           dict(prompt=dict(text="Hi", role="prompter", replies=[
               dict(text="Yes?", role="assistant", rank=0, replies=[]),
               dict(text="No", role="assistant", rank=1, replies=[])])),
           lambda r: branches(r["prompt"])),
    Format("Alpaca", dict(instruction="Sort.", input="b a", output="a b"), question,
           QUESTION),
    Format("Dolly", dict(instruction="Sort.", context="b a", response="a b"), question,
           QUESTION),
    Format("SQuAD",
           dict(context="A plum is a fruit.", question="What is a plum?",
                answers=dict(text=["a fruit"], answer_start=[10])), squad),
    Format("OpenOrca", dict(question="Hi", response="Yes?"), question, QUESTION),
    Format("GSM8K", dict(question="Hi", answer="Yes?"), question, QUESTION),
    Format("questions with two answers", dict(question="Hi", chosen="Yes?", rejected="No"),
           question, ("context", "input", "history")),
    Format("ShareGPT, Vicuna",
           dict(conversations=[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]),
           lambda r: answered(r["conversations"])),
    Format("OpenAI chat", dict(messages=USER + YES), lambda r: answered(r["messages"])),
    Format("documents", dict(text="A plum is a fruit."), lambda r: dict(text=r["text"])),
]
OWN = Format("our own format", {}, own,
             ("prompt", "response", "completion", "chosen", "rejected", "responses", "ranks",
              "rating", "text", "input", "context", "history", "labeler", "left_out", "kind",
              "subject", "relation", "form", "passage", "distance"))


def table():
    """All formats, who reads them, and an example of each."""
    lines = []
    for form in FORMATS:
        readers = ", ".join(WANTED[field][1] for field in form.provided)
        lines += ["", f"{form.name} ({readers})", f"    {json.dumps(form.example)}"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(__doc__ + table())
