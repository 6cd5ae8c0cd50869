"""Records in, checked: text, prompts, demonstrations and comparisons for the four stages.

Pretraining text is UTF-8, documents separated by blank lines. Everything else is records:

    prompts         {"prompt": "Hello!"}, or "prompt": [{"role": "user", "content": "Hello!"}, ...]
    demonstrations  a prompt and "response" (or "completion")
    comparisons     a prompt, "responses" (2 to 9) and "ranks" (1 is best, equal ranks are ties);
                    or a prompt, "chosen" and "rejected";
                    or a prompt, "response" and "verdict": "good" ones rank above "bad" ones

or those of published data sets, which data/files/foreign.py recognises, in files as
data/files/rows.py reads them. `--data` takes a file, a folder of them, or several separated by
commas.

A record that cannot be used is named and skipped, but if they are more than one in a hundred, the
file is refused. A last line that was cut in the middle is skipped. What is skipped is
counted, and a field that is not used is named once per file.
"""

import json
import re
from collections import Counter

from data.files import rows
from data.files.foreign import OURS, NoFormat, gives, ranked, recognise, text_field, turns
from data.run.disk import write
from data.run.system import UserError
from data.world import almanac

ONE_IN = 20  # prompts or documents, of which one is held out


# ---- what the stages read ------------------------------------------------------------------------


def read_text(path):
    """Documents of text files: list of str.

    Of files with records, the text, or else the messages and the answer of each are a document.
    """
    return [document for file in rows.files(path, (*rows.RECORDS, ".txt"))
            for document in _documents(file)]


def _documents(path):
    if rows.ending(path) in rows.RECORDS:
        return [document for _, document in _read([path], "text", _document)]
    documents = [d.strip() for d in rows.text(path).split("\n\n") if d.strip()]
    if not documents:
        raise UserError(f"{path} is empty: give it text, documents separated by blank lines")
    return documents


def read_prompts(path):
    """Prompts of files with records: list of dicts whose `prompt` is a list of messages."""
    return [record for _, record in _read(rows.files(path), "prompt", _prompt)]


def read_questions(path):
    """Prompts, and the `responses` of those that have any: what a person can be asked to rank."""
    return [record for _, record in _read(rows.files(path), "prompt", _question)]


def read_demonstrations(path):
    """Prompts with a `response` (str): of a pair the chosen one, of rated answers the best.

    Rankings and answers that somebody called bad are skipped.
    """
    found, best = [record for _, record in _read(rows.files(path), "answer", _demonstration)], {}
    for record in found:
        if (rating := record["rating"]) is not None:
            prompt = json.dumps(record["prompt"])
            best[prompt] = max(rating, best.get(prompt, rating))
    kept = []
    for record in found:
        rating = record.pop("rating")
        if rating is None or rating == best[json.dumps(record["prompt"])]:
            kept.append(record)
    if len(kept) < len(found):
        print(f"{path}: answers rated lower than another one to their prompt: "
              f"{len(found) - len(kept):,}, skipped")
    return kept


def read_comparisons(path):
    """Prompts with `responses` (list of str) and `ranks` (list of int, 1 is best).

    Of two rankings that one labeler gave to the same answers, the later counts, and the earlier is
    named. Answers to a prompt that were rated one at a time become one comparison; those without a
    counterpart are counted.
    """
    records, by_prompt, beyond = {}, {}, 0
    for place, record in _read(rows.files(path), "comparison", _comparison):
        who, prompt = record.pop("labeler", None), json.dumps(record["prompt"])
        if "rating" in record:
            response, rating = record.pop("response"), record.pop("rating")
            by_prompt.setdefault(prompt, (record, {}))[1][response] = rating
            continue
        beyond += record.pop("left_out", 0)
        key = (who, prompt, *sorted(record["responses"])) if who else len(records)
        if key in records:
            print(f"{records[key][0]}: {who} ranked the same answers again in {place}: the later "
                  "counts")
        records[key] = place, record
    found, alone = [record for _, record in records.values()], 0
    for record, ratings in by_prompt.values():
        if len(set(ratings.values())) > 1:
            ranking = ranked(record["prompt"], list(ratings), list(ratings.values()))
            beyond += ranking.pop("left_out")
            found.append({**record, "responses": ranking["responses"], "ranks": ranking["ranks"]})
        else:
            alone += len(ratings)
    if beyond:
        print(f"{path}: {beyond:,} answers beyond nine to their prompt: skipped, neither the best "
              "nor the worst")
    if alone:
        lonely = (f"{path}: {alone:,} rated answers have no counterpart to the same prompt, and so "
                  "make no comparison")
        if not found:
            raise UserError(f"{lonely}: give reward.py several answers per prompt")
        print(lonely)
    return found


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
        return pieces, (f"too few documents to hold one out: cut into pieces of at most {size:,} "
                        "characters")
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


