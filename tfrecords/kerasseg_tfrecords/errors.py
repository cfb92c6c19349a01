"""The exceptions of kerasseg.

    KerassegError                exit code 1   base class of all others
    |-- UsageError               exit code 2   an invalid option or argument
    |-- DataError                exit code 3   invalid slices, shards or splits
    |   `-- BadInputError        exit code 3   several bad input files, each as a `Problem`
    `-- CheckpointError          exit code 1   a checkpoint that cannot be opened

Every message is on one line and names the file, what was found, what was expected and what to do.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kerasseg_tfrecords.text import count, without_credentials

_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: control, format (direction marks, zero-width characters), surrogates, line and paragraph ends."""


def one_line(text: object) -> str:
    r"""Return a text on one line, with control and invisible characters escaped.

    A file name can then neither break a line nor, by characters that change the writing direction, pose as another name.

    Example:
        >>> one_line("a\nb"), one_line("gepj.exe".replace("gepj", chr(0x202E) + "gepj"))
        ('a\\nb', '\\u202egepj.exe')
    """
    value = str(text)
    if value.isascii() and value.isprintable():
        return value
    return "".join(c if unicodedata.category(c) not in _ESCAPED else c.encode("unicode_escape").decode() for c in value)


class KerassegError(Exception):
    """Base class of all exceptions that kerasseg raises deliberately.

    Args:
        what: What is wrong, as a sentence without its full stop.
        path: The file or folder concerned.
        found: What was found.
        expected: What was expected instead.
        remedy: What to do, as an imperative sentence.

    Example:
        >>> print(KerassegError("not a shard directory", path="x", expected="manifest.json", remedy="Run prepare."))
        x: not a shard directory (expected manifest.json). Run prepare.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        path: str | Path | None = None,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what = without_credentials(what)
        self.path, self.found, self.expected, self.remedy = (
            None if value is None else without_credentials(str(value)) for value in (path, found, expected, remedy)
        )
        super().__init__(self.sentence())

    def sentence(self, *, with_path: bool = True) -> str:
        """Return the message on one line, with or without the name of the file."""
        text = f"{self.path}: {self.what}" if with_path and self.path is not None else self.what
        details = [
            f"{word} {value}"
            for word, value in (("found", self.found), ("expected", self.expected))
            if value is not None
        ]
        if details:
            text += f" ({', '.join(details)})"
        if self.remedy:
            text += f". {self.remedy}"
        return one_line(text)

    def name_file(self, path: str) -> None:
        """Add `path` to the message if the error names no file yet."""
        if self.path is None:
            self.path = path
            self.args = (self.sentence(),)

    def __reduce__(self) -> tuple[object, ...]:
        # Workers send exceptions to their parent process; the default would lose the keyword arguments.
        return restored, (type(self), self.__dict__.copy())


def restored(kind: type[KerassegError], state: dict[str, object]) -> KerassegError:
    """Return an exception of another process, given its attributes."""
    error = kind.__new__(kind)
    error.__dict__.update(state)
    Exception.__init__(error, error.sentence())
    return error


class UsageError(KerassegError):
    """An invalid option or argument; takes the arguments of `KerassegError`.

    Example:
        >>> error = UsageError("no such strategy", found="careful", expected="conservative, moderate, aggressive")
        >>> print(error, error.exit_code)
        no such strategy (found careful, expected conservative, moderate, aggressive) 2
    """

    exit_code = 2


class DataError(KerassegError):
    """Invalid slices, shards or splits.

    Args:
        what, path, found, expected, remedy: As in `KerassegError`.
        kind: The `Problem.kind` if this error becomes an entry of a report.

    Example:
        >>> DataError("the label is unknown", path="1.mat", found=7, kind="unknown-label").kind
        'unknown-label'
    """

    exit_code = 3

    def __init__(
        self,
        what: str,
        *,
        path: str | Path | None = None,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
        kind: str = "unreadable",
    ) -> None:
        self.kind = kind
        super().__init__(what, path=path, found=found, expected=expected, remedy=remedy)


class CheckpointError(KerassegError):
    """A checkpoint that cannot be opened; the message says what the file is.

    Example:
        >>> print(CheckpointError("this is a pickle, which is a program", path="unet.pt", remedy="Export it to Keras."))
        unet.pt: this is a pickle, which is a program. Export it to Keras.
    """


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A problem with one input file.

    Attributes:
        name: Path relative to the input, with `outer.zip!inner/1.mat` inside archives.
        kind: A short stable word for programs, such as `unreadable`, `size-mismatch` or `unknown-label`.
        message: The sentence for the user, without the name.
        level: "error" (the file cannot be used) or "warning" (it can, but should be checked).

    Example:
        >>> print(Problem("7.mat", "size-mismatch", "the mask has another size than the image (found 256 x 256)"))
        7.mat: the mask has another size than the image (found 256 x 256)
    """

    name: str
    kind: str
    message: str
    level: Literal["error", "warning"] = "error"

    @classmethod
    def of(cls, error: DataError, name: str | None = None) -> Problem:
        """Return the entry for an error, under `name` or the path in the error.

        >>> print(Problem.of(DataError("not a MATLAB file", path="1.mat", found="text")))
        1.mat: not a MATLAB file (found text)
        """
        return cls(name if name is not None else error.path or "", error.kind, error.sentence(with_path=False))

    def __str__(self) -> str:
        """Return the line that a report shows."""
        return one_line(f"{self.name}: {self.message}")


class BadInputError(DataError):
    """Several bad input files, all of which are listed.

    Attributes:
        problems: One entry for each bad file.

    Example:
        >>> error = BadInputError([Problem("7.mat", "unreadable", "not a MATLAB file")])
        >>> print(error, len(error.problems))
        1 bad input file. Repair or remove it, or leave it out with --skip-bad. 1
    """

    def __init__(self, problems: Sequence[Problem], what: str | None = None, *, remedy: str | None = None) -> None:
        self.problems = tuple(problems)
        it = "it" if len(self.problems) == 1 else "them"
        remedy = remedy or f"Repair or remove {it}, or leave {it} out with --skip-bad."
        super().__init__(what or count(len(self.problems), "bad input file"), remedy=remedy)
