"""What devices say to each other, counted in the text of a compiled program."""

import collections
import re

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def collective_arrays(text):
    """How often each array is sent, by (kind, dtype, shape); loops count as often as they turn.

    XLA sends several arrays in one collective where it can, so arrays are counted and not
    collectives.
    """
    bodies, entry, name = {}, None, None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
            bodies[name] = []
        elif name is not None:
            bodies[name].append(line)
    found = collections.Counter()

    def walk(name, times):
        for line in bodies[name]:
            for arrays, kind in re.findall(rf"= (.*?) ({KINDS})(?:-start)?\(", line):
                for dtype, shape in ARRAY.findall(arrays):
                    found[kind, dtype, tuple(map(int, filter(None, shape.split(","))))] += times
            turns = re.findall(r'"known_trip_count":\{"n":"(\d+)"', line)
            for role, callee in re.findall(r"(body|calls)=%?([\w.\-]+)", line):
                assert role == "calls" or turns, f"a loop of unknown length: {line}"
                walk(callee, times * int(turns[0]) if role == "body" else times)

    assert entry is not None
    walk(entry, 1)
    return found


def collective_bytes(found):
    """Bytes of all arrays counted by `collective_arrays`."""
    total = 0
    for (_, dtype, shape), times in found.items():
        size = BYTES[dtype] * times
        for axis in shape:
            size *= axis
        total += size
    return total