class Broken:
    """The lines that cannot be used: how many, and what is wrong with the first of them."""

    def __init__(self):
        self.count, self.sentences = 0, []

    def append(self, sentence):
        self.count += 1
        if self.count <= 100:
            self.sentences.append(sentence)
        if self.count > 10_000:  # whatever share of the lines they are
            self.refuse()

    def refuse(self):
        more = f" (and {self.count - 1:,} more such lines)" if self.count > 1 else ""
        raise UserError(f"{self.sentences[0]}{more}: mend or remove the line")


class Noted(dict):
    """An object of a record, with Unix line ends, that notes in `used` which fields are read.

    Fields that hold null are left out, as tables fill with it what a row does not have; but to the
    labeler null means something.
    """

    def __init__(self, fields, used):
        super().__init__({name: _noted(value, used) for name, value in fields.items()
                          if value is not None or name in almanac.ABOUT})
        self.used, self.is_read = used, False

    def __getitem__(self, name):
        if not self.is_read:
            self.is_read = True
            for other, value in self.items():
                if value not in (None, "", []):
                    self.used.setdefault(other, False)
        self.used[name] = True
        return super().__getitem__(name)

    def get(self, name, default=None):
        return self[name] if name in self else default


def _noted(value, used):
    if isinstance(value, dict):
        return Noted(value, used)
    if isinstance(value, list):
        return [_noted(part, used) for part in value]
    return value.replace("\r\n", "\n") if isinstance(value, str) else value


def _read(files, wanted, check):
    """Read records: list of ("file, line n", what `check` makes of the record).

    wanted: see data/files/foreign.py. check(record) returns the fields that are needed; it raises
    ValueError with what is wrong, or Skip.
    """
    found, broken, lines = [], Broken(), 0
    for path in files:
        form, used, passed, strange = None, {}, Counter(), ""
        for place, row, cut in rows.rows(path):
            lines += 1
            try:
                record = _parse(row) if isinstance(row, bytes) else row
                json.dumps(record, ensure_ascii=False, default=str).encode()
                kind, records = recognise(_noted(record, used), wanted)
                if form is None and kind != OURS:
                    print(f"{path}: read as {kind}")
                form = form or kind
                if kind != form:
                    raise ValueError(f"a record of another format ({kind}) than the first ({form})")
                for record in records:
                    try:
                        found.append((place, _for_stage(record, wanted, kind, check)))
                    except Skip as why:
                        passed[str(why)] += 1
            except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
                    RecursionError) as error:
                if isinstance(error, NoFormat) and not strange:
                    strange = f"{place}: {error}"
                if cut:
                    print(f"{place}: cut in the middle: skipped")
                elif isinstance(error, UnicodeEncodeError):
                    broken.append(f"{place}: half of a surrogate pair, which is no text")
                elif isinstance(error, RecursionError):
                    broken.append(f"{place}: nested too deeply")
                else:
                    broken.append(f"{place}: {error}" if isinstance(error, ValueError)
                                  else f"{place}: a field is not what it should be ({error})")
        if form is None and strange:
            raise UserError(strange)
        for why, count in passed.items():
            print(f"{path}: {why}: {count:,}, skipped")
        if unused := [str(name) for name, is_used in used.items() if not is_used]:
            more = f" and {len(unused) - 12} more" if len(unused) > 12 else ""
            print(f"{path}: not used: {', '.join(unused[:12])}{more}")
    named = ",".join(map(str, files))
    if broken.count > .01 * lines:
        broken.refuse()
    for sentence in broken.sentences:
        print(f"{sentence}: skipped")
    if broken.count > len(broken.sentences):
        print(f"{named}: {broken.count:,} lines in all are skipped")
    if not found:
        why = "holds no record of the kind that is needed here" if lines else "is empty"
        raise UserError(f"{named} {why}: give it at least one record")
    return found


