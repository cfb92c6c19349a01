"""What can go wrong, as one small tree of exceptions.

    KerassegError                exit code 1   anything below; catch this one to catch all
    |-- UsageError               exit code 2   an option or argument that cannot be meant
    |-- DataError                exit code 3   slices, shards or splits that are not what they should be
    |   `-- BadInputError        exit code 3   several input files at once, each as a `Problem`
    `-- CheckpointError          exit code 1   a checkpoint that cannot be opened, and what it is instead

Every message names the file, what was found, what was expected and what to do, on one line.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["BadInputError", "CheckpointError", "DataError", "KerassegError", "Problem", "UsageError", "one_line"]


def one_line(text: object) -> str:
    r"""`text` on one line, with control characters escaped, so that a file name cannot break a report.

    >>> one_line("a\nb")
    'a\\nb'
    """
    return "".join(
        c if unicodedata.category(c) not in {"Cc", "Cs", "Zl", "Zp"} else c.encode("unicode_escape").decode()
        for c in str(text)
    )


class KerassegError(Exception):
    """Base of every error that kerasseg raises on purpose.

    Args:
        what: What is wrong, as a sentence without its full stop.
        path: The file or folder it is about.
        found: What was found there.
        expected: What was expected instead.
        remedy: What the user can do, as an imperative sentence.

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
        self.what = what
        self.path = None if path is None else str(path)
        self.found = None if found is None else str(found)
        self.expected = None if expected is None else str(expected)
        self.remedy = remedy
        super().__init__(self.sentence())

    def sentence(self, *, with_path: bool = True) -> str:
        """The message on one line, with or without the file's name before it."""
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

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (workers read slices); the default would lose the keyword arguments.
        return _rebuild, (type(self), self.__dict__.copy())


def _rebuild(kind: type[KerassegError], state: dict[str, object]) -> KerassegError:
    error = kind.__new__(kind)
    error.__dict__.update(state)
    Exception.__init__(error, error.sentence())
    return error


class UsageError(KerassegError):
    """An option or argument that cannot be meant; arguments as in `KerassegError`.

    Example:
        >>> error = UsageError("no such strategy", found="careful", expected="conservative, moderate, aggressive")
        >>> print(error, error.exit_code)
        no such strategy (found careful, expected conservative, moderate, aggressive) 2
    """

    exit_code = 2


class DataError(KerassegError):
    """Slices, shards or splits that are not what they should be.

    Args:
        what, path, found, expected, remedy: As in `KerassegError`.
        kind: What `Problem.kind` is to say where this error becomes one entry of a report.

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
    """A checkpoint that cannot be opened; the message says what the file is instead.

    Example:
        >>> print(CheckpointError("this is a pickle, which is a program", path="unet.pt", remedy="Export it to Keras."))
        unet.pt: this is a pickle, which is a program. Export it to Keras.
    """


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong with one input.

    Attributes:
        name: The input as shown to the user: a path relative to the input it came from, `outer.zip!inner/1.mat` inside
            archives.
        kind: A short stable word for machines, for instance `unreadable`, `size-mismatch`, `unknown-label`.
        message: The sentence for the user, without the name: what was found, expected, and what to do.
        level: "error" (the input cannot be used) or "warning" (it can, and somebody ought to look at it).

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
        """The entry for `error`, under `name` or the path that the error itself names.

        >>> print(Problem.of(DataError("not a MATLAB file", path="1.mat", found="text")))
        1.mat: not a MATLAB file (found text)
        """
        return cls(name if name is not None else error.path or "", error.kind, error.sentence(with_path=False))

    def __str__(self) -> str:
        """The one line that a report shows."""
        return one_line(f"{self.name}: {self.message}")


class BadInputError(DataError):
    """Several inputs are bad; all of them are listed, not only the first.

    Attributes:
        problems: One entry for each bad input.

    Example:
        >>> error = BadInputError([Problem("7.mat", "unreadable", "not a MATLAB file")])
        >>> print(error, len(error.problems))
        1 bad input file. Mend or remove them, or leave them out with --skip-bad. 1
    """

    def __init__(self, problems: Sequence[Problem], what: str | None = None, *, remedy: str | None = None) -> None:
        self.problems = tuple(problems)
        count = f"{len(self.problems)} bad input file{'s' if len(self.problems) != 1 else ''}"
        super().__init__(what or count, remedy=remedy or "Mend or remove them, or leave them out with --skip-bad.")
