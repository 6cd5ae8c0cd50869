"""Files in, records out; what can not be used is named with its file and line.

Pretraining text is UTF-8, documents separated by blank lines. Everything else is JSON lines:

    prompts         {"prompt": "Hello!"}  or  {"prompt": [{"role": "user", "content": "Hello!"}, ...]}
    demonstrations  a prompt and "response" (or "completion")
    comparisons     a prompt, "responses" (2 to 9 answers) and "ranks" (1 is best, equal ranks are ties);
                    or a prompt, "chosen" and "rejected";
                    or a prompt, "response" and "verdict": a prompt's "good" answers rank above its "bad" ones

`--data` takes a file, a folder of them, or several with commas between. A line that can not be used is named and left out,
but if they are more than one in a hundred, the file is refused. A last line that was cut in the middle is set aside.
"""

import json
from pathlib import Path

from data import almanac
from data.runs import UserError, write

LONGEST_LINE = 1_000_000  # bytes: no conversation


def read_text(path):
    """Documents of a text file: list of str."""
    content = _bytes(path)
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8: save the file as UTF-8") from None
    documents = [d.strip() for d in text.split("\n\n") if d.strip()]
    if not documents:
        raise UserError(f"{path} is empty: give it text, documents separated by blank lines")
    return documents


def read_prompts(path):
    """Prompts of JSON-lines files: list of dicts whose `prompt` is a list of messages."""
    return [record for _, record in _read(path, lambda record: {})]


def read_questions(path):
    """Prompts, and the `responses` of those that have any: what a person can be asked to rank."""
    return [record for _, record in _read(path, lambda record: _responses(record) if "responses" in record else {})]


def read_demonstrations(path):
    """Prompts with a `response` (str). Comparisons and answers that somebody called bad are passed over."""
    def fields(record):
        if "response" not in record and {"responses", "chosen"} & set(record) or record.get("verdict") == "bad":
            return None
        return {"response": _text(record, "response" if "response" in record else "completion")}
    return [record for _, record in _read(path, fields)]


def read_comparisons(path):
    """Prompts with `responses` (list of str) and `ranks` (list of int, 1 is best).

    Of two rankings that one labeler gave to the same answers, the later counts, and the earlier is named. Good and bad
    answers to a prompt become one comparison; those without a counterpart are counted.
    """
    records, by_prompt = {}, {}
    for place, record in _read(path, _comparison):
        who, prompt = record.pop("labeler", None), json.dumps(record["prompt"])
        if verdict := record.pop("verdict", None):
            by_prompt.setdefault(prompt, (record, {}))[1][record.pop("response")] = 1 if verdict == "good" else 2
            continue
        key = (who, prompt, *sorted(record["responses"])) if who else place
        if key in records:
            print(f"{records[key][0]}: {who} ranked the same answers again in {place}: the later counts")
        records[key] = place, record
    found, alone = [record for _, record in records.values()], 0
    for record, answers in by_prompt.values():
        answers = dict(list(answers.items())[-9:])
        if len(set(answers.values())) == 2:
            found.append({**record, "responses": list(answers), "ranks": list(answers.values())})
        else:
            alone += len(answers)
    if alone:
        print(f"{path}: {alone} answers called good or bad have no counterpart to the same prompt, and so make no comparison")
    if not found:
        raise UserError(f"{path} holds no comparison: rank answers with python reward.py --label")
    return found


def split(records):
    """Every twentieth record is held out -> (training records, held-out records). A single record serves as both."""
    return [r for i, r in enumerate(records) if i % 20] or records, records[::20]


def write_jsonl(path, records):
    """Write records, one a line; the file is whole at any moment."""
    write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _bytes(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} can not be read ({error.strerror}): check --data") from None


def _read(paths, fields):
    """Read JSON lines: list of ("file, line n", record).

    fields(record) -> dict of the checked fields beside the prompt, None to pass the record over; it raises ValueError
    with what is wrong.
    """
    files, found, broken, lines = [], [], [], 0
    for part in str(paths).split(","):
        files += sorted(Path(part).glob("*.jsonl")) or [part] if Path(part).is_dir() else [part]
    for path in files:
        content = _bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
        for number, line in enumerate(content, start=1):
            if not line.strip():
                continue
            place, lines = f"{path}, line {number}", lines + 1
            try:
                record = _record(line, fields)
                found += [(place, record)] if record else []
            except ValueError as error:
                if number == len(content) and not line.rstrip().endswith(b"}"):
                    print(f"{place}: cut in the middle: set aside")
                else:
                    broken.append(f"{place}: {error}")
    if len(broken) > .01 * lines:
        more = f" (and {len(broken) - 1} more such lines)" if len(broken) > 1 else ""
        raise UserError(f"{broken[0]}{more}: mend or remove the line")
    for sentence in broken:
        print(f"{sentence}: left out")
    if not found:
        raise UserError(f"{paths} is empty: give it at least one JSON line")
    return found


def _record(line, fields):
    if len(line) > LONGEST_LINE:
        raise ValueError(f"{len(line) / 1e6:.1f} MB in one line")
    try:
        record = json.loads(line.decode())
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is no text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    about = {name: record[name] for name in almanac.ABOUT if name in record}
    if len(about) < len(almanac.ABOUT) or about["kind"] not in almanac.KINDS:
        about = {}  # not a prompt that the labeler knows
    checked = fields(record)
    return None if checked is None else {"prompt": _messages(record), **about, **checked}


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


def _responses(record):
    responses = record.get("responses")
    if not isinstance(responses, list) or not 2 <= len(responses) <= 9 or not all(isinstance(r, str) for r in responses):
        raise ValueError('"responses" must be a list of 2 to 9 texts (or give "chosen" and "rejected")')
    return {"responses": responses}


def _comparison(record):
    who = {"labeler": str(record["labeler"])} if "labeler" in record else {}
    if "chosen" in record:
        return {"responses": [_text(record, "chosen"), _text(record, "rejected")], "ranks": [1, 2], **who}
    if "verdict" in record:
        if record["verdict"] not in ("good", "bad"):
            raise ValueError('"verdict" must be "good" or "bad"')
        return {"response": _text(record, "response"), "verdict": record["verdict"]}
    responses, ranks = _responses(record)["responses"], record.get("ranks")
    if not isinstance(ranks, list) or len(ranks) != len(responses) or not all(type(r) is int and r >= 1 for r in ranks):
        raise ValueError(f'"ranks" must be a list of {len(responses)} whole numbers, 1 for the best')
    return {"responses": responses, "ranks": ranks, **who}
