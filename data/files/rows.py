"""Files to rows: which files are meant, their text, and their records as Python objects.

A file of records is JSON lines, one JSON value, CSV, or parquet (if pyarrow is installed), and may
be compressed (.gz). What is none of these, such as a pointer of Git LFS, is named as what it is.
"""

import contextlib
import csv
import gzip
import io
import json
import os
import zlib
from pathlib import Path

from data.run.disk import BROKEN, reason, regular
from data.run.system import UserError

LONGEST_LINE = 1_000_000      # bytes: no conversation
LARGEST_FILE = 2_000_000_000  # bytes, unpacked: the records take several times as much memory
LARGEST_VALUE = 200_000_000   # bytes of one JSON value, which may take 30 times as much memory
RECORDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
# A JSON object with one of these is a record; one with another list of dicts holds the records.
IN_RECORDS = {"prompt", "messages", "conversations", "completions", "question", "instruction",
              "text", "post", "info", "history", "chosen"}
NUMBERS = ("rating", "helpfulness", "labels", "choice", "better_response_id", "score_0", "score_1")


def suffix(path):
    """".jsonl" of a.jsonl, and of a.jsonl.gz."""
    return Path(str(path).removesuffix(".gz")).suffix.lower()


def several(paths):
    """"a,b" -> its paths; the name of one that exists may hold a comma."""
    # Path.exists would raise an OSError for a list that is longer than a name may be.
    if os.path.exists(paths):
        return [str(paths)]
    return [part.strip() for part in str(paths).split(",") if part.strip()]


def files(paths, suffixes=RECORDS):
    """"file,folder" -> the files; of a folder those with such suffixes, and a line names them."""
    every = []
    for part in several(paths):
        if not Path(part).is_dir():
            every.append(part)
            continue
        inside = [p for p in sorted(Path(part).iterdir())
                  if suffix(p) in suffixes and p.name not in DESCRIPTIONS]
        if not inside:
            raise UserError(f"{part} holds no file that ends with {', '.join(suffixes)}: name a "
                            "file, or a folder with some")
        print(f"{part}: reads {', '.join(p.name for p in inside)}")
        every += inside
    return every


def limit(path):
    """How many bytes a file may unpack to: text packs 3 to 15 times, a bomb up to 1000 times."""
    return min(LARGEST_FILE, max(50_000_000, 30 * regular(path).st_size))


def too_large(path, most):
    return UserError(f"{path} holds more than {most / 1e6:,.0f} MB: cut it into parts")


def content(path):
    """The bytes of a file, unpacked; UserError for one that cannot be read or is too large."""
    if Path(path).suffix in (".bz2", ".xz", ".zip", ".zst", ".xlsx", ".arrow"):
        raise UserError(f"{path} is of a kind that this code does not read: unpack it, or save it "
                        "as JSON lines or CSV")
    try:
        most = limit(path)
        with (gzip.open if Path(path).suffix == ".gz" else open)(path, "rb") as file:
            data = file.read(most + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): check --data, or download it "
                        "again") from None
    if len(data) > most:
        raise too_large(path, most)
    return data


def text(path):
    """The text of a file, with lines that end as Unix ends them."""
    data = content(path)
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8: save the file as UTF-8") from None


def rows(path):
    """The records of a file: yields (place, a value or, of JSON lines, the bytes of a line)."""
    if Path(path).name in DESCRIPTIONS:
        raise UserError(f"{path} describes a data set and holds none of it: name the file beside "
                        "it that does")
    if suffix(path) == ".parquet":
        yield from ((f"{path}, row {n}", row) for n, row in enumerate(_parquet(path), 1))
        return
    if suffix(path) in (".csv", ".tsv"):
        yield from ((f"{path}, line {n}", row) for n, row in _csv(path))
        return
    data = content(path).removeprefix(b"\xef\xbb\xbf")
    whole = suffix(path) == ".json" or data.lstrip()[:1] == b"["
    if whole and (values := _whole(path, data)) is not None:
        yield from ((f"{path}, record {n}", row) for n, row in enumerate(values, 1))
        return
    if not data.rstrip(b" \t\r").endswith((b"}", b"\n")):  # as a session that was killed leaves it
        print(f"{path}: its last line is cut in the middle: skipped")
        data = data[:data.rfind(b"\n") + 1]
    for n, line in enumerate(io.BytesIO(data), 1):
        if line.strip():
            yield f"{path}, line {n}", line


def _whole(path, data):
    """The records of a file that is one JSON value; None for JSON lines.

    The value is a list, one record, or an object of which a field holds the list.
    """
    is_list = data.lstrip()[:1] == b"["
    if len(data) > LARGEST_VALUE:
        if is_list:
            raise UserError(f"{path} is one JSON array of more than {LARGEST_VALUE / 1e6:,.0f} "
                            "MB: write one record per line")
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        if is_list:
            raise UserError(f"{path} is not JSON ({error}): download it again") from None
        return None
    if isinstance(value, dict):
        inside = [name for name, x in value.items()
                  if x and isinstance(x, list) and all(isinstance(row, dict) for row in x)]
        if len(inside) != 1 or IN_RECORDS & value.keys():
            return [value]
        print(f"{path}: the records are in its field {inside[0]!r}")
        return value[inside[0]]
    return value if isinstance(value, list) else [value]


def _csv(path):
    """The rows of a CSV file as dicts of texts, and of numbers in NUMBERS: yields (line, row).

    Cells that are empty are left out. Spark and MySQL write \\" for a quote in a text, where others
    write "": what is no CSV in the ordinary way is read in theirs.
    """
    table = text(path)
    csv.field_size_limit(LONGEST_LINE)
    delimiter = max(",;\t", key=table.partition("\n")[0].count)
    try:
        lines = _table(table, delimiter=delimiter)
    except csv.Error:
        try:
            lines = _table(table, delimiter=delimiter, escapechar="\\", doublequote=False)
        except csv.Error as error:
            raise UserError(f"{path} is not CSV ({error}): mend it, or write JSON lines") from None
    (_, names), *lines = lines or [(1, [])]
    if len(set(names)) < len(names):
        raise UserError(f"{path}, line 1: a name stands there twice: rename a column")
    for line, cells in lines:
        if len(cells) > len(names):
            raise UserError(f"{path}, line {line}: more cells than the first line has names: put "
                            "texts with commas between quotes")
        row = {name: cell for name, cell in zip(names, cells) if cell}
        for name in row.keys() & NUMBERS:
            with contextlib.suppress(ValueError):  # else as it is: the format's own check names it
                row[name] = float(row[name])
        yield line, row


def _table(text, **dialect):
    """All rows of a CSV text -> [(line, cells)]; csv.Error for an unclosed quote and the like."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **dialect)
    return [(reader.line_num, cells) for cells in reader if cells]


def _parquet(path):
    """The rows of a parquet file, a few at a time, as its columns may unpack to anything."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: to read parquet, pip install pyarrow") from None
    try:
        most, size = limit(path), 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=16):
                if (size := size + batch.nbytes) > most:
                    raise too_large(path, most)
                yield from batch.to_pylist()
    except MemoryError:
        raise too_large(path, most) from None
    except (*BROKEN, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): check --data") from None
