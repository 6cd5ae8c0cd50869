"""Other people's formats: how a record of each becomes one of ours (data/files/records.py).

`FORMATS` holds, for each format, whether a record is of it and how it is converted.
"""

import re

OURS = "prompts and answers in our own format"


def recognise(record):
    """A record of any known format -> (the format's name, the record in ours)."""
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    for name, (fits, convert) in FORMATS.items():
        if fits(record):
            return name, convert(record)
    return OURS, record


def text_field(record, name):
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'"{name}" must be a text that is not empty')
    return value


def _has(**fields):
    """Whether a record has these fields, of these types."""
    return lambda record: all(isinstance(record.get(name), kind) for name, kind in fields.items())


def _transcript(text):
    """"\n\nHuman: Hi\n\nAssistant: Hello" -> messages."""
    parts = re.split(r"\n\n(Human|Assistant):", text)
    return [{"role": "user" if who == "Human" else "assistant", "content": said.strip()}
            for who, said in zip(parts[1::2], parts[2::2])]


def _conversation(messages):
    """Messages with roles system, user, assistant -> ours.

    What the system says begins the user's next message.
    """
    found, system = [], ""
    for m in messages:
        roles = ("system", "user", "assistant")
        if (not isinstance(m, dict) or m.get("role") not in roles
                or not isinstance(m.get("content"), str)):
            raise ValueError('a message must be {"role": "system", "user" or "assistant", '
                             '"content": text}')
        if m["role"] == "system":
            system = m["content"] + "\n\n"
        else:
            found.append({"role": m["role"],
                          "content": (system if m["role"] == "user" else "") + m["content"]})
            system = system if m["role"] == "assistant" else ""
    return found


def _answered(messages):
    """A conversation -> its prompt, and its last answer if there is one."""
    if messages and messages[-1]["role"] == "assistant":
        return dict(prompt=messages[:-1], response=messages[-1]["content"])
    return dict(prompt=messages)


def _pair(chosen, rejected):
    """Two conversations that differ in their last answer -> a comparison."""
    one, other = _answered(chosen), _answered(rejected)
    if one["prompt"] != other["prompt"] or "response" not in one or "response" not in other:
        raise ValueError("the two conversations must differ in their last answer, and nowhere else")
    return dict(prompt=one["prompt"], chosen=one["response"], rejected=other["response"])


def _post(about):
    where = f"SUBREDDIT: r/{about['subreddit']}\n\n" if about.get("subreddit") else ""
    post = about.get("post") or about.get("article") or ""
    return f"{where}TITLE: {about.get('title') or ''}\n\nPOST: {post}\n\nTL;DR:"


def _summaries(record):
    texts = [text_field(summary, "text").strip() for summary in record["summaries"]]
    if len(texts) != 2 or record["choice"] not in (0, 1):
        raise ValueError('"summaries" must be two, and "choice" 0 or 1')
    return dict(prompt=_post(record["info"]), chosen=texts[record["choice"]],
                rejected=texts[1 - record["choice"]])


def _instruction(record):
    prompt = "\n\n".join(text for text in (record["instruction"], record.get("input")) if text)
    pair = {name: record[name] for name in ("chosen", "rejected") if name in record}
    return dict(prompt=prompt, response=record["output"], **pair)


def _turns(record, name):
    """A field of TRL's: a text, or a list of messages of which the prompt is no part."""
    value = record[name]
    if isinstance(value, str):
        return value
    if len(messages := _conversation(value)) != 1 or messages[0]["role"] != "assistant":
        raise ValueError(f'"{name}" must be one message of the assistant')
    return messages[0]["content"]


def _trl(record):
    return dict(prompt=_conversation(record["prompt"]),
                **{name: _turns(record, name) for name in ("completion", "chosen", "rejected")
                   if name in record})


def _transcripts(record):
    return _pair(_transcript(record["chosen"]), _transcript(str(record.get("rejected"))))


def _conversations(record):
    return _pair(_conversation(record["chosen"]), _conversation(record["rejected"]))


# Whether a record is of a format, and how it becomes one of ours. The first that fits counts.
FORMATS = {
    "transcripts of two assistants (Anthropic HH-RLHF)":
        (lambda r: "\n\nHuman:" in str(r.get("chosen"))[:10], _transcripts),
    "instructions (Alpaca)":
        (_has(instruction=str, output=str), _instruction),
    "comparisons of summaries (OpenAI TL;DR)":
        (_has(info=dict, summaries=list, choice=int), _summaries),
    "posts and summaries (OpenAI TL;DR)":
        (_has(post=str, summary=str),
         lambda r: dict(prompt=_post(r), response=r["summary"].strip())),
    "conversations (OpenAI chat)":
        (_has(messages=list), lambda r: _answered(_conversation(r["messages"]))),
    "prompts and preferences (TRL)":
        (_has(prompt=list, chosen=list, rejected=list), _trl),
    "prompts and completions (TRL)":
        (_has(prompt=list, completion=list), _trl),
    "preferred conversations (TRL)":
        (_has(chosen=list, rejected=list), _conversations),
}
