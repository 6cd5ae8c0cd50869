"""Conversations of any format -> ours: [{"role": "user" or "assistant", "content": str}, ...]."""

import ast
import contextlib
import json
import re

ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user",
         "prompter": "user", "assistant": "assistant", "gpt": "assistant", "bot": "assistant"}
LABELS = {"true": "good", "1": "good", "1.0": "good", "false": "bad", "0": "bad", "0.0": "bad"}


def is_learned(part):
    """Whether a record or a message may be learned; weight 0 or a false `train` forbid it."""
    values = {name: str(part.get(name)).lower() for name in ("weight", "train", "training")}
    for name, value in values.items():
        if value not in ("none", "", *LABELS):
            raise ValueError(f'"{name}" is {value}, and only 0 and 1 are known: rename the field '
                             "if it means something else")
    return not {"0", "0.0", "false"} & set(values.values())


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
        raise ValueError(f"a text holds {marks[0]}, a mark of a chat template: give its messages")
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
