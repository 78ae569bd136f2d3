"""Options that are one of a few words, compared with the `Literal` their dataclass declares."""

from typing import Any, Literal, get_args, get_origin, get_type_hints


def not_a_choice(options: Any, where: str = "") -> list[str]:
    """A sentence for every `Literal` field of a dataclass that holds something else.

    Args:
        options: the dataclass instance.
        where: what stands before the name of a field, as "rope.".
    """
    hints = get_type_hints(type(options))
    choices = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
    values = {name: getattr(options, name) for name in choices}
    return [
        f"{where}{name} is {value!r}; it must be one of {', '.join(map(repr, choices[name]))}"
        for name, value in values.items()
        if value not in choices[name]
    ]
