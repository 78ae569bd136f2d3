"""Arguments of the command line into dataclasses, and the word that a wrong one was meant for."""

from typing import Any


def nearest(word: str, words: Any) -> str:
    """`, did you mean "x"?` for the word most like it, or nothing."""
    import difflib

    close = difflib.get_close_matches(word, list(words), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def parse(kind: Any, arguments: list[str], prog: str, default: Any = None) -> Any:
    """Arguments into a dataclass by tyro; its own message and exit code 2 on a wrong one."""
    import tyro

    given = {} if default is None else {"default": default}
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.EnumChoicesFromValues)
    return tyro.cli(kind, args=arguments, prog=prog, config=markers, **given)
