"""Records in, checked: text, prompts, demonstrations and comparisons for the four stages.

Pretraining text is UTF-8, documents separated by blank lines. Everything else is records:

    prompts         {"prompt": "Hello!"}, or "prompt": [{"role": "user", "content": "Hello!"}, ...]
    demonstrations  a prompt and "response" (or "completion")
    comparisons     a prompt, "responses" (2 to 9) and "ranks" (1 is best, equal ranks are ties);
                    or a prompt, "chosen" and "rejected";
                    or a prompt, "response" and "verdict": "good" ones rank above "bad" ones

or those of published data sets, which data/files/foreign.py recognises, in files as
data/files/rows.py reads them. `--data` takes a file, a folder, or several with commas between.

A record that cannot be used is named and skipped, but if they are more than one in a hundred, the
file is refused. What is skipped is counted, and a field that is not used is named once per file.
"""

import json
import re
from collections import Counter

from data.files import foreign, rows
from data.files.foreign import ranked
from data.files.messages import text_field
from data.run.disk import write
from data.run.system import UserError
from data.world import almanac

ONE_IN = 20  # prompts or documents, of which one is held out


# ---- what the stages read ------------------------------------------------------------------------


def read_text(path):
    """Documents of text files: list of str.

    Of files with records, the text, or else the messages and the answer of each are a document.
    """
    documents = []
    for file in rows.files(path, (*rows.RECORDS, ".txt")):
        if rows.suffix(file) in rows.RECORDS:
            documents += _read([file], "text", _document)
        elif parts := split_text(rows.text(file)):
            documents += parts
        else:
            raise UserError(f"{file} is empty: give it text, documents separated by blank lines")
    return documents


END = "<|endoftext|>"  # which closes a document in files of several paragraphs each


def split_text(text):
    """A text -> its documents, which end at <|endoftext|> if that occurs, else at blank lines."""
    parts = text.replace("<|startoftext|>", "").split(END if END in text else "\n\n")
    return [part.strip() for part in parts if part.strip()]


def join_text(documents):
    """Documents -> a text that `split_text` cuts into the same ones."""
    if any("\n\n" in document for document in documents):
        return "".join(f"{document}\n{END}\n" for document in documents)
    return "\n\n".join(documents)


def read_prompts(path):
    """Prompts of files with records: list of dicts whose `prompt` is a list of messages."""
    return _read(rows.files(path), "prompt", _prompt)


def read_questions(path):
    """Prompts, and the `responses` of those that have any: what a person can be asked to rank."""
    return _read(rows.files(path), "prompt", lambda r: _prompt(r) | (
        {"responses": _responses(r)} if "responses" in r else {}))


def read_demonstrations(path):
    """Prompts with a `response` (str): of a pair the chosen one, of rated answers the best.

    Rankings and answers that somebody called bad are skipped.
    """
    demonstrations, best = _read(rows.files(path), "response", _demonstration), {}
    means = mean_ratings(demonstrations)
    for (prompt, _), rating in means.items():
        best[prompt] = max(rating, best.get(prompt, rating))
    chosen = [r for r in demonstrations if r["rating"] is None
              or means[json.dumps(r["prompt"]), r["response"]] == best[json.dumps(r["prompt"])]]
    if len(chosen) < len(demonstrations):
        print(f"{path}: answers rated lower than another one to their prompt: "
              f"{len(demonstrations) - len(chosen):,}, skipped")
    for r in chosen:
        del r["rating"]
    return chosen


def mean_ratings(records):
    """{(prompt as JSON, response): the mean of its ratings}: several people may rate it."""
    ratings = {}
    for r in records:
        if r.get("rating") is not None:
            ratings.setdefault((json.dumps(r["prompt"]), r["response"]), []).append(r["rating"])
    return {answer: sum(values) / len(values) for answer, values in ratings.items()}


