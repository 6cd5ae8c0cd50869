"""Files in, records out; what can not be used is named with its file and line."""

import json
from pathlib import Path

from data.runs import UserError, write


def read_text(path):
    """Documents of a UTF-8 text file: list of str. Blank lines separate documents."""
    documents = [d.strip() for d in _read(path).split("\n\n") if d.strip()]
    if not documents:
        raise UserError(f"{path} is empty: give it text, documents separated by blank lines")
    return documents


def _read(path):
    try:
        return Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = Path(path).read_bytes()[:error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8: save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} can not be read ({error.strerror}): check --data") from None


def write_jsonl(path, records):
    write(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
