"""Files in, records out; what cannot be used is named with its file and line.

Pretraining text is UTF-8, documents separated by blank lines. Everything else is JSON lines, of our
own format:

    prompts         {"prompt": "Hello!"}, or "prompt": [{"role": "user", "content": "Hello!"}, ...]
    demonstrations  a prompt and "response" (or "completion")
    comparisons     a prompt, "responses" (2 to 9) and "ranks" (1 is best, equal ranks are ties);
                    or a prompt, "chosen" and "rejected";
                    or a prompt, "response" and "verdict": "good" ones rank above "bad" ones

or of one that others publish, which data/files/foreign.py recognises by the first record. The file
may also be one JSON array, parquet (if pyarrow is installed), or compressed (.gz).

`--data` takes a file, a folder of them, or several separated by commas. A line that cannot be used
is named and left out, but if they are more than one in a hundred, the file is refused. A last line
that was cut in the middle is set aside.
"""

import gzip
import io
import json
import os
import zlib
from pathlib import Path

from data.files.foreign import OURS, recognise, text_field
from data.run.checkpoint import BROKEN, reason, regular, write
from data.run.cli import UserError
from data.world import almanac

LONGEST_LINE = 1_000_000        # bytes: no conversation
LARGEST_FILE = 2_000_000_000    # bytes, unpacked: the records take several times as much memory
LARGEST_ARRAY = 200_000_000     # bytes of one JSON value, which may take 30 times as much memory


def read_text(path):
    """Documents of text files: list of str.

    Of files with records, the messages and the answer of each are a document.
    """
    return [document for file in _files(path) for document in _documents(file)]


def _documents(path):
    if _suffix(path) in ENDINGS:
        def fields(record):
            name = _answer_name(record)
            return {"response": text_field(record, name) if name in record else ""}
        records = [record for _, record in _read(path, fields)]
        return ["\n".join([m["content"] for m in r["prompt"]] + [r["response"]]).strip()
                for r in records]
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
    def fields(record):
        return _responses(record) if "responses" in record else {}
    return [record for _, record in _read(path, fields)]


def read_demonstrations(path):
    """Prompts with a `response` (str), of a pair the chosen one.

    Rankings and answers that somebody called bad are passed over.
    """
    def fields(record):
        if "responses" in record and "response" not in record or record.get("verdict") == "bad":
            return None
        return {"response": text_field(record, _answer_name(record))}
    return [record for _, record in _read(path, fields)]


def read_comparisons(path):
    """Prompts with `responses` (list of str) and `ranks` (list of int, 1 is best).

    Of two rankings that one labeler gave to the same answers, the later counts, and the earlier is
    named. Good and bad answers to a prompt become one comparison; those without a counterpart are
    counted.
    """
    records, by_prompt = {}, {}
    for place, record in _read(path, _comparison):
        who, prompt = record.pop("labeler", None), json.dumps(record["prompt"])
        if verdict := record.pop("verdict", None):
            response, rank = record.pop("response"), 1 if verdict == "good" else 2
            by_prompt.setdefault(prompt, (record, {}))[1][response] = rank
            continue
        key = (who, prompt, *sorted(record["responses"])) if who else place
        if key in records:
            print(f"{records[key][0]}: {who} ranked the same answers again in {place}: the later "
                  "counts")
        records[key] = place, record
    found, alone = [record for _, record in records.values()], 0
    for record, answers in by_prompt.values():
        answers = dict(list(answers.items())[-9:])
        if len(set(answers.values())) == 2:
            found.append({**record, "responses": list(answers), "ranks": list(answers.values())})
        else:
            alone += len(answers)
    if alone:
        print(f"{path}: {alone} answers called good or bad have no counterpart to the same prompt, "
              "and so make no comparison")
    if not found:
        raise UserError(f"{path} holds no comparison: rank answers with python reward.py --label")
    return found


def split(records):
    """Hold out every twentieth prompt with all its records -> (training records, held-out ones).

    Of texts, every twentieth text. A single prompt serves as both.
    """
    prompts = [json.dumps(r if isinstance(r, str) else r["prompt"]) for r in records]
    kept = set(list(dict.fromkeys(prompts))[::20])
    held_out = [r for r, prompt in zip(records, prompts) if prompt in kept]
    training = [r for r, prompt in zip(records, prompts) if prompt not in kept]
    return training or held_out, held_out


def to_jsonl(records):
    """Records as text, one per line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write_jsonl(path, records):
    """Write records, one per line; the file is whole at any moment."""
    write(path, to_jsonl(records))


# ---- files ---------------------------------------------------------------------------------------

ENDINGS = (".jsonl", ".json", ".parquet")


def _suffix(path):
    """How a file's name ends, but for .gz."""
    path = Path(path)
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def several(paths):
    """"a,b" -> its paths; the name of one that exists may hold a comma."""
    # Path.exists would raise an OSError for a list that is longer than a name may be.
    return [str(paths)] if os.path.exists(paths) else str(paths).split(",")


def _files(paths):
    """"file,folder" -> the files."""
    found = []
    for part in several(paths):
        inside = sorted(Path(part).iterdir()) if Path(part).is_dir() else []
        found += [p for p in inside if _suffix(p) in (*ENDINGS, ".txt")] or [part]
    return found


def _limit(path):
    """How many bytes a file may unpack to: text packs 3 to 15 times, a bomb up to 1000 times."""
    return min(LARGEST_FILE, max(50_000_000, 30 * regular(path).st_size))