def read_comparisons(path):
    """Prompts with `responses` (list of str) and `ranks` (list of int, 1 is best).

    Of two rankings that one labeler gave to the same answers, the later counts. Answers to a prompt
    that were rated one at a time become one comparison; of several ratings the mean counts.
    """
    records, rankings, rated, beyond = _read(rows.files(path), "ranks", _comparison), {}, {}, 0
    means = mean_ratings(records)
    for n, r in enumerate(records):
        prompt, labeler = json.dumps(r["prompt"]), r.pop("labeler", None)
        beyond += r.pop("left_out", 0)
        if "ranks" in r:
            rankings[(labeler, prompt, *sorted(r["responses"])) if labeler else n] = r
        else:
            response, _ = r.pop("response"), r.pop("rating")
            rated.setdefault(prompt, (r, {}))[1][response] = means[prompt, response]
    again = sum("ranks" in r for r in records) - len(rankings)
    comparisons, alone = [*rankings.values()], 0
    for r, ratings in rated.values():
        if len(set(ratings.values())) > 1:
            ranking = ranked(r["prompt"], list(ratings), list(ratings.values()))
            beyond += ranking["left_out"]
            comparisons.append({**r, "responses": ranking["responses"], "ranks": ranking["ranks"]})
        else:
            alone += len(ratings)
    for count, what in ((again, "rankings that their labeler gave again later: skipped"),
                        (beyond, "answers beyond nine to their prompt, neither the best nor the "
                                 "worst: skipped"),
                        (alone, "rated answers without a counterpart to the same prompt: skipped")):
        if count:
            print(f"{path}: {count:,} {what}")
    if not comparisons:
        raise UserError(f"{path}: no two answers to one prompt have different ratings: give "
                        "reward.py several answers per prompt")
    return comparisons


# ---- held out ------------------------------------------------------------------------------------


def split(records):
    """Hold out every twentieth prompt with all its records -> (training records, held-out ones).

    Of texts, every twentieth text. Of fewer than twenty nothing is held out.
    """
    prompts = [json.dumps(r if isinstance(r, str) else r["prompt"]) for r in records]
    kept = set(list(dict.fromkeys(prompts))[ONE_IN - 1::ONE_IN])
    held_out = [r for r, prompt in zip(records, prompts) if prompt in kept]
    return [r for r, prompt in zip(records, prompts) if prompt not in kept], held_out


def split_documents(path, say):
    """Documents of text files -> (training documents, held-out ones); `say` how they were made."""
    documents, how = enough(read_text(path))
    if how:
        say(how)
    return split(documents)


def enough(documents):
    """Documents of which some can be held out -> (documents, how they were made, if they were).

    If there are too few, lines become documents, or else pieces of the text.
    """
    if len(documents) >= ONE_IN:
        return documents, ""
    lines = [line.strip() for line in documents[0].split("\n") if line.strip()]
    if len(documents) == 1 and len(lines) >= ONE_IN:
        return lines, "no blank lines separate documents: each line is one"
    size = max(500, sum(map(len, documents)) // (2 * ONE_IN))
    pieces = [piece.strip() for d in documents
              for piece in re.findall(rf"(?s).{{1,{size}}}(?:\s|$)|.{{{size}}}", d)]
    if len(pieces) >= ONE_IN:
        return pieces, f"too few to hold one out: cut into pieces of at most {size:,} characters"
    return documents, ""


# ---- records out ---------------------------------------------------------------------------------


def to_jsonl(records):
    """Records as text, one per line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_jsonl(path, records):
    """Write records, one per line; the file is whole at any moment."""
    write(path, to_jsonl(records))


# ---- reading -------------------------------------------------------------------------------------


class Skip(Exception):
    """A record that is as it should be, but not for this stage; the text says why."""


def _read(files, field, check):
    """The records of files -> list of what `check` makes of each.

    field: the field of ours that the stage wants, see foreign.WANTED. check(record) returns the
    fields that are needed; it raises ValueError with what is wrong, or Skip.
    """
    records, bad, lines = [], [], 0
    for path in files:
        name, unused, skipped = "", {}, Counter()
        for place, row in rows.rows(path):
            lines += 1
            try:
                record = plain(parse(row, rows.LARGEST_VALUE if field == "text"
                                     else rows.LONGEST_LINE))
                form, every = foreign.recognise(record, field)
                if not name and form is not foreign.OWN:
                    print(f"{path}: read as {form.name}")
                name = name or form.name
                if form.name != name:
                    raise ValueError(f"another format ({form.name}) than the first ({name})")
                unused.update(dict.fromkeys(form.unused(record)))
                ready = []
                for ours in every:
                    if field == "text" and ours.get("part"):  # of a conversation that follows
                        continue
                    try:
                        ready.append(_for_stage(ours, field, form, check))
                    except Skip as reason:
                        skipped[str(reason)] += 1
                records += ready
            except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
                    RecursionError) as error:
                what = error if isinstance(error, ValueError) else (
                    f"a field is not what it should be ({error})")
                bad.append(f"{place}: {what}")
                if len(bad) > 10_000:  # whatever share of the lines they are
                    _refuse(bad)
        for reason, count in skipped.items():
            print(f"{path}: {reason}: {count:,}, skipped")
        if unused:
            more = f" and {len(unused) - 12} more" if len(unused) > 12 else ""
            print(f"{path}: not used: {', '.join([*unused][:12])}{more}")
    _judge(bad, lines, len(records), files)
    return records


def _judge(bad, lines, n, files):
    """UserError if more than one line in a hundred is bad, or if no record is left."""
    if len(bad) > .01 * lines:
        _refuse(bad)
    for sentence in bad[:100]:
        print(f"{sentence}: skipped")
    if len(bad) > 100:
        print(f"{len(bad):,} lines in all are skipped")
    if not n:
        raise UserError(f"{','.join(map(str, files))} is empty, or holds no record of the kind "
                        "that is needed here: give it at least one")


def _refuse(bad):
    more = f" (and {len(bad) - 1:,} more such lines)" if len(bad) > 1 else ""
    raise UserError(f"{bad[0]}{more}: mend or remove the line")


def parse(line, longest):
    """The JSON value in the bytes of a line; what is no line is a value already."""
    if not isinstance(line, bytes):
        return line
    if len(line) > longest:
        raise ValueError(f"{len(line) / 1e6:.1f} MB in one line")
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None


def plain(value):
    """A value with Unix line ends, without fields of null or NaN, as tables are filled."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()
                if part is not None and part == part}
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, str):
        value.encode()  # ValueError for half of a surrogate pair
        return value.replace("\r\n", "\n")
    return value


