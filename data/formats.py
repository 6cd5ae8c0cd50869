"""Files in, records out; what can not be used is named with its file and line.

Pretraining text is UTF-8, documents separated by blank lines. Everything else is JSON lines:

    prompts         {"prompt": "Hello!"}  or  {"prompt": [{"role": "user", "content": "Hello!"}, ...]}
    demonstrations  a prompt and "response" (or "completion")
    comparisons     a prompt, "responses" (2 to 9 answers) and "ranks" (1 is best, equal ranks are ties);
                    or a prompt, "chosen" and "rejected"
"""

import json
from pathlib import Path

from data import almanac
from data.runs import UserError, write


def read_text(path):
    """Documents of a text file: list of str."""
    documents = [d.strip() for d in _decode(path).replace("\r\n", "\n").split("\n\n") if d.strip()]
    if not documents:
        raise UserError(f"{path} is empty: give it text, documents separated by blank lines")
    return documents


def read_prompts(path):
    """Prompts of a JSON-lines file: list of dicts whose `prompt` is a list of messages."""
    return _read_records(path, lambda record: {})


def read_demonstrations(path):
    """Prompts with a `response` (str)."""
    return _read_records(path, lambda record: {"response": _text(record, "response" if "response" in record else "completion")})


def read_comparisons(path):
    """Prompts with `responses` (list of str) and `ranks` (list of int, 1 is best)."""
    return _read_records(path, _comparison)


def split(records):
    """Every twentieth record is held out -> (training records, held-out records). A single record serves as both."""
    return [r for i, r in enumerate(records) if i % 20] or records, records[::20]


def write_jsonl(path, records):
    """Write records, one a line; the file is whole at any moment."""
    write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _decode(path):
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} can not be read ({error.strerror}): check --data") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8: save the file as UTF-8") from None


def _read_records(path, fields):
    """fields(record) -> dict of the checked fields beside the prompt; it raises ValueError with what is wrong."""
    records = []
    for number, line in enumerate(_decode(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not a JSON object")
            about = {name: record[name] for name in almanac.ABOUT if name in record}
            if len(about) < len(almanac.ABOUT) or about["kind"] not in almanac.KINDS:
                about = {}  # not a prompt that the labeler knows
            records.append({"prompt": _messages(record), **about, **fields(record)})
        except json.JSONDecodeError as error:
            why = f"not JSON ({error.msg} at column {error.colno})"
            raise UserError(f"{path}, line {number}: {why}: mend or remove the line") from None
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}: mend or remove the line") from None
    if not records:
        raise UserError(f"{path} is empty: give it at least one JSON line")
    return records


def _text(record, name):
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'"{name}" must be a text that is not empty')
    return value


def _messages(record):
    prompt = record.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and prompt and all(isinstance(m, dict) and m.get("role") in ("user", "assistant")
                                                   and isinstance(m.get("content"), str) for m in prompt):
        if prompt[-1]["role"] != "user":
            raise ValueError('the last message of "prompt" must be the user\'s')
        return [{"role": m["role"], "content": m["content"]} for m in prompt]
    raise ValueError('"prompt" must be a text or a list of {"role": "user" or "assistant", "content": text}')


def _comparison(record):
    if "chosen" in record:
        return {"responses": [_text(record, "chosen"), _text(record, "rejected")], "ranks": [1, 2]}
    responses, ranks = record.get("responses"), record.get("ranks")
    if not isinstance(responses, list) or not 2 <= len(responses) <= 9 or not all(isinstance(r, str) for r in responses):
        raise ValueError('"responses" must be a list of 2 to 9 texts (or give "chosen" and "rejected")')
    if not isinstance(ranks, list) or len(ranks) != len(responses) or not all(type(r) is int and r >= 1 for r in ranks):
        raise ValueError(f'"ranks" must be a list of {len(responses)} whole numbers, 1 for the best')
    return {"responses": responses, "ranks": ranks}
