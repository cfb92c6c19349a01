"""Helpers for the text of messages and tables, and the type of progress callbacks."""

from __future__ import annotations

import re
from collections.abc import Callable

# Users do not always encode `/`, `?`, `#` or a space in a password, so it ends at `@`; a number after `:` is a port.
_LOGIN = r"[^\s/:?#@\[]+:(?![0-9]*(?:[/?#:\s]|$)).{0,500}?"
_USER = re.compile(rf"(?i)\b([a-z][a-z0-9+.-]+:[/\\]+)(?:[^/\\\s?#]*|{_LOGIN})@")
# `Path` leaves one slash of the two.
_SCHEME = r"\b(?!hf:)(?:[a-z][a-z0-9+.-]*:/|(?:https?|s3|gs):)/"
_ADDRESS = rf"{_SCHEME}[^\s?#]*?|\bhf:/+[^\s?]*(?=\?)|(?<=url: )/[^\s?]*|/[^\s?'\"]*(?=\?\S*=)"
_QUERY = re.compile(rf"(?i)({_ADDRESS})(?:[?#]|;\w)\S*?(?=[)\]'\"`,;:.]*(?:\s|$))")

Progress = Callable[[str, int, int], None]
"""Called with (current step, finished items, total items)."""


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Format a number with its noun.

    Example:
        >>> count(1, "file"), count(2, "file"), count(1200, "entry", "entries")
        ('1 file', '2 files', '1,200 entries')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Format a time span.

    Example:
        >>> duration(7.4), duration(130), duration(5400), duration(9000)
        ('7 s', '2 min 10 s', '90 min', '2 h 30 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 100:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def without_credentials(text: str) -> str:
    """Remove logins, parameters, queries and fragments from all URLs in a text before it is shown or recorded.

    Signed URLs have their key in the query; some servers take one after a semicolon.

    Example:
        >>> without_credentials("https://me:secret@host.org:8080/a/unet.keras?X-Amz-Signature=3f#top")
        'https://host.org:8080/a/unet.keras'
        >>> without_credentials("https://host.org/unet.keras;jsessionid=3f")
        'https://host.org/unet.keras'
        >>> without_credentials("hf://me/unet@v#1/best.keras?hf_3f"), without_credentials("what?.mat")
        ('hf://me/unet@v#1/best.keras', 'what?.mat')
    """
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text)) if ":" in text or "?" in text else text