def _for_stage(record, field, form, check):
    """What a stage needs of a record of ours; Skip if the data says that it is not for it."""
    if field == "text" and "whole" in record:
        record = {"text": "\n".join(m["content"] for m in record["whole"])}
    if field != "prompt" and record.get("weight") == 0:
        raise Skip("weight 0 or a false `train`")
    if field in ("text", "response") and record.get("verdict") == "bad":
        raise Skip("answers called bad")
    if form is not foreign.OWN and not foreign.provides(record, field):
        raise Skip(f"no {foreign.WANTED[field][0]}")
    return check(record)


# ---- fields --------------------------------------------------------------------------------------


def _prompt(record):
    """A prompt, and what the labeler must know about it, if it is the almanac's."""
    if record["prompt"][-1]["role"] != "user":
        raise ValueError('the last message of "prompt" must be the user\'s')
    return {"prompt": record["prompt"], **almanac.about(record)}


def _document(record):
    if "prompt" not in record:
        if not str(record["text"]).strip():
            raise Skip("empty text")
        return text_field(record, "text").strip().removeprefix("<s>").removesuffix("</s>").strip()
    contents = [m["content"] for m in _prompt(record)["prompt"]]
    return "\n".join(contents + ([record["response"]] if "response" in record else [])).strip()


def _demonstration(record):
    if "responses" in record and "response" not in record:
        raise Skip("rankings without a `response` to learn")
    return {**_prompt(record), "response": text_field(record, "response"),
            "rating": _rating(record)}


def _rating(record):
    """How good an answer that stood alone was called, higher is better; None: it was not."""
    if "verdict" in record:
        if record["verdict"] not in ("good", "bad"):
            raise ValueError('"verdict" must be "good" or "bad"')
        return int(record["verdict"] == "good")
    rating = record.get("rating")
    if rating is not None and not (isinstance(rating, (int, float)) and abs(rating) < 1e9):
        raise ValueError('"rating" must be a number')
    return rating


def _responses(record):
    responses = record.get("responses")
    if (not isinstance(responses, list) or not 2 <= len(responses) <= 9
            or not all(isinstance(r, str) for r in responses)):
        raise ValueError('"responses" must be a list of 2 to 9 texts (or give "chosen" and '
                         '"rejected")')
    return responses


def _comparison(record):
    if "responses" not in record and ("verdict" in record or "rating" in record):
        return {**_prompt(record), "response": text_field(record, "response"),
                "rating": _rating(record)}
    responses, ranks = _responses(record), record.get("ranks")
    if (not isinstance(ranks, list) or len(ranks) != len(responses)
            or not all(type(rank) is int and 1 <= rank < 10 ** 6 for rank in ranks)):
        raise ValueError(f'"ranks" must be a list of {len(responses)} whole numbers, 1 for the '
                         'best')
    more = {"labeler": str(record["labeler"])} if "labeler" in record else {}
    return {**_prompt(record), "responses": responses, "ranks": ranks,
            "left_out": int(record.get("left_out", 0)), **more}
