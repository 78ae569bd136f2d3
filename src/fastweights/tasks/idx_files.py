"""IDX, the format MNIST was published in: gzipped files, downloaded, verified, parsed.

An IDX file is a magic number (two zero bytes, a type code, the number of dimensions), then the
dimensions as big-endian uint32, then the values in C order. Type code 8 is uint8, the only one read
here.
"""

import dataclasses
import gzip
import hashlib
import urllib.request
import uuid
import zlib

import numpy as np
from etils import epath

from fastweights.errors import DataError

_MAGIC_UINT8 = bytes([0, 0, 8])
_TIMEOUT_S = 30


@dataclasses.dataclass(frozen=True)
class IdxFile:
    """A gzipped IDX file of uint8: its name, the shape in it, and the SHA-256 of the .gz in hex."""

    name: str
    shape: tuple[int, ...]
    sha256: str


def download(file: IdxFile, base_url: str, folder: epath.Path) -> None:
    """Fetch a file into a folder, where it appears whole and verified or not at all.

    Raises:
        OSError, http.client.HTTPException: no connection, a time-out, a folder not writable.
        DataError: what came has another checksum.
    """
    with urllib.request.urlopen(base_url + file.name, timeout=_TIMEOUT_S) as response:
        packed = response.read()
    _verify(file, packed, base_url + file.name)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{file.name}.{uuid.uuid4().hex}.part"
    part.write_bytes(packed)
    part.replace(folder / file.name)


def read(file: IdxFile, folder: epath.Path) -> np.ndarray:
    """The array in a file, uint8 [*file.shape].

    Raises:
        DataError: missing, another checksum, not gzip, cut short, not IDX, or of another shape.
    """
    path = folder / file.name
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file.name}", where=path, cause=str(error)) from error
    _verify(file, packed, path)
    try:
        data = gzip.decompress(packed)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _bad(file, path, f"is not a whole gzip file ({error})") from error
    if data[:3] != _MAGIC_UINT8 or len(data) < 4 + 4 * data[3]:
        raise _bad(file, path, f"is not IDX of uint8: its magic number is 0x{data[:4].hex()}")
    header = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[4:header], ">u4").tolist())
    if shape != file.shape:
        raise _bad(file, path, f"holds an array of shape {shape}, not {file.shape}")
    values = np.frombuffer(data, np.uint8, offset=header)
    if values.size != np.prod(shape):
        raise _bad(file, path, f"holds {values.size} values, not the {np.prod(shape)} it declares")
    return values.reshape(shape)


def _verify(file: IdxFile, packed: bytes, where: object) -> None:
    found = hashlib.sha256(packed).hexdigest()
    if found != file.sha256:
        size = f"{len(packed)} bytes"
        raise _bad(file, where, f"({size}) has the SHA-256 {found}, not {file.sha256}")


def _bad(file: IdxFile, where: object, found: str) -> DataError:
    return DataError(
        f"{file.name} {found}",
        where=where,
        cause="an interrupted download, or another file under that name",
        next="delete it and get the original again",
    )
