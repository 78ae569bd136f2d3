"""The Python of the pages in docs/ runs as it stands, but for pages that need a checkpoint."""

import re

import pytest
from support import ROOT

#: its code loads a downloaded checkpoint
ELSEWHERE = {"in_place_ttt"}
BLOCKS = [
    (page, code)
    for page in sorted((ROOT / "docs").glob("*.md"))
    if page.stem not in ELSEWHERE
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
]


@pytest.mark.parametrize("page, code", BLOCKS, ids=lambda x: getattr(x, "stem", ""))
def test_python_in_the_docs(page, code):
    exec(compile(code, page.name, "exec"), {"__name__": page.stem})


def test_there_is_python_in_the_docs():
    assert "rules" in {page.stem for page, _ in BLOCKS}
