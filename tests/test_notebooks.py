"""The notebooks run, in seconds with QUICK=1 and in full, and what is committed in them is no older than the code they show."""

import os
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
names = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def course():
    from notebooks import course
    return course


def test_there_are_six():
    assert [path.stem[0] for path in NOTEBOOKS] == list("123456")


@names
def test_a_notebook_is_fit_to_read(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(len(cell.source.splitlines()) <= 10 for cell in code), [cell.source for cell in code if len(cell.source.splitlines()) > 10]
    assert sum("hidden" in cell.metadata.get("tags", []) for cell in code) >= 3  # the answers to the exercises
    prose = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    assert sum(line.startswith("# ") for line in prose) == 1 and not any(re.match(r"#( #|$)", line) for line in prose)  # one title, no comments
    text = path.read_text()
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", text)
    for link in re.findall(r"\]\(([\w./]+\.(?:ipynb|py))\)", text):
        assert (path.parent / link).exists(), link
    assert all(cell.execution_count and not any(out.output_type == "error" for out in cell.outputs) for cell in code), \
        f"python notebooks/course.py {path.stem}"


@names
def test_outputs_are_no_older_than_the_code_they_show(path, course):
    notebook = nbformat.read(path, 4)
    now, then = course.shown(notebook), notebook.metadata.get("shown", {})
    changed = [name for name in now if now[name] != then.get(name)]
    assert not changed, f"{', '.join(changed)} changed since the notebook was run: python notebooks/course.py {path.stem}"


@pytest.fixture(scope="module")
def quick_out(tmp_path_factory):
    return tmp_path_factory.mktemp("quick")


@pytest.mark.slow
@names
def test_quick(path, course, quick_out, monkeypatch):
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("OUT", str(quick_out))
    course.execute(path)


@pytest.fixture(scope="module")
def full_out(tmp_path_factory):
    return tmp_path_factory.mktemp("full")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("FULL"), reason="FULL=1 runs the notebooks at their real size, about half an hour")
@names
def test_full(path, course, full_out, monkeypatch):
    monkeypatch.setenv("OUT", str(full_out))
    course.execute(path)
