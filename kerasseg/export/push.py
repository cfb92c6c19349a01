"""An export onto the Hugging Face Hub: `hf://owner/name[@branch][/folder]`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from kerasseg.checkpoints.hub import HubAddress
from kerasseg_tfrecords.errors import KerassegError, UsageError

__all__ = ["parse_address", "push"]


def parse_address(text: str) -> HubAddress:
    """The parts of an address, before anything long is begun.

    Raises:
        UsageError: It is none, or the Hub's library was told to stay offline.
    """
    address = HubAddress.parse(text)
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            "nothing can be pushed offline", path=text, found="HF_HUB_OFFLINE", remedy="Unset it, or leave out --push."
        )
    return address


def push(folder: Path, address: HubAddress, *, private: bool = False, endpoint: str | None = None) -> str:
    """Uploads all files of an export in one commit.

    Args:
        folder: The export.
        address: Where to; the repository is made where there is none.
        private: Whether a new repository is private.
        endpoint: Address of the Hub; by default `HF_ENDPOINT` or the public one.

    Returns:
        Where it lies now: `hf://owner/name@<commit>`.

    Raises:
        KerassegError: No token, no rights, no network; the export on disk stays.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    name = f"hf://{address.repository}"
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    api = hub.HfApi(endpoint=endpoint)
    try:
        api.create_repo(address.repository, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=address.repository,
            folder_path=folder,
            path_in_repo=address.inside,
            revision=address.revision,
            commit_message="Export by kerasseg",
        )
    except errors.LocalTokenNotFoundError as error:
        _fail(name, folder, "there is no token for the Hub", error, "Log in: hf auth login")
    except errors.RevisionNotFoundError as error:
        _fail(name, folder, "the repository has no such branch", error, "Make it on the Hub first.")
    except errors.HfHubHTTPError as error:
        status = None if error.response is None else error.response.status_code
        if status == 401:
            _fail(name, folder, "the Hub does not know this token, or there is none", error, "Log in: hf auth login")
        if status == 403:
            remedy = "Take a token with the right to write, and a name that is yours."
            _fail(name, folder, "the token may not write there", error, remedy)
        _fail(name, folder, "the Hub refused it", error, None)
    except Exception as error:  # no network in its many forms
        _fail(name, folder, "the Hub cannot be reached", error, "Look to the network.")
    return f"{name}@{made.oid}"


def _fail(name: str, folder: Path, what: str, error: Exception, remedy: str | None) -> NoReturn:
    lines = [line for line in str(error).splitlines() if line.strip()]
    kept = f"The export itself is done and lies in {folder}; to push again, add --overwrite"
    raise KerassegError(
        f"{what}: it was not pushed",
        path=name,
        found=f"{type(error).__name__}: {lines[0][:160] if lines else ''}".rstrip(": "),
        remedy=f"{remedy} {kept}" if remedy else kept,
    ) from error
