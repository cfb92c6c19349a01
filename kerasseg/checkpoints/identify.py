"""Identify files by their first bytes, never by their name and never by loading them."""

from __future__ import annotations

import contextlib
import difflib
import enum
import re
from collections.abc import Iterator
from pathlib import Path

from kerasseg_tfrecords.documents import parse_json
from kerasseg_tfrecords.errors import CheckpointError, DataError
from kerasseg_tfrecords.files import read_file
from kerasseg_tfrecords.formats.weights import member_names
from kerasseg_tfrecords.text import without_credentials

_HDF5 = b"\x89HDF\r\n\x1a\n"
_OPENABLE = "a .keras or .h5 file, a SavedModel folder, hf://owner/name or https://..."


class Kind(enum.Enum):
    """The kinds of checkpoints, one for each reader."""

    KERAS = "a .keras archive"
    KERAS_FOLDER = "an unpacked .keras archive"
    HDF5 = "an HDF5 file"
    SAVED_MODEL = "a SavedModel"
    OTHER = "something else"


@contextlib.contextmanager
def errors_about(path: object, source: str | None = None) -> Iterator[None]:
    """Name `path` in errors about a checkpoint that do not name a file, so that readers need not know their file's name.

    If `path` is the copy of a file that was fetched from `source`, name that, and say where the copy is: the next command
    would read it again.
    """
    try:
        try:
            yield
        except DataError as error:  # of a child process
            details = {"found": error.found, "expected": error.expected, "remedy": error.remedy}
            raise CheckpointError(error.what, path=error.path, **details) from error
    except CheckpointError as error:
        if source is not None and source.lower().startswith("http") and error.path in (None, str(path), source):
            error.path = None
            error.remedy = f"{error.remedy or ''} The fetched copy is {path}: delete it to fetch it again.".strip()
        error.name_file(without_credentials(str(source or path)))
        raise


@contextlib.contextmanager
def reading(file: Path, source: str) -> Iterator[None]:
    """Refuse what is no file or folder, and explain the errors of the readers that the block calls."""
    try:
        if not file.exists():
            raise missing(file)
        if not (file.is_file() or file.is_dir()):  # reading a pipe would block
            raise CheckpointError("this is a pipe or a device", path=source, expected="a file or a folder")
        yield
    except OSError as error:
        raise CheckpointError("it cannot be read", path=source, found=error.strerror or error) from error
    except RecursionError as error:
        what = "the network has more steps in a row than Keras can build"
        raise CheckpointError(what, path=source, expected="fewer than about 900") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Readers expect the structure that Keras writes; any other content may fail anywhere in them.
        problem = "it is damaged or of an unknown kind"
        found = f"{type(error).__name__}: {str(error).strip()[:200]}"
        remedy = "Copy or download it again. If the error remains, please report it."
        raise CheckpointError(problem, path=source, found=found, remedy=remedy) from error


def kind_of(path: Path) -> Kind:
    if path.is_dir():
        if any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
            return Kind.SAVED_MODEL
        whole = all((path / name).is_file() for name in ("config.json", "metadata.json", "model.weights.h5"))
        return Kind.KERAS_FOLDER if whole else Kind.OTHER
    head = _head(path)
    # The signature is at 0 or, after a user block, at 512, 1024, 2048, ...
    if any(head[at : at + 8] == _HDF5 for at in (0, 512, 1024, 2048)):
        return Kind.HDF5
    names = member_names(path) if head.startswith(b"PK\x03\x04") else []
    if "config.json" in names and any(name.startswith("model.weights") for name in names):
        return Kind.KERAS
    return Kind.OTHER


