"""Formats of published data sets: how a record of each becomes one of ours (data/files/records.py).

A record is of a format if it has the fields of the format's example, and of the same kind; it may
have more. `python -m data.files.foreign` prints the formats, who reads them, and their examples:
"""

import ast
import contextlib
import json
import re
from dataclasses import dataclass
from typing import Callable

OURS = "our own format"
# Fields that mean the same in every format.
COMMON = {"verdict", "weight", "train", "training", "system", "system_prompt", "role", "content",
          "from", "value"}
STAGES = {"text": "gpt.py", "response": "sft.py", "ranks": "reward.py", "prompt": "ppo.py"}
WANTED = {"text": "text", "response": "answer", "ranks": "comparison", "prompt": "prompt"}


@dataclass
class Format:
    name: str
    example: dict
    convert: Callable     # a record -> one of ours, or a list of them
    optional: tuple = ()  # names of fields that may be missing

    def fits(self, record):
        return all(kind_of(record.get(name)).startswith(kind_of(x))
                   for name, x in self.example.items() if name not in self.optional)

    def provides(self, field):
        """Whether a stage finds the field of ours that it wants, a key of STAGES."""
        return any(provides(ours, field) for ours in convert(self, self.example))

    def unused(self, record):
        """The names of the fields of a record that nobody reads."""
        known = COMMON | set(self.optional) | set(names(self.example))
        if "instruction" not in record and str(record.get("label")).lower() in LABELS:
            known |= {"label"}
        return [name for name in names(record) if name not in known]


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
    fields = ", ".join(str(name)[:40] for name in list(record)[:12]) or "none"
    fitting = [form for form in FORMATS if form.fits(record)]
    for form in fitting:
        converted = convert(form, record)
        if form.provides(field) or any(provides(ours, field) for ours in converted):
            return form, converted
    if "prompt" in record:
        return OWN, convert(OWN, record)
    if fitting:
        raise ValueError(f"{fitting[0].name}: such records hold no {WANTED[field]} for "
                         f"{STAGES[field]} in a field that this code knows: they hold {fields}")
    raise ValueError(f"its fields are {fields}: this is none of the formats that python -m "
                     "data.files.foreign lists")


LABELS = {"true": "good", "1": "good", "1.0": "good", "false": "bad", "0": "bad", "0.0": "bad"}


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


def is_learned(part):
    """Whether a record or a message may be learned; weight 0 or a false `train` forbid it."""
    values = {name: str(part.get(name)).lower() for name in ("weight", "train", "training")}
    for name, value in values.items():
        if value not in ("none", "", *LABELS):
            raise ValueError(f'"{name}" is {value}, and only 0 and 1 are known: rename the field '
                             "if it means something else")
    return not {"0", "0.0", "false"} & set(values.values())


# ---- conversations -------------------------------------------------------------------------------

ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user",
         "prompter": "user", "assistant": "assistant", "gpt": "assistant", "bot": "assistant"}


def text_field(record, name):
    """A field that must be a text with a word in it."""
    if not isinstance(value := record.get(name), str) or not value.strip():
        raise ValueError(f'"{name}" must be a text that is not empty')
    return value


def is_transcript(text):
    start, end = text.lstrip()[:6], text.rstrip()[-10:]
    return start == "Human:" and "\n\nAssistant:" in text or (
        start in ("Human:", "User: ") and end == "Assistant:")


def turns(prompt):
    """A prompt, which is a text, a transcript or a list of messages -> messages.

    "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant:" is a transcript; a list may
    be written as a text, as tables have it.
    """
    if not isinstance(prompt, str):
        return conversation(prompt)
    if not prompt.strip():
        raise ValueError('"prompt" must not be empty')
    if messages := written_messages(prompt):
        return conversation(messages)
    if not is_transcript(plain_text(prompt)):
        return [{"role": "user", "content": prompt}]
    line_end = r"\n\n" if "\n\nAssistant:" in prompt else r"\n[ \t]*"
    parts = re.split(rf"{line_end}(Human|User|Assistant):", "\n\n" + prompt.strip())
    messages = [{"role": "assistant" if who == "Assistant" else "user", "content": words.strip()}
                for who, words in zip(parts[1::2], parts[2::2])]
    return messages if messages[-1]["content"] else messages[:-1]


def written_messages(text):
    """The messages that a text is written as, in JSON or in Python; None for any other text."""
    start = re.match(r"""\s*(\[?)\s*\{\s*['"](role|from|content|value)['"]\s*:""", text)
    for written in (text, re.sub(r"\}\s+\{", "}, {", text)) if start else ():  # numpy has no commas
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(written)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            with contextlib.suppress(ValueError):
                messages = value if isinstance(value, list) else [value]
                return messages if all(map(_message, messages)) else None
            return None  # a text about other things
    if start and start[1] and start[2] == "role":
        raise ValueError("a text that begins as a list of messages, and cannot be read as one")


