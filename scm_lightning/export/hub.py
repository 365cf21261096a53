# SPDX-License-Identifier: Apache-2.0
"""Upload of an export to the Hugging Face hub."""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors, get_token
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

HTTP_ERROR: Any = vars(errors)["HTTPError"]
"""Base of the errors of the library's own HTTP client, whichever that is."""
CONFLICT = 409


def check_can_push(name: str) -> None:
    """Refuse, before any work, what cannot be uploaded.

    Args:
        name: repository, `OWNER/NAME` or `NAME` of the token's owner.

    Raises:
        ValueError: if that is no name, or there is no token.
    """
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise ValueError(
            f"push_to_hub must be a name on the hub, OWNER/NAME, got {name}: {_line(error)}"
        ) from error
    if get_token() is None:
        raise ValueError(
            "push_to_hub needs a token of the hub, and there is none; run `hf auth login`, or set "
            "HF_TOKEN"
        )


def push(folder: Path, name: str, overwrite: bool = False) -> str:
    """Upload a folder that is whole, as one commit.

    Args:
        folder: what to upload.
        name: repository, which is made.
        overwrite: add the commit to a repository that is there.

    Returns:
        Address of the repository.

    Raises:
        ValueError: if the repository is there already, or the hub refuses.
    """
    api = HfApi()
    try:
        address = api.create_repo(name, exist_ok=overwrite)
    except (errors.HfHubHTTPError, HTTP_ERROR, OSError) as error:
        response = getattr(error, "response", None)
        if response is not None and response.status_code == CONFLICT:
            raise ValueError(
                f"the repository {name} is there already; give another name, or --overwrite, which "
                f"adds to it; {folder} is whole"
            ) from error
        raise ValueError(
            f"the repository {name} could not be made: {_line(error)}; {folder} is whole, upload "
            "it later"
        ) from error
    try:
        api.upload_folder(
            repo_id=address.repo_id, folder_path=folder, commit_message="Export of scm_lightning"
        )
    except (errors.HfHubHTTPError, HTTP_ERROR, OSError, ValueError) as error:
        raise ValueError(
            f"{folder} could not be uploaded to {address}, which is there now: {_line(error)}; "
            f"upload it later: hf upload {address.repo_id} {folder}"
        ) from error
    return str(address)


def _line(error: Exception) -> str:
    """The words of an error as one line."""
    said = getattr(error, "server_message", None) or str(error)
    return " ".join(said.split()).rstrip(".")