def _head(path: Path, size: int = 4096) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def missing(path: Path) -> CheckpointError:
    """Return the error for a missing path, with similar names as suggestions."""
    folder = path.parent
    if not folder.is_dir():
        return CheckpointError("no such file", path=path, found=f"no folder {folder}", expected=_OPENABLE)
    names = [p.name for p in folder.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    near += [n for n in names if n not in near and Path(n).stem == path.stem][:3]
    remedy = f"Did you mean {' or '.join(str(folder / n) for n in near)}?" if near else None
    return CheckpointError("no such file", path=path, expected=_OPENABLE, remedy=remedy)


_UNPACK = "Unpack it and give what is inside."
_CONVERTED = "use the Keras model that it was converted from."
_SAYS_WHY = "Read it: it may say why a download failed."
_FETCH = "Fetch the file again, in binary mode."
_TORCH = (
    "kerasseg does not unpickle, because a pickle can run code. Export the weights from PyTorch as arrays, rebuild the "
    "network in Keras and copy them."
)
#: First bytes of formats (a pattern), what the file is, and what to do.
_SIGNS = (
    (rb"\xef\xbf\xbdHDF", "an HDF5 file that was damaged by being read as text (its bytes became U+FFFD)", _FETCH),
    (rb"\x89HDF(\n\x1a\n|\r\r\n|\r\n\x1a\r\n)", "an HDF5 file that was damaged by a conversion of line ends", _FETCH),
    (rb"\x89?HDF", "a damaged HDF5 file: its signature is broken", _FETCH),
    (
        rb"\s*(<!doctype html|<html|<\?xml[^>]*>\s*<html)",
        "a web page, not the file itself",
        "Use the link of the raw file.",
    ),
    (rb"\s*<\?xml|\s*<Error>", "an XML message of a file server", "Read it: it says why the download failed."),
    (rb"\x80\x02\x8a\x0al\xfc\x9cF\xf9", "a PyTorch checkpoint (the old format, a pickle)", _TORCH),
    (rb"\x80[\x02-\x05]", "a Python pickle", "kerasseg does not unpickle, because a pickle can run code."),
    (rb".{4}TFL3", "a TensorFlow Lite model", f"It is for inference only and cannot be trained: {_CONVERTED}"),
    (
        rb"model_checkpoint_path:",
        "the index of a TensorFlow checkpoint",
        "Weights without a network: see `architecture`.",
    ),
    (rb"\x93NUMPY", "a NumPy array", "Give the network it belongs to."),
    (rb"\x1f\x8b", "a gzip archive", _UNPACK),
    (rb"BZh[1-9]|\xfd7zXZ|7z\xbc\xaf|Rar!", "a compressed archive", _UNPACK),
    (rb"\x89PNG|\xff\xd8\xff|II\*\0|MM\0\*|GIF8", "an image", "Give the checkpoint instead of an image."),
)


def refuse_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer in place of a file."""
    head = _head(path)
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        size = re.search(rb"^size (\d+)", head, re.MULTILINE)
        what = "this is a Git LFS pointer: the file itself was not fetched"
        found = f"a pointer to {int(size[1]):,} bytes" if size else "a pointer"
        remedy = f'In its repository run: git lfs pull --include="{path.name}"'
        raise CheckpointError(what, path=path, found=found, expected=_OPENABLE, remedy=remedy)


def explain(path: Path) -> CheckpointError:
    """Return an error that says what the file or folder at `path` is and what to do.

    It reads only the first bytes and the names in an archive; nothing is unpickled, unpacked or executed.
    """
    if path.is_dir():
        return _explain_folder(path)
    try:
        refuse_pointer(path)
    except CheckpointError as error:
        return error
    what, remedy = _file(path, path.stat().st_size, _head(path))
    return CheckpointError(what, path=path, expected=_OPENABLE, remedy=remedy)


def _file(path: Path, size: int, head: bytes) -> tuple[str, str | None]:
    """Return what a file is, and what to do."""
    if size == 0:
        return "the file is empty", "Fetch it again."
    for pattern, what, remedy in _SIGNS:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return f"this is {what}", remedy
    if head.startswith(b"PK"):
        return _zip(member_names(path))
    if len(head) > 9 and int.from_bytes(head[:8], "little") < size and head[8:9] == b"{":
        return "this is a safetensors file: weights without a network", "Give the network it belongs to."
    if head[257:262] == b"ustar":
        return "this is a tar archive", _UNPACK
    name = path.name.lower()
    if name.endswith(".onnx") or re.match(rb"\x08[\x01-\x20]\x12.{1,64}(\x1a|\x3a|\x22)", head, re.DOTALL):
        return "this is an ONNX model", "Use the Keras model it was exported from."
    if name.endswith((".index", ".meta", ".ckpt")) or ".data-0" in name:
        what = "this is a part of a TensorFlow 1 checkpoint: variables without a network"
        return what, "Give the SavedModel, .keras or .h5 file of the same network."
    if name.endswith((".pb", ".pbtxt")) or re.match(rb"\x0a.{1,3}\x0a.{1,80}\x12.{1,40}", head, re.DOTALL):
        what = "this is a frozen TensorFlow graph, or a saved_model.pb without its folder"
        remedy = "Give the folder that holds saved_model.pb and variables/"
        return what, f"{remedy}; a frozen graph has no weights that can be trained."
    return _text(path, head) or (f"this is not a checkpoint that kerasseg can open ({size} bytes)", None)


def _zip(names: list[str]) -> tuple[str, str | None]:
    if not names:
        return "this is a damaged zip archive: its end is missing", "Fetch it again and compare its size."
    if any(n.endswith(("/data.pkl", "/constants.pkl")) or n == "data.pkl" for n in names):
        return "this is a PyTorch checkpoint", _TORCH
    if all(n.endswith(".npy") for n in names):
        return "this is a NumPy archive", "Give the network it belongs to."
    inside = [n for n in names if n.endswith(("saved_model.pb", ".keras", ".h5", ".hdf5"))]
    if inside:
        return f"this is a zip archive with {inside[0]} in it", _UNPACK
    return f"this is a zip archive, but no .keras file (it holds {', '.join(names[:5])})", None


def _text(path: Path, head: bytes) -> tuple[str, str] | None:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if text.lstrip().startswith("{"):
        try:
            config = parse_json(read_file(path, 1 << 26))
        except (OSError, ValueError):
            config = None
        if isinstance(config, dict) and "class_name" in config:
            what = "this is a network's configuration without weights"
            return what, "Give its weights, and this as architecture."
        return "this is a JSON file", _SAYS_WHY
    first = text.strip().splitlines()[0][:60] if text.strip() else ""
    return None if "\0" in text else (f"this is a text file that begins `{first}`", _SAYS_WHY)


def _explain_folder(path: Path) -> CheckpointError:
    files = sorted(path.iterdir())
    names = [p.name + ("/" if p.is_dir() else "") for p in files]
    one_file = (".keras", ".h5", ".hdf5")
    inside = [p for p in files if (kind_of(p) is Kind.SAVED_MODEL if p.is_dir() else p.suffix in one_file)]
    has = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
    remedy = f"Give {' or '.join(str(p) for p in inside[:3])}." if inside else None
    what = "the folder is empty" if not names else "the folder holds no saved_model.pb"
    if "keras_metadata.pb" in names or "variables/" in names:
        what = "the folder is a part of a SavedModel: its saved_model.pb is missing"
    return CheckpointError(what, path=path, found=has, expected=_OPENABLE, remedy=remedy)


def is_keras_3(version: str | None) -> bool:
    """Return whether this version of Keras writes configurations that Keras 3 reads unchanged.

    >>> is_keras_3("3.15.1"), is_keras_3("2.15.0"), is_keras_3(None)
    (True, False, False)
    """
    major = (version or "").partition(".")[0]
    return major.isdigit() and int(major) >= 3


def writer_name(version: str | None) -> str:
    """Return the library and version; `tf.keras` and `tf-keras` continued the numbering of Keras after 2.3.1.

    >>> [writer_name(v) for v in ("3.15.1", "2.15.0", "2.2.4-tf", "2.3.1", None)]
    ['Keras 3.15.1', 'tf-keras 2.15.0', 'tf-keras 2.2.4-tf', 'Keras 2.3.1', 'an unknown version of Keras']
    """
    if not version:
        return "an unknown version of Keras"
    if is_keras_3(version):
        return f"Keras {version}"
    minor = version.split(".")[1] if version.count(".") else ""
    ours = version.endswith("-tf") or (version.startswith("2.") and minor.isdigit() and int(minor) >= 4)
    return f"tf-keras {version}" if ours else f"Keras {version}"
