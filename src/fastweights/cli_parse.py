"""Arguments of the command line into dataclasses."""

from typing import Any


def parse(kind: Any, arguments: list[str], prog: str, default: Any = None) -> Any:
    """Arguments into a dataclass by tyro; its own message and exit code 2 on a wrong one."""
    import tyro

    given = {} if default is None else {"default": default}
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.EnumChoicesFromValues)
    return tyro.cli(kind, args=arguments, prog=prog, config=markers, **given)
