"""Find the class of pictures: from an index table, their folders, or codes in file names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kerasseg_tfrecords.classes import class_code, class_in_file_name, class_name, suggest_class, unknown_class
from kerasseg_tfrecords.errors import Problem
from kerasseg_tfrecords.sources.roles import folder_role, split_name, stem_of
from kerasseg_tfrecords.text import count


@dataclass(frozen=True, slots=True)
class Labels:
    """The classes of a listing.

    Attributes:
        by_name: File name -> class, or "" for all files of a data set without classes. Files with a problem are missing.
        problems: Files or folders whose class is unknown while that of others is known.
        notes: Where the classes were found.
    """

    by_name: Mapping[str, str]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def label_files(
    names: Sequence[str],
    classes: tuple[str, ...] | None,
    *,
    written: Mapping[str, tuple[str, str]] | None = None,
    root: str = "",
) -> Labels:
    """Find the class of each file.

    The index table takes precedence, then the innermost folder with the name of a class (not a number: `1/` may be a
    patient), then a code or word in the file name. If no table or folder gives a class, codes count only if at least half
    of the files have one and not all are `no`, since the "no" in `scan_no_12` is not about tumours. If no file has a class,
    the name of the input may be one (`data/glioma`); otherwise the data set has no classes.

    Args:
        names: Names of the files.
        classes: The user's classes; None for the built-in ones.
        written: File name -> (label, table and line), for files labelled by a table.
        root: Name of the input.
    """
    labels: dict[str, str] = {}
    problems: list[Problem] = []
    open_names: list[str] = []
    for name in names:
        label, where = (written or {}).get(name, ("", ""))
        if not label:
            open_names.append(name)
        elif found := class_name(label, classes) or class_code(label, classes):
            labels[name] = found
        else:
            problems.append(Problem(name, "unknown-label", f"{where}: {unknown_class(label, classes)}"))
    by_folder = {name: _folder_class(name, classes) for name in open_names}
    by_code = _codes(
        [name for name in open_names if not by_folder[name]], classes, bool(labels or any(by_folder.values()))
    )
    for name in open_names:
        if found := by_folder[name] or by_code.get(name):
            labels[name] = found
    left = [name for name in open_names if name not in labels]
    if not labels and not problems:
        whole = _folder_class(f"{root}/", classes) or ""
        notes = (f"all slices have class {whole}, from the name of the folder",) if whole else ()
        return Labels(dict.fromkeys(names, whole), (), notes)
    return Labels(labels, (*problems, *_unknown(left, classes)))


def _folder_class(name: str, classes: tuple[str, ...] | None) -> str | None:
    for folder in reversed(split_name(name)[0]):
        _, left = folder_role(folder)  # `glioma_masks`
        for text in (folder, left):
            if not text.strip().isdigit() and (found := class_name(text, classes)):
                return found
    return None


def _codes(names: Sequence[str], classes: tuple[str, ...] | None, others_are_labelled: bool) -> dict[str, str]:
    codes = {name: found for name in names if (found := class_in_file_name(stem_of(name), classes))}
    if others_are_labelled:
        return codes
    healthy = class_code("no", classes)
    if 2 * len(codes) < len(names) or all(found == healthy for found in codes.values()):
        return {}
    return codes


def _unknown(names: Sequence[str], classes: tuple[str, ...] | None) -> list[Problem]:
    """Return one problem per folder whose name resembles a class, and one for each other file."""
    suspects: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    problems: list[Problem] = []
    for name in names:
        folders = split_name(name)[0]
        near = [(folder, hint) for folder in folders if (hint := suggest_class(folder, classes))]
        if near:
            folder, hint = near[-1]
            suspects["/".join(folders[: folders.index(folder) + 1]), hint].append(name)
        else:
            message = "no class in its folders or file name, although other files have one"
            problems.append(Problem(name, "unknown-label", f"{message}. Add it to an index CSV, or move it"))
    for (folder, hint), inside in suspects.items():
        what = f"{count(len(inside), 'image')} in a folder that is not a known class"
        problems.append(Problem(folder, "unknown-label", f"{what}. Did you mean {hint}? Rename it"))
    return problems