def plain_text(text):
    """The text; ValueError if somebody has put it into a chat template already."""
    marks = [mark for mark in ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>")
             if mark in text]
    marks += ["[INST]"] if text.lstrip().removeprefix("<s>").lstrip().startswith("[INST]") else []
    marks += ["</s>"] if text.rstrip().endswith("</s>") and "<s>" not in text else []
    if marks:
        raise ValueError(f"a text holds {marks[0]}, a mark of a chat template: give the messages "
                         "themselves")
    return text


def _message(m):
    """A message of any format -> (role, text)."""
    try:
        role = m["role"] if "role" in m else m["from"]
        content = m["content"] if "content" in m else m["value"]
    except (KeyError, TypeError):
        raise ValueError('a message must be {"role": "system", "user" or "assistant", "content": '
                         "text}") from None
    if role not in ROLES:
        raise ValueError(f"a message is of the role {role!r}, which this code does not know")
    pieces = content if isinstance(content, list) else [{"text": content}]  # as OpenAI's may be
    if not all(isinstance(piece, dict) and isinstance(piece.get("text"), str) for piece in pieces):
        raise ValueError("the content of a message must be a text")
    return ROLES[role], "".join(piece["text"] for piece in pieces)


def conversation(messages):
    """Messages of any format -> ours, whose roles are user and assistant.

    What the system says after a user's message ends it; elsewhere it begins the next one.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError('"prompt" must be a text or a list of {"role": "user" or "assistant", '
                         '"content": text}')
    ours, system = [], []
    for role, content in map(_message, messages):
        if role == "system" and not content.strip():
            continue
        if role == "system" and ours and ours[-1]["role"] == "user":
            ours[-1]["content"] += f"\n\n{content}"
        elif role == "system":
            system.append(content)
        elif role == "assistant" and system:
            ours.append(dict(role="user", content="\n\n".join(system)))
            ours.append(dict(role=role, content=content))
            system = []
        else:
            ours.append(dict(role=role, content="\n\n".join([*system, content])))
            system = []
    return ours + [dict(role="user", content="\n\n".join(system))] * bool(system)


def answered(messages):
    """A conversation -> a demonstration for each of its answers that is to be learned.

    The last has `whole`, all that was said; if nobody has answered the user, or nothing is to be
    learned, it is a prompt. The others are `part` of it.
    """
    whole = conversation(messages)
    learned = iter([is_learned(m) for m in messages if _message(m)[0] == "assistant"])
    every = [dict(prompt=whole[:i], response=m["content"], part=True)
             for i, m in enumerate(whole) if m["role"] == "assistant" and next(learned) and i]
    end = len(whole)
    while end and whole[end - 1]["role"] == "assistant":
        end -= 1
    if not every or end == len(whole):
        return every + [dict(prompt=whole[:end])]
    return every[:-1] + [dict(every[-1], part=False, whole=whole)]


def answer(record, name):
    """A field that is a text, or a list that holds one message of the assistant -> the text."""
    if isinstance(record.get(name), list):
        messages = conversation(record[name])
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise ValueError(f'"{name}" must be one message of the assistant')
        return messages[0]["content"]
    if messages := written_messages(text_field(record, name)):
        return answer({name: messages}, name)
    return plain_text(record[name])


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


QUESTION = ("chosen", "rejected", "input", "context", "history")


def own(r):
    """A record of ours, checked; TRL's and KTO's are alike, with messages in the place of texts.

    An input or a context belongs to the question, and so does what was said before.
    """
    if isinstance(r.get("chosen"), str) and len(written_messages(r["chosen"]) or ()) > 1:
        return two_conversations(r)
    prompt = r["prompt"]
    if isinstance(prompt, str):
        prompt = "\n\n".join(part for part in (prompt, r.get("input"), r.get("context")) if part)
    ours = {name: value for name, value in r.items() if name in OWN.optional and name != "response"}
    ours["prompt"] = history(r.get("history") or []) + turns(prompt)
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


def history(turns):
    """What was said before, as messages or as pairs of texts -> messages."""
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return conversation(turns)
    if not isinstance(turns, list) or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2
            and all(isinstance(text, str) for text in pair) for pair in turns):
        raise ValueError('"history" must be a list of pairs of texts, or of messages')
    return [dict(role=role, content=text) for pair in turns
            for role, text in zip(("user", "assistant"), pair)]


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
OWN = Format(OURS, {}, own, ("prompt", "response", "completion", "chosen", "rejected", "responses",
                             "ranks", "rating", "text", "input", "context", "history", "labeler",
                             "left_out", "kind", "subject", "relation", "form"))


def table():
    """All formats, who reads them, and an example of each."""
    lines = []
    for form in FORMATS:
        readers = ", ".join(stage for field, stage in STAGES.items() if form.provides(field))
        lines += ["", f"{form.name} ({readers})", f"    {json.dumps(form.example)}"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(__doc__ + table())
