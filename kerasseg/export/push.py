"""Upload an export to the Hugging Face Hub (`hf://owner/name[@branch][/folder]`), and write the files of a Space."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from kerasseg.checkpoints.hub import HubAddress
from kerasseg.export.schema import ExportMetadata
from kerasseg_tfrecords._version import __version__
from kerasseg_tfrecords.errors import KerassegError, UsageError


def parse_address(text: str) -> HubAddress:
    address = HubAddress.parse(text)
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            "--push is not possible offline", path=text, found="HF_HUB_OFFLINE", remedy="Unset it, or omit --push."
        )
    return address


def push(
    folder: Path, address: HubAddress, *, private: bool = False, endpoint: str | None = None, space: bool = False
) -> str:
    """Upload all files of an export in one commit.

    Args:
        folder: The export.
        address: Address on the Hub; a missing repository is created.
        private: Whether a new repository is private.
        endpoint: Address of the Hub; by default `HF_ENDPOINT` or the public one.
        space: Whether the export is a Space, not a model.

    Returns:
        The address of the commit: `hf://owner/name@<commit>`.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    name = f"hf://{address.repository}"
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    api = hub.HfApi(endpoint=endpoint)
    kind: dict[str, Any] = {"repo_type": "space"} if space else {}
    try:
        sdk: dict[str, Any] = {"space_sdk": "gradio"} if space else {}
        api.create_repo(address.repository, private=private, exist_ok=True, **kind, **sdk)
        made = api.upload_folder(
            repo_id=address.repository,
            folder_path=folder,
            path_in_repo=address.inside,
            revision=address.revision,
            commit_message="Export by kerasseg",
            **kind,
        )
    except errors.LocalTokenNotFoundError as error:
        _fail(name, folder, "no token for the Hub was found", error, "Log in: hf auth login")
    except errors.RevisionNotFoundError as error:
        _fail(name, folder, "the repository has no such branch", error, "Create it on the Hub first.")
    except errors.HfHubHTTPError as error:
        status = None if error.response is None else error.response.status_code
        if status == 401:
            _fail(name, folder, "the Hub rejects the token, or there is none", error, "Log in: hf auth login")
        if status == 403:
            remedy = "Use a token with write permission, and a repository of your own."
            _fail(name, folder, "the token has no permission to write to the repository", error, remedy)
        _fail(name, folder, "the Hub refused the upload", error, None)
    except Exception as error:  # no network in its many forms
        _fail(name, folder, "the Hub cannot be reached", error, "Check the network connection.")
    return f"{name}@{made.oid}"


def _fail(name: str, folder: Path, what: str, error: Exception, remedy: str | None) -> NoReturn:
    lines = [line for line in str(error).splitlines() if line.strip()]
    kept = f"The export is complete in {folder}; to upload again, add --overwrite"
    raise KerassegError(
        f"not uploaded: {what}",
        path=name,
        found=f"{type(error).__name__}: {lines[0][:160] if lines else ''}".rstrip(": "),
        remedy=f"{remedy} {kept}" if remedy else kept,
    ) from error


_APP = '''"""A page on which people drop slices, move the threshold and download masks. Not for clinical use."""

from pathlib import Path

from kerasseg_cli.tf_logs import quiet_tf_logs

with quiet_tf_logs():  # TensorFlow writes a dozen lines while it is imported
    from kerasseg.app import launch_space

    launch_space(Path(__file__).parent)
'''
_GRADIO = "6.31.0"
"""Used where no Gradio is installed; a Space names an exact version."""


def write_space(folder: Path) -> None:
    """Write `app.py` and `requirements.txt`."""
    (folder / "app.py").write_text(_APP, encoding="utf-8")
    (folder / "requirements.txt").write_text(f"kerasseg[app]=={__version__}\n", encoding="utf-8")


def space_front_matter(metadata: ExportMetadata) -> str:
    """Return the YAML that the Hub reads from a Space's README.md."""
    from huggingface_hub import SpaceCardData  # heavy

    try:
        gradio = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        gradio = _GRADIO
    return (
        SpaceCardData(
            title=re.sub(r"\s+", " ", metadata.name)[:60],
            colorFrom="blue",
            colorTo="gray",
            sdk="gradio",
            sdk_version=gradio,
            python_version="3.12",
            app_file="app.py",
            license=metadata.license or "other",
            short_description="Brain-tumour masks on MRI slices: research only",
            tags=["kerasseg", "u-net", "mri", "brain-tumour", "medical-imaging"],
        )
        .to_yaml()
        .strip()
        + "\n"
    )
