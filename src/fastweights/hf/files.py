"""Which file of a directory holds each tensor, with everything untrusted about it refused.

A directory from somewhere else is data of somebody else's: pickles run code when they are read, and
an index can name files anywhere. Only safetensors in the directory itself are opened.
"""

from pathlib import Path
from typing import Any

from fastweights.errors import CheckpointError
from fastweights.hf.config import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
CONVERT = (
    'on a machine where you trust the file: python -c "from transformers import '
    "AutoModelForCausalLM as M; M.from_pretrained('DIR').save_pretrained('NEW_DIR')\""
)


def directory(path: str | Path) -> Path:
    """The model directory at a path.

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    raise CheckpointError(
        f"{str(path)!r} is not a directory",
        where=folder,
        cause="it is a file"
        if folder.exists()
        else "the path is mistyped, or the name of a model that is not on this machine",
        next=f"download it first: hf download {path} --local-dir DIR, then give DIR",
    )


def shards(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files of a directory, and what the index says of them.

    Returns:
        The files in order, and {tensor: file name}, {} where the file is a single one.

    Raises:
        CheckpointError: there are pickles only or nothing, the index is damaged, or it names a file
            that is not there or not in the directory.
    """
    # where there are both, transformers reads the single file too
    if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
        return [_shard(folder, SINGLE)], {}
    if (folder / INDEX).exists():
        named = _index(folder)
        names = sorted(set(named.values()))
        return [_shard(folder, name) for name in names], named
    pickles = sorted(file.name for kind in PICKLES for file in folder.glob(kind))
    if pickles:
        raise CheckpointError(
            f"the weights are pickles ({', '.join(pickles[:3])}), which are never opened",
            where=folder / pickles[0],
            cause="reading a pickle runs whatever code it holds",
            next=CONVERT,
        )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    raise CheckpointError(
        f"there is neither {SINGLE} nor {INDEX}",
        where=folder,
        cause=f"the index of {others[0]} ... was not downloaded" if others else "not a model",
        next="download the whole repository, or give the folder that holds the weights",
    )


def _index(folder: Path) -> dict[str, str]:
    refuse_link_out(folder, folder / INDEX)
    raw: Any = read_json(folder / INDEX).get("weight_map")
    if isinstance(raw, dict) and raw and all(isinstance(v, str) for v in raw.values()):
        return raw
    raise CheckpointError(
        "the index has no weight_map of tensor names to file names",
        where=folder / INDEX,
        cause="the file is damaged",
        next="download it again",
    )


def _shard(folder: Path, name: str) -> Path:
    """The safetensors file of that name in the directory itself."""
    file = folder / name
    # a name of one part: no "..", no "/", no drive letter
    plain = name not in ("", ".", "..") and not {"/", "\\", ":", "\0"} & set(name)
    if not plain or not name.endswith(".safetensors"):
        raise CheckpointError(
            f"the index names {name!r}, which is not a safetensors file of this directory",
            where=folder / INDEX,
            cause="the index was made by hand, or to make you open another file",
            next="do not use this checkpoint unless you trust it; then move the files beside "
            "their index and correct the names in it",
        )
    refuse_link_out(folder, file)
    if not file.is_file():
        raise CheckpointError(
            f"the file {name} is missing",
            where=file,
            cause="its download did not finish",
            next=f"download {name} into {folder}",
        )
    return file


def refuse_link_out(folder: Path, file: Path) -> None:
    """Refuse a file of a directory that is, or lies behind, a link out of it.

    The Hugging Face cache is made of links, `NAME/snapshots/REVISION/file -> ../../blobs/HASH`, and
    is let pass.

    Raises:
        CheckpointError: naming both ends.
    """
    home, target = folder.resolve(), file.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if home not in target.parents and target.parent != blobs:
        raise CheckpointError(
            f"{file.name} is a link to {target}, outside the directory",
            where=file,
            cause="the checkpoint was packed by hand, or to make you open another file",
            next="replace the link by the file itself",
        )
