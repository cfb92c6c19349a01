"""What wrote a checkpoint, in words."""

from __future__ import annotations

__all__ = ["is_keras_3", "writer_name"]


def is_keras_3(version: str | None) -> bool:
    """Whether this version of Keras writes configurations that Keras 3 reads as they are.

    >>> is_keras_3("3.15.1"), is_keras_3("2.15.0"), is_keras_3(None)
    (True, False, False)
    """
    major = (version or "").partition(".")[0]
    return major.isdigit() and int(major) >= 3


def writer_name(version: str | None) -> str:
    """The library of a version: `tf.keras` and its successor `tf-keras` counted on where Keras stopped at 2.3.1.

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
