"""Downloads checkpoints from the model hub into its cache, once, at one revision."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from profiles.places import libraries_caches
from trainer.convert.checkpoint_folder import is_state
from trainer.model.weights import WeightsError

# owner/name, optionally with @ and a branch, tag or commit
NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
BESIDE = ["*.json", "tokenizer.model", "README.md"]  # the card states the licence
WEIGHTS = (
    ["*.safetensors"],
    ["pytorch_model*.bin"],
    ["*.pth"],
)  # the first kind that exists is used


def checkpoint_folder(source: str, tell: Callable[[str], None], offline: bool = False) -> Path:
    """A local folder itself, or the folder of `owner/name[@revision]` in the hub's cache.

    Of several kinds of weights files only the first is downloaded; with `offline`, or the hub's
    HF_HUB_OFFLINE, only the cache is used. Raises WeightsError.
    """
    path = Path(source).expanduser() if source.startswith("~") else Path(source)
    found = NAME.fullmatch(source)
    # No owner's name begins with a dot: ./x and ../x are paths, though nothing is there.
    if path.exists() or found is None or source.startswith((".", "~")):
        return path
    os.environ |= libraries_caches() | dict(os.environ)
    from huggingface_hub import HfApi, constants, snapshot_download

    repository, revision = found.groups()
    if offline or constants.HF_HUB_OFFLINE:
        return _from_cache(source, repository, revision)
    tell(f"{source}: no such folder; looking on the hub ...")
    try:
        info = HfApi().model_info(repository, revision=revision)
        names = [file.rfilename for file in info.siblings or []]
        # Only the repository's top folder decides what is downloaded.
        names = [name for name in names if "/" not in name and not is_state(name)]
        kind = next((k for k in WEIGHTS if any(Path(n).match(k[0]) for n in names)), WEIGHTS[0])
        # By commit, so that the report names exactly what is downloaded.
        return Path(snapshot_download(repository, revision=info.sha, allow_patterns=kind + BESIDE))
    except Exception as error:  # of the hub, the network or the disk
        raise WeightsError(_why_not(source, repository, revision, error)) from None


def _from_cache(source: str, repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception:  # of the hub or the disk
        raise WeightsError(
            f"{source}: no such folder, and not in the hub's cache\n"
            "    hint: leave out --offline and HF_HUB_OFFLINE, or download it elsewhere; name the "
            "folder"
        ) from None


def _why_not(source: str, repository: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repository}"
    if isinstance(error, errors.GatedRepoError):
        why, fix = "is gated", f"accept its terms on {page}, then hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        why, fix = f"has no revision {revision}", f"{page}/commits/main lists them"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = "is neither a folder here nor a public repository on the hub"
        fix = "correct the name, or hf auth login"
    else:
        why = f"cannot be fetched: {str(error).partition(chr(10))[0][:200]}"
        fix = f"on a machine with a network: hf download {repository} --local-dir FOLDER"
        fix += f" --revision {revision}" * bool(revision) + "; then name FOLDER here"
    return f"{source}: {why}\n    hint: {fix}"