def _parse(line):
    if len(line) > rows.LONGEST_LINE:
        raise ValueError(f"{len(line) / 1e6:.1f} MB in one line")
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None


def _for_stage(record, wanted, kind, check):
    """What a stage needs of a record of ours; Skip if the data says that it is not for it."""
    if wanted in ("prompt", "text") and "whole" in record:
        record = {"prompt": record["whole"]}
    if wanted != "prompt" and record.get("weight") == 0:
        raise Skip("weight 0 or a false `train`")
    if wanted in ("text", "answer") and record.get("verdict") == "bad":
        raise Skip("answers called bad")
    if kind != OURS and not gives(record, wanted):
        raise Skip(f"no {wanted}")
    return check(record)


# ---- fields --------------------------------------------------------------------------------------


def _answer_name(record):
    """The field that holds the answer to learn."""
    return next((name for name in ("response", "completion", "chosen") if name in record),
                "response")


def _messages(record):
    prompt = record.get("prompt")
    if not isinstance(prompt, (str, list)) or not prompt or not str(prompt).strip():
        raise ValueError('"prompt" must be a text or a list of {"role": "user" or "assistant", '
                         '"content": text}')
    messages = turns(prompt)
    if messages[-1]["role"] != "user":
        raise ValueError('the last message of "prompt" must be the user\'s')
    return messages


def _prompt(record):
    """A prompt, and what the labeler must know about it, if it is the almanac's."""
    about = almanac.ABOUT if almanac.knows(record) else ()
    return {"prompt": _messages(record), **{name: record[name] for name in about}}


def _document(record):
    if "text" in record:
        if not str(record["text"]).strip():
            raise Skip("empty text")
        return text_field(record, "text").strip()
    said, name = [m["content"] for m in _messages(record)], _answer_name(record)
    return "\n".join(said + ([text_field(record, name)] if name in record else [])).strip()


def _question(record):
    responses = _responses(record) if "responses" in record else {}
    return {**_prompt(record), **responses}


def _demonstration(record):
    if "responses" in record and "response" not in record:
        raise Skip("rankings without a `response` to learn")
    return {**_prompt(record), "response": text_field(record, _answer_name(record)),
            "rating": _rating(record)}


def _rating(record):
    """How good an answer was called when it stood alone, higher for the better; None: it was not.
    """
    if "verdict" in record:
        if record["verdict"] not in ("good", "bad"):
            raise ValueError('"verdict" must be "good" or "bad"')
        return int(record["verdict"] == "good")
    rating = record.get("rating")
    if rating is not None and (not isinstance(rating, (int, float)) or rating != rating):
        raise ValueError('"rating" must be a number')
    return rating


def _responses(record):
    responses = record.get("responses")
    if (not isinstance(responses, list) or not 2 <= len(responses) <= 9
            or not all(isinstance(r, str) for r in responses)):
        raise ValueError('"responses" must be a list of 2 to 9 texts (or give "chosen" and '
                         '"rejected")')
    return {"responses": responses}


def _comparison(record):
    who = {"labeler": str(record["labeler"])} if "labeler" in record else {}
    if "chosen" in record:
        found = {"responses": [text_field(record, "chosen"), text_field(record, "rejected")],
                 "ranks": [1, 2], **who}
    elif "responses" not in record and ("verdict" in record or "rating" in record):
        found = {"response": text_field(record, _answer_name(record)), "rating": _rating(record)}
    else:
        responses, ranks = _responses(record)["responses"], record.get("ranks")
        if (not isinstance(ranks, list) or len(ranks) != len(responses)
                or not all(type(r) is int and 1 <= r < 10 ** 6 for r in ranks)):
            raise ValueError(f'"ranks" must be a list of {len(responses)} whole numbers, 1 for '
                             'the best')
        beyond = {"left_out": record["left_out"]} if record.get("left_out") else {}
        found = {"responses": responses, "ranks": ranks, **who, **beyond}
    return {**_prompt(record), **found}
