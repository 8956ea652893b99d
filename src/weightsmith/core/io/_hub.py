"""Model folders on the Hugging Face hub: found under ``org/name`` or ``org/name@revision``, and uploaded.

Everything that reads a checkpoint asks :func:`checkpoint_folder` for its folder, so a hub id works wherever a folder
does: it is downloaded once, into the cache that transformers and PEFT share.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from weightsmith.core.errors import CheckpointError
from weightsmith.core.io._aux_files import PLANS, is_weights

__all__ = ["checkpoint_folder", "downloaded", "push_to_hub", "shown_name", "with_revision"]

HUB_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")
SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.vocab", "*.bpe", "*.md", "LICENSE*", "NOTICE*")
"""Configuration, tokenizer, model card: all but the weights. Python code of a repository is never downloaded."""
WEIGHTS, PICKLES = "*.safetensors", "*.bin"
COPIES = ("consolidated*", "original/*", "onnx/*", "openvino/*")
"""The same weights again, in layouts that nothing here reads."""
PATIENCE = 5.0
"""Seconds to wait for the hub's first answer."""


def checkpoint_folder(ref: str | os.PathLike[str], *, revision: str = "main", weights: bool = True) -> Path:
    """Return the local folder of a checkpoint; that of a hub id is downloaded first.

    What was downloaded before is used where the hub cannot be reached.

    Parameters
    ----------
    ref : path-like
        A folder, or the hub id ``org/name`` or ``org/name@revision``. What starts with ``.``, ``/`` or ``~``, or has
        more than one slash, is a folder.
    revision : str, default: "main"
        Branch, tag or commit on the hub.
    weights : bool, default: True
        With the weights; else only the small files.

    Raises
    ------
    CheckpointError
        If there is no such folder or model, a folder is asked for a revision, or the hub cannot be reached.

    Examples
    --------
    >>> checkpoint_folder("./nothing")
    Traceback (most recent call last):
    weightsmith.core.errors.CheckpointError: there is no folder './nothing'
    """
    path = Path(ref)
    if path.is_dir():
        if revision != "main":
            raise CheckpointError(f"folder {ref} has no revision {revision}", do="A revision belongs to a hub id.")
        return path
    if path.exists():
        raise CheckpointError(f"{ref}", found="a file", expected="the folder of a checkpoint, or a hub id")
    name, branch = _parsed(with_revision(ref, revision))
    return Path(_download(name, branch, weights=weights))


def downloaded(ref: str | os.PathLike[str]) -> Path | None:
    """Return the folder of a checkpoint that is on this machine; None for a hub id that was not downloaded.

    Examples
    --------
    >>> downloaded("org/never-downloaded") is None
    True
    """
    if Path(ref).is_dir():
        return Path(ref)
    try:
        name, revision = _parsed(str(ref))
        return Path(_snapshot(name, revision, SMALL, local_files_only=True))
    except (CheckpointError, OSError, ValueError):  # the last of a name that the hub never has
        return None


def shown_name(ref: str | os.PathLike[str]) -> str:
    """Return the name that a checkpoint goes by: ``org/name@commit`` of a downloaded one, the last part of a path.

    Examples
    --------
    >>> shown_name("/home/me/.cache/models--org--name/snapshots/9f3c"), shown_name("org/name@v2")
    ('org/name@9f3c', 'org/name@v2')
    """
    parts = Path(ref).parts
    if "snapshots" in parts[1:-1] and (of := parts[parts.index("snapshots") - 1]).startswith("models--"):
        return f"{'/'.join(of.split('--')[1:])}@{parts[parts.index('snapshots') + 1]}"
    return Path(ref).name if Path(ref).exists() else str(ref)


def with_revision(ref: str | os.PathLike[str], revision: str) -> str:
    """Return ``ref@revision``; ``main`` need not be said.

    Raises
    ------
    CheckpointError
        If ``ref`` names another revision, or is on this machine.

    Examples
    --------
    >>> with_revision("org/name", "v2"), with_revision("org/name@v2", "main")
    ('org/name@v2', 'org/name@v2')
    """
    name = str(ref)
    if revision == "main":
        return name
    if Path(name).exists() or name.startswith("embedded:"):
        raise CheckpointError(f"folder {ref} has no revision {revision}", do="A revision belongs to a hub id.")
    if "@" in name and not name.endswith(f"@{revision}"):
        raise CheckpointError(f"two revisions of {name}", found=f"{revision} beside it", do="Leave one of them out.")
    return name if "@" in name else f"{name}@{revision}"


