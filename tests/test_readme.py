"""What the README says is what the code gives."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # to be run as a program, too

import ppo
from data.judge import tables as pages
from data.run import curves
from notebooks import benchmark, experiments, memory, speedrun

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "notebooks" / "README.zh.md", ROOT / "notebooks" / "RESULTS.md",
         ROOT / "notebooks" / "FAQ.md"]
RESULTS = ROOT / "notebooks" / "results"
SWEEPS = ["options", "details", "rounds", "groups", "after", "feedback", "ensembles", "best_of_n",
          "overoptimisation", "reading", "sources"]


def tables():
    """{name of a block: what stands in it}: all tables are made of the files in
    notebooks/results."""
    every = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("evaluation-*.json"))]
    made = {"results": pages.seeds_table(every), "summary": pages.summary_table(every),
            "memory": memory.table(), "world": experiments.world(),
            "benchmark": benchmark.table(json.loads(benchmark.RESULTS.read_text())),
            "speedrun": speedrun.table(json.loads(speedrun.RESULTS.read_text()))}
    for name in SWEEPS:
        found = json.loads((RESULTS / f"{name}.json").read_text())
        made[name] = experiments.table(found.get("table", found))
    return made


def blocks(page):
    """What stands between the marks of a page -> [(name, text)]."""
    return re.findall(r"<!-- (\w+) -->\n(.*?)\n?<!-- /\1 -->", page.read_text(), re.S)


def test_every_table_is_made_of_its_results():
    made, shown = tables(), [x for page in PAGES for x in blocks(page)]
    assert {name for name, _ in shown} == set(made)
    for name, text in shown:
        assert text.strip() == made[name], f"{name}: python tests/test_readme.py"


def test_all_figures_are_of_one_code():
    """Benchmarks and speedruns aside, whose rows say what they are of.

    Seeds 4 to 6 and their rounds are of earlier code; RESULTS.md says why it is the same one.
    """
    files = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")
             if path.stem not in ("benchmark", "speedrun")}
    made = {name: figures.get("same_as", figures.get("code")) for name, figures in files.items()}
    assert len(set(made.values())) == 1 and None not in made.values(), made
    earlier = {name for name, figures in files.items() if "same_as" in figures}
    assert earlier == {"rounds", "story", *(f"evaluation-{seed}" for seed in (4, 5, 6))}


@pytest.mark.parametrize("page", PAGES + [ROOT / "notebooks" / "GLOSSARY.md"],
                         ids=lambda path: path.name)
def test_every_link_leads_somewhere(page):
    text = page.read_text()
    headings = {p: re.sub(r"[^\w -]", "",
                          " ".join(re.findall(r"^#+ (.*)", p.read_text(),
                                              re.M)).lower()).replace(" ", "-") for p in PAGES}
    for link, _, anchor in re.findall(r"\]\(([^)#:]*)(#([^)]*))?\)", text):
        there = page.parent / link if link else page
        assert there.exists(), link
        assert not anchor or re.match(r"L\d+$",
                                      anchor) or anchor in headings[there.resolve()], anchor


def test_the_readme_is_short():
    assert len(PAGES[0].read_text().splitlines()) <= 200 and PAGES[0].stat().st_size <= 14_000


def test_the_chinese_readme_has_the_same_commands_headings_and_code():
    english, chinese = (page.read_text() for page in PAGES[:2])
    for pattern in (r"^    (?:python|python3|pip|git) .*?(?=  +#|$)", r"^(#+) ",
                    r"`[a-z]\w*\.\w+` \[[\w/.]+:\d+\]", r"^```"):
        found = [re.findall(pattern, text, re.M) for text in (english, chinese)]
        assert found[0] == found[1], pattern


def test_every_figure_of_the_log_and_the_curves_is_in_the_glossary():
    glossary = (ROOT / "notebooks" / "GLOSSARY.md").read_text()
    named = set(re.findall(r"`([\w/ -]+)`", glossary))
    shown = {name for names in curves.PANELS
             for name in names} | set(ppo.SHOWN) | {"step", "seconds", "gold"}
    shown |= {name for stage in ("gpt", "sft", "reward", "ppo") for record in curves.healthy(stage)
              for name in record}
    assert shown <= named, shown - named
    rows = re.findall(r"^\| (.*) \|$", glossary, re.M)
    assert all(re.search("[\u4e00-\u9fff]", row) for row in rows[2:])  # each has its Chinese word


def test_the_map_from_the_papers_to_the_code_leads_there():
    import importlib
    import inspect
    text = "".join(page.read_text() for page in PAGES)
    rows = re.findall(r"`(\w+)\.(\w+)` \[([\w/]+\.py):(\d+)\]\((?:\.\./)?([\w/]+\.py)#L(\d+)\)",
                      text)
    assert len(rows) >= 50
    for module, name, file, line, link, anchor in rows:
        there = inspect.unwrap(getattr(importlib.import_module(file[:-3].replace("/", ".")), name))
        lines, _ = inspect.getsourcelines(inspect.getmodule(there))
        first = next(i for i, text in enumerate(lines, start=1)
                     if re.match(rf"(def|class) {name}\b", text))
        wrong = f"{module}.{name} is in line {first} of {file}: python tests/test_readme.py"
        assert (file, line) == (link, anchor) and int(line) == first, wrong


def first_line(file, name):
    lines = (ROOT / file).read_text().splitlines()
    return next(i for i,
                line in enumerate(lines, start=1) if re.match(rf"(def|class) {name}\b", line))


if __name__ == "__main__":  # put the right numbers of lines and the tables into the pages
    made = tables()
    for page in PAGES:
        text = re.sub(r"(`\w+\.(\w+)`) \[([\w/]+\.py):\d+\]\(((?:\.\./)?)[\w/.]+#L\d+\)",
                      lambda m: "{} [{}:{line}]({}{}#L{line})".format(
                          m[1], m[3], m[4], m[3], line=first_line(m[3], m[2])), page.read_text())
        text = re.sub(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)",
                      lambda m: m[1] + "\n" + made[m[2]] + "\n\n" + m[3], text, flags=re.S)
        page.write_text(text)
