"""What a server answered instead of giving what was asked for: reached, and yet nothing came."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from http import HTTPStatus

__all__ = ["Answer", "answer_of"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP status that is an error.

    Attributes:
        status: 400 to 599.

    Example:
        >>> print(Answer(503), "-", Answer(503).remedy)
        503 Service Unavailable - The fault is the server's: try again later.
    """

    status: int

    def __str__(self) -> str:
        """Number and words."""
        with contextlib.suppress(ValueError):  # servers make up numbers of their own
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        return str(self.status)

    @property
    def remedy(self) -> str:
        """What to do about it, for addresses that anybody may ask."""
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:
            return "It was asked too often: try again in some minutes."
        if self.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return "It wants a login or another right: fetch the file in a browser, and give its path."
        if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "The fault is the server's: try again later."
        return "Check the address."


def answer_of(error: BaseException | None) -> Answer | None:
    """The answer that an error of requests, httpx or the Hub's library came of; None where there was none.

    Args:
        error: It, or what was raised from it.

    Example:
        >>> answer_of(TimeoutError()) is None
        True
    """
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int) and status >= HTTPStatus.BAD_REQUEST:
            return Answer(status)
        error = error.__cause__
    return None
