"""Files to rows: which files are meant, their text, and their records as Python objects.

A file of records is JSON lines, a JSON array, CSV, or parquet (if pyarrow is installed), and may be
compressed (.gz). What is none of these, such as a pointer of Git LFS, is named as what it is.
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

LONGEST_LINE = 1_000_000        # bytes: no conversation
LARGEST_FILE = 2_000_000_000    # bytes, unpacked: the records take several times as much memory
LARGEST_ARRAY = 200_000_000     # bytes of one JSON value, which may take 30 times as much memory
RECORDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
LISTS = ("prompt", "messages", "conversations", "completions")  # of dicts, in a single record
NUMBERS = ("rating", "helpfulness", "labels", "choice", "better_response_id", "score_0", "score_1")
ABOUT = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")


# ---- which files ---------------------------------------------------------------------------------


def ending(path):
    """How a file's name ends, but for .gz."""
    path = Path(path)
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def several(paths):
    """"a,b" -> its paths; the name of one that exists may hold a comma."""
    # Path.exists would raise an OSError for a list that is longer than a name may be.
    if os.path.exists(paths):
        return [str(paths)]
    return [part.strip() for part in str(paths).split(",") if part.strip()]


def files(paths, endings=RECORDS):
    """"file,folder" -> the files; of a folder those with such endings, and a line that names them.
    """
    found = []
    for part in several(paths):
        if not Path(part).is_dir():
            found.append(part)
            continue
        inside = [p for p in sorted(Path(part).iterdir())
                  if ending(p) in endings and p.name not in ABOUT]
        if not inside:
            raise UserError(f"{part} holds no file that ends with {', '.join(endings)}: name a "
                            "file, or a folder with some")
        print(f"{part}: reads {', '.join(p.name for p in inside)}")
        found += inside
    return found


# ---- what is in them -----------------------------------------------------------------------------


def _limit(size):
    """How many bytes a file of this size may unpack to: text packs 3 to 15 times, a bomb up to 1000
    times."""
    return min(LARGEST_FILE, max(50_000_000, 30 * size))


def content(path):
    """The bytes of a file, unpacked; UserError for one that cannot be read or is too large."""
    try:
        size, limit = regular(path).st_size, LARGEST_FILE  # a pipe would wait for its writer
        if Path(path).suffix == ".gz":
            limit = _limit(size)
            with gzip.open(path) as file:
                found = file.read(limit + 1)
            size = len(found)
        elif size <= limit:
            found = Path(path).read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked ({error}): download it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check --data") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): check --data") from None
    if size > limit:
        raise UserError(f"{path} holds more than {limit / 1e6:,.0f} MB: cut it into parts")
    return found


def text(path):
    """The text of a file, with lines that end as Unix ends them."""
    found = content(path)
    try:
        return found.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = found[:error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8: save the file as UTF-8") from None


def rows(path):
    """The records of a file: yields (place, dict or the bytes of a line, whether it was cut)."""
    if Path(path).name in ABOUT:
        raise UserError(f"{path} describes a data set and holds none of it: name the file beside "
                        "it that does")
    if ending(path) == ".parquet":
        yield from ((f"{path}, row {n}", row, False) for n, row in enumerate(_parquet(path), 1))
    elif ending(path) in (".csv", ".tsv"):
        yield from ((f"{path}, line {n}", row, False) for n, row in _csv(path))
    else:
        found = content(path).removeprefix(b"\xef\xbb\xbf")
        if ending(path) == ".json" and (whole := _whole(path, found)) is not None:
            yield from ((f"{path}, record {n}", row, False) for n, row in enumerate(whole, 1))
            return
        lines = io.BytesIO(found)
        for n, line in enumerate(lines, start=1):
            if line.strip():
                end = lines.tell() == len(found)
                yield (f"{path}, line {n}", line,
                       end and not line.rstrip(b" \t\r").endswith((b"}", b"\n")))


def _whole(path, found):
    """The records of a file that is one JSON value; None for JSON lines.

    The value is a list, one record, or an object of which a field holds the list.
    """
    array = found.lstrip()[:1] == b"["
    if len(found) > LARGEST_ARRAY:
        if array:
            raise UserError(f"{path} is one JSON array of more than {LARGEST_ARRAY / 1e6:,.0f} "
                            "MB: write one record per line")
        return None
    try:
        value = json.loads(found)
    except (ValueError, RecursionError) as error:
        if array:
            raise UserError(f"{path} is not JSON ({error}): download it again") from None
        return None
    if isinstance(value, list):
        return value
    inside = {name: x for name, x in value.items() if x and isinstance(x, list)
              and all(isinstance(row, dict) for row in x)} if isinstance(value, dict) else {}
    if len(inside) != 1 or not inside.keys().isdisjoint(LISTS):
        return [value]
    (name, found), = inside.items()
    print(f"{path}: the records are in its field {name!r}")
    return found


def _csv(path):
    """The rows of a CSV file as dicts of texts, and of numbers in NUMBERS: yields (line, row)."""
    table = text(path)
    try:
        style = csv.Sniffer().sniff(table.split("\n", 1)[0], ",;\t")
    except csv.Error:
        style = csv.excel
    style.doublequote = True
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.DictReader(io.StringIO(table, newline=""), dialect=style)
    try:
        for row in reader:
            if None in row:
                raise UserError(f"{path}, line {reader.line_num}: more cells than the first line "
                                "has names: put texts with commas between quotes")
            for name in row.keys() & NUMBERS:
                with contextlib.suppress(ValueError, TypeError):
                    row[name] = json.loads(row[name])
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error}): mend the line, or "
                        "write JSON lines") from None


def _parquet(path):
    """The rows of a parquet file, a few at a time, as its columns may unpack to anything."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: to read parquet, pip install pyarrow") from None
    try:
        limit, size = _limit(regular(path).st_size), 0
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
