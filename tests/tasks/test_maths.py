"""Word problems from files: numbers, splits, damage."""

import json
from decimal import Decimal

import pytest

from fastweights.errors import ConfigError, DataError
from fastweights.tasks.maths import Maths, number


@pytest.fixture
def files(tmp_path):
    """Twelve problems for training and four for test; the answer of problem n is n squared."""

    def line(n):
        return {
            "question": f"What is {n} times {n}?",
            "answer": f"{n} * {n} is it.\n#### {n * n:,}",
        }

    for name, numbers in (("train", range(30, 42)), ("test", range(50, 54))):
        text = "".join(json.dumps(line(n)) + "\n" for n in numbers)
        (tmp_path / f"{name}.jsonl").write_text(text + "\n")
    return tmp_path


def task(files, **more):
    return Maths(str(files / "train.jsonl"), str(files / "test.jsonl"), validation=3, **more)


@pytest.mark.parametrize(
    "text, value",
    [
        ("so #### 42", "42"),
        ("#### 1,234.50", "1234.5"),
        ("#### $7 a day for 3 days", "7"),
        ("#### -3", "-3"),
        ("2 and 3 make 5.", "5"),
        ("it is .5", "0.5"),
        ("#### 1\nno, #### 2", "2"),
        ("I give up", None),
        ("5 apples ####", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(text, value):
    assert number(text) == (None if value is None else Decimal(value))


def test_splits_share_no_problem_and_draws_repeat(files):
    maths = task(files)
    train = maths.problems("train", 9, 1)
    held, test = maths.problems("validation", 3), maths.problems("test", 4)
    assert len({p.id for p in (*train, *held, *test)}) == 16
    # those set aside are the file's last
    assert {p.query.split()[2] for p in held} == {"39", "40", "41"}
    assert maths.problems("train", 5, 1) == maths.problems("train", 5, 1)
    assert maths.problems("train", 5, 1) != maths.problems("train", 5, 2)
    with pytest.raises(ConfigError, match="10 problems are asked for"):
        maths.problems("train", 10)
    with pytest.raises(ConfigError, match="12 problems"):
        Maths(maths.train, maths.test, validation=12).problems("train", 1)


def test_an_answer_is_right_by_its_number_alone(files):
    maths = task(files)
    (problem,) = [p for p in maths.problems("train", 9) if "35" in p.query]
    for answer in ("#### 1225", "It is 1,225.", "#### 1225.00", "$1225"):
        assert maths.verify(problem, answer) == (maths.verify(problem, "1225"))
        assert maths.verify(problem, answer).correct
    wrong, none = maths.verify(problem, "#### 1224 or 1225"), maths.verify(problem, "who knows")
    assert (wrong.value, wrong.correct, none.value) == (0.0, False, 0.0)
    assert "1224 is not" in wrong.feedback and "35 * 35 is it." in wrong.feedback
    assert "no number" in none.feedback
    assert not maths.verify(problem, "9" * 5000).correct


def test_the_text_takes_braces_as_they_are(files):
    maths = task(files, template="<{instructions}|{question}>")
    (problem, *_) = maths.problems("test", 1)
    text = maths.text({"instructions": "use {question} and {x}"}, problem)
    assert text == f"<use {{question}} and {{x}}|{problem.query}>"


def test_what_cannot_work_is_told(files):
    assert not task(files).faults()
    bad = Maths("", "", validation=0, template="{question}", instructions="x" * 9000)
    said = " ".join(bad.faults())
    for word in ("train is", "test is", "validation", "{instructions}", "instructions has 9000"):
        assert word in said
    assert task(files).prompt_problems({"other": ""}) and task(files).prompt_problems(
        {"instructions": "x" * 8001}
    )


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"question": "?", "answer": "#### 1"}\n{"question": "?"}\n', "line 2"),
        ('{"question": "?", "answer": "1"}\n', "line 1"),
        ('{"question": "?", "answer": "#### one"}\n', "line 1"),
        ('{"question": 3, "answer": "#### 1"}\n', "line 1"),
        ("[1]\n", "line 1"),
        ("{\n", "line 1"),
        ("\n\n", "no problems"),
    ],
)
def test_a_damaged_file_is_told_with_the_line(tmp_path, text, said):
    path = tmp_path / "some.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        Maths(str(path), str(path)).problems("test", 1)
    with pytest.raises(DataError, match="cannot be read"):
        Maths(str(path), str(tmp_path / "none")).problems("test", 1)