def _bytes(path):
    try:
        size, limit = regular(path).st_size, LARGEST_FILE  # a pipe would wait for its writer
        if Path(path).suffix == ".gz":
            limit = _limit(path)
            with gzip.open(path) as file:
                content = file.read(limit + 1)
            size = len(content)
        elif size <= limit:
            content = Path(path).read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked ({error}): download it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check --data") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): check --data") from None
    if size > limit:
        raise UserError(f"{path} holds more than {limit / 1e6:,.0f} MB: cut it into parts")
    return content


def _rows(path):
    """The records of a file: yields (place, dict or the bytes of a line, whether it was cut)."""
    if _suffix(path) == ".parquet":
        yield from ((f"{path}, row {n}", row, False) for n, row in enumerate(_parquet(path), 1))
        return
    content = _bytes(path).removeprefix(b"\xef\xbb\xbf")
    if _suffix(path) == ".json" and content.lstrip()[:1] == b"[":
        if len(content) > LARGEST_ARRAY:
            raise UserError(f"{path} is one JSON array of more than {LARGEST_ARRAY / 1e6:,.0f} "
                            "MB: write a record a line")
        try:
            rows = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON ({error}): download it again") from None
        yield from ((f"{path}, record {n}", row, False) for n, row in enumerate(rows, start=1))
        return
    last, lines = len(content), io.BytesIO(content)
    for n, line in enumerate(lines, start=1):
        if line.strip():
            yield (f"{path}, line {n}", line,
                   lines.tell() == last and not line.rstrip(b" \t\r").endswith((b"}", b"\n")))


def _parquet(path):
    """The rows of a parquet file, a few at a time, as its columns may unpack to anything."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: to read parquet, pip install pyarrow") from None
    try:
        limit, size = _limit(path), 0
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            size = sum(group.total_byte_size for group in groups)  # of what is packed
            for batch in file.iter_batches(batch_size=16) if size <= limit else ():
                if (size := size + batch.nbytes) > limit:
                    break
                yield from batch.to_pylist()
    except (*BROKEN, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): check --data") from None
    if size > limit:
        raise UserError(f"{path} unpacks to more than {limit / 1e6:,.0f} MB: cut it into parts")


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


def _read(paths, fields):
    """Read records: list of ("file, line n", record).

    fields(record) -> dict of the checked fields beside the prompt, None to pass the record over; it
    raises ValueError with what is wrong.
    """
    found, broken, lines = [], Broken(), 0
    for path in _files(paths):
        form = None
        for place, row, cut in _rows(path):
            lines += 1
            try:
                record = _parse(row) if isinstance(row, bytes) else row
                json.dumps(record, ensure_ascii=False, default=str).encode()
                kind, record = recognise(record)
                if form is None and kind != OURS:
                    print(f"{path}: {kind}")
                form = form or kind
                if kind != form:
                    raise ValueError(f"a record of another format ({kind}) than the first ({form})")
                record = _checked(record, fields)
                found += [(place, record)] if record else []
            except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
                if cut:
                    print(f"{place}: cut in the middle: set aside")
                elif isinstance(error, UnicodeEncodeError):
                    broken.append(f"{place}: half of a surrogate pair, which is no text")
                elif isinstance(error, RecursionError):
                    broken.append(f"{place}: nested too deeply")
                else:
                    broken.append(f"{place}: {error}" if isinstance(error, ValueError)
                                  else f"{place}: a field is not what it should be ({error})")
    if broken.count > .01 * lines:
        broken.refuse()
    for sentence in broken.sentences:
        print(f"{sentence}: left out")
    if broken.count > len(broken.sentences):
        print(f"{paths}: {broken.count:,} lines in all are left out")
    if not found:
        why = "holds no record of the kind that is needed here" if lines else "is empty"
        raise UserError(f"{paths} {why}: give it at least one JSON line")
    return found


def _parse(line):
    if len(line) > LONGEST_LINE:
        raise ValueError(f"{len(line) / 1e6:.1f} MB in one line")
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None


def _checked(record, fields):
    about = {}
    if almanac.knows(record):
        about = {name: record[name] for name in almanac.ABOUT}
    checked = fields(record)
    return None if checked is None else {"prompt": _messages(record), **about, **checked}


# ---- fields --------------------------------------------------------------------------------------


def _answer_name(record):
    """The field that holds the answer to learn."""
    return next((name for name in ("response", "completion", "chosen") if name in record),
                "response")


def _is_message(m):
    return (isinstance(m, dict) and m.get("role") in ("user", "assistant")
            and isinstance(m.get("content"), str))


def _messages(record):
    prompt = record.get("prompt")
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and prompt and all(map(_is_message, prompt)):
        if prompt[-1]["role"] != "user":
            raise ValueError('the last message of "prompt" must be the user\'s')
        return [{"role": m["role"], "content": m["content"]} for m in prompt]
    raise ValueError('"prompt" must be a text or a list of {"role": "user" or "assistant", '
                     '"content": text}')


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
        return {"responses": [text_field(record, "chosen"), text_field(record, "rejected")],
                "ranks": [1, 2], **who}
    if "verdict" in record:
        if record["verdict"] not in ("good", "bad"):
            raise ValueError('"verdict" must be "good" or "bad"')
        return {"response": text_field(record, "response"), "verdict": record["verdict"]}
    responses, ranks = _responses(record)["responses"], record.get("ranks")
    if (not isinstance(ranks, list) or len(ranks) != len(responses)
            or not all(type(r) is int and 1 <= r < 10 ** 6 for r in ranks)):
        raise ValueError(f'"ranks" must be a list of {len(responses)} whole numbers, 1 for '
                         'the best')
    return {"responses": responses, "ranks": ranks, **who}
