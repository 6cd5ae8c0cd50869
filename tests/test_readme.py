"""What the README says is what the code gives."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # to be run as a program, too

from data.judge import report
from notebooks import benchmark, memory
from notebooks import experiments

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "notebooks" / "results"


def block(name):
    return re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", README, re.S)[1].strip()


def test_the_table_is_what_the_evaluation_makes_of_its_results():
    every = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("evaluation-*.json"))]
    assert len(every) == 3 and block("results") == report.seeds_table(every)


@pytest.mark.parametrize("name", ["options", "rounds", "feedback", "ensembles", "best_of_n", "overoptimisation"])
def test_the_tables_of_the_experiments_are_made_of_their_results(name):
    found = json.loads((RESULTS / f"{name}.json").read_text())
    assert block(name) == experiments.table(found.get("table", found))


def test_the_table_of_memory_is_computed():
    assert block("memory") == memory.table()


def test_the_tables_of_speed_are_made_of_their_measurements():
    assert block("benchmark") == benchmark.table(json.loads(benchmark.RESULTS.read_text()))


def test_every_link_leads_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_map_from_the_papers_to_the_code_leads_there():
    import importlib
    import inspect
    rows = re.findall(r"`(\w+)\.(\w+)` \[([\w/]+\.py):(\d+)\]\(([\w/]+\.py)#L(\d+)\)", README)
    assert len(rows) >= 15
    for module, name, file, line, link, anchor in rows:
        there = inspect.unwrap(getattr(importlib.import_module(file[:-3].replace("/", ".")), name))
        first = next(i for i, text in enumerate(inspect.getsourcelines(inspect.getmodule(there))[0], start=1) if re.match(rf"(def|class) {name}\b", text))
        assert (file, line) == (link, anchor) and int(line) == first, f"{module}.{name} is in line {first} of {file}: python tests/test_readme.py"


if __name__ == "__main__":  # put the right numbers of lines and the tables into the README
    text = README
    for name in set(re.findall(r"`\w+\.(\w+)` \[", text)):
        for file in set(re.findall(rf"`\w+\.{name}` \[([\w/]+\.py):", text)):
            first = next(i for i, line in enumerate((ROOT / file).read_text().splitlines(), start=1) if re.match(rf"(def|class) {name}\b", line))
            text = re.sub(rf"(`\w+\.{name}`) \[{file}:\d+\]\({file}#L\d+\)", rf"\1 [{file}:{first}]({file}#L{first})", text)
    tables = {"memory": memory.table()}
    for path in RESULTS.glob("*.json"):
        found = json.loads(path.read_text())
        if f"<!-- {path.stem} -->" in text and path.stem != "results":
            tables[path.stem] = benchmark.table(found) if path == benchmark.RESULTS else experiments.table(found.get("table", found))
    if every := [json.loads(path.read_text()) for path in sorted(RESULTS.glob("evaluation-*.json"))]:
        tables["results"] = report.seeds_table(every)
    for name, table in tables.items():
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: m[1] + "\n" + table + "\n\n" + m[2], text, flags=re.S)
    (ROOT / "README.md").write_text(text)