def push_to_hub(folder: str | os.PathLike[str], name: str, *, private: bool = False, message: str = "") -> str:
    """Upload a folder that weightsmith wrote to a model repository of the hub, as one commit.

    The repository, and the branch, are made if they are not there. Where the folder holds weights, those of an older
    model there, their index and what belongs to them are removed in the same commit; other files stay. You are who
    ``hf auth login`` or the environment variable ``HF_TOKEN`` says.

    Parameters
    ----------
    folder : path-like
        The folder, with its model card.
    name : str
        ``org/name`` or ``org/name@branch``.
    private : bool, default: False
        Whether a new repository is private.
    message : str, default: ""
        Of the commit; the folder's name by default.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    CheckpointError
        If there is no folder with a model card, the name is not one of the hub, or the hub refuses or cannot be
        reached.
    """
    from huggingface_hub import HfApi

    source = Path(folder)
    if not (source / "README.md").is_file():
        found = "a folder without one" if source.is_dir() else "no folder"
        raise CheckpointError(
            f"{folder} has no model card README.md", found=found, do="Push the folder that a command or recipe wrote."
        )
    repository, branch = _parsed(name)
    if "/" not in repository:
        raise CheckpointError(f"{name!r} is not the name of a repository", expected="org/name or org/name@branch")
    api = HfApi()
    with _answering(repository, branch, "Log in by `hf auth login` or set HF_TOKEN, and mind who may write there."):
        api.create_repo(repository, private=private, exist_ok=True)
        if branch != "main":
            api.create_branch(repository, branch=branch, exist_ok=True)
        old = []
        if any(map(is_weights, source.iterdir())):  # data or measures alone replace no model
            old = [file for file in api.list_repo_files(repository, revision=branch) if _is_of_weights(file)]
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=source,
            revision=branch,
            delete_patterns=[glob.escape(file) for file in old if not (source / file).is_file()],
            commit_message=message or f"{source.resolve().name}, written by weightsmith",
        )
    return str(commit.commit_url)


def _is_of_weights(file: str) -> bool:
    """Whether a file of a repository would be read as weights, or with them: of an older model it is false."""
    path = Path(file)
    return len(path.parts) == 1 and (is_weights(path) or path.name in (*PLANS, "adapter_config.json"))


def _parsed(ref: str) -> tuple[str, str]:
    """The repository and the revision that a hub id names."""
    name, at, revision = ref.partition("@")
    if ref.startswith((".", "/", "~")) or name.count("/") > 1:
        tilde = "Write the path without ~, which only a shell expands." if ref.startswith("~") else None
        raise CheckpointError(f"there is no folder {ref!r}", do=tilde)
    if not HUB_ID.fullmatch(name) or (at and not revision):
        raise CheckpointError(
            f"there is no folder {ref!r}, and it is no hub id", expected="org/name or org/name@revision"
        )
    return name, revision or "main"


def _download(name: str, revision: str, *, weights: bool) -> str:
    from huggingface_hub import HfApi, constants, errors

    patterns = [*SMALL, *([WEIGHTS] if weights else [])]
    if constants.HF_HUB_OFFLINE:
        try:
            return _snapshot(name, revision, patterns, local_files_only=True)
        except (OSError, errors.HFValidationError) as error:  # the latter of a name that the hub never has
            raise CheckpointError(
                f"there is no folder {_shown(name, revision)!r}, and no hub model of this name was downloaded",
                do="Without HF_HUB_OFFLINE it would be asked for.",
            ) from error
    with _answering(name, revision, "A private or gated model needs `hf auth login` or HF_TOKEN."):
        try:
            info = HfApi().model_info(name, revision=revision, timeout=PATIENCE)
        except (errors.HTTPError, OSError) as error:
            if isinstance(error, errors.HfHubHTTPError):  # an answer
                raise
            with suppress(OSError):
                return _snapshot(name, revision, patterns, local_files_only=True)
            raise
        if weights and not any(file.rfilename.endswith(WEIGHTS[1:]) for file in info.siblings or ()):
            patterns.append(PICKLES)
        return _snapshot(name, revision, patterns)


def _snapshot(name: str, revision: str, patterns: Sequence[str], *, local_files_only: bool = False) -> str:
    from huggingface_hub import snapshot_download

    return str(
        snapshot_download(
            name,
            revision=revision,
            allow_patterns=[*patterns],
            ignore_patterns=[*COPIES],
            local_files_only=local_files_only,
        )
    )


@contextmanager
def _answering(name: str, revision: str, do: str) -> Iterator[None]:
    """Say what the hub answered, or that it did not."""
    from huggingface_hub import errors

    shown = _shown(name, revision)
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"hub model {name} has no revision {revision}") from error
    except errors.RepositoryNotFoundError as error:  # what the hub also says of one that is private
        what = f"there is no folder {shown!r} on this machine, and no model {name!r} on the hub"
        raise CheckpointError(what, do=do) from error
    except (errors.HfHubHTTPError, errors.LocalTokenNotFoundError, ValueError) as error:
        raise CheckpointError(f"the hub refused {shown}", found=str(error).strip().splitlines()[0], do=do) from error
    except (errors.HTTPError, ConnectionError, errors.LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"there is no folder {shown!r} on this machine, and the hub cannot be asked for a model of this name",
            found=(str(error).strip() or type(error).__name__).splitlines()[0],
        ) from error


def _shown(name: str, revision: str) -> str:
    return name if revision == "main" else f"{name}@{revision}"
