"""Location of pretrained files: a local folder, data inside an installed package, or a model on the hub."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath

from huggingface_hub import constants, get_session, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status, validate_repo_id

from dreamkit.errors import SourceError, describe_error, excerpt
from dreamkit.storage.folders import sha256
from dreamkit.storage.json_files import size_problem
from dreamkit.storage.packages import package_folder
from dreamkit.storage.paths import LONGEST_PATH, irregular_kind, shown_path
from dreamkit.storage.tensor_files import unreadable
from dreamkit.storage.weight_files import (
    ADAPTER_CONFIG,
    CONVERSION,
    is_weight_file,
    misread_weights,
    missing_weights,
    shortened,
    unused_weights,
    weights_in,
    weights_read,
)

PROBE_SECONDS = 3.0
PACKAGE_PREFIX = "pkg:"

_SMALL_SUFFIXES = (".json", ".txt", ".model", ".jinja")
# files that libraries read into memory, whichever of them are there
_READ_WHOLE = "*config.json|*.index.json|*token*.json|*.model|*.jinja|chat_template.json|*vocab.*|merges.txt"


def locate(pretrained: str, files: Sequence[str], *, weights: bool = True, known: str | None = None) -> Path:
    """Return the local folder of the model named by `pretrained`.

    `pretrained` is a folder (which starts with `/`, `./`, `../` or `~`), a hub name, or `pkg:package/folder` for data
    inside an installed package, which is not imported. A hub name is looked up in the local hub cache first. If the
    cache lacks it, one request with a short timeout goes to the hub, and the needed files are downloaded.

    `known` is a folder of a plug-in (`pkg:package/folder`) with the config files of well-known hub models, each as
    `owner/model/config.json`. If no weights are needed and the hub cache lacks the model, these replace the request.

    `files` are glob patterns relative to the folder; each must match a file, and `a|b` matches either. With `weights`,
    every folder whose `config.json` they name must have weights too.

    Raises:
        SourceError: the folder, package or hub model cannot be found, or lacks a file.
    """
    folder = _local_folder(pretrained)
    if folder is None:
        try:
            return _from_hub(pretrained, files, weights, None if weights else known)
        except SourceError as error:
            near = [] if known is None else get_close_matches(pretrained, _described(known), cutoff=0.7)
            if weights or not near:
                raise
            raise SourceError(f"{error}; known without the hub: {' or '.join(near)}") from error
    try:
        return _complete(pretrained, folder, files, weights)
    except OSError as error:
        raise SourceError(f"'{pretrained}': {error.filename or folder}: {unreadable(error)}") from error


def _complete(pretrained: str, folder: Path, files: Sequence[str], weights: bool) -> Path:
    """Return the local folder of `pretrained`, after checking that it has the files."""
    missing = _missing(_listing(folder), files, weights)
    if missing:
        raise SourceError(
            f"'{pretrained}': the folder {folder} lacks {' and '.join(missing)}; it holds {_contents(folder)}"
            f"{_irregular(folder)}. Add the missing files or name another folder"
        )
    return _checked(pretrained, folder, files, weights)


def fingerprint(pretrained: str, *, weights: bool = True) -> dict[str, str]:
    """Return the sha256 of each config and tokenizer file of a source, by its name in the folder.

    `weights` adds those of its weight files, which take time to read.

    Raises:
        SourceError: the source cannot be found, as in `locate`, or a file of it was removed meanwhile.
    """
    folder = locate(pretrained, ())
    files = {name: folder / name for name in _listing(folder) if name.endswith(_SMALL_SUFFIXES)}
    if weights:
        files |= {name: folder / name for names in _weights(folder).values() for name in names}
    try:
        return {name: _hash(path) for name, path in sorted(files.items())}
    except OSError as error:
        raise SourceError(f"'{pretrained}': {error.filename}: {unreadable(error)}") from error


def weight_files(pretrained: str) -> dict[str, Path]:
    """Return the weight files of a source that libraries read, by their names in its folder.

    Raises:
        SourceError: the source cannot be found, as in `locate`.
    """
    folder = locate(pretrained, ())
    return {
        name: folder / name
        for parent, names in _weights(folder).items()
        for name in weights_read(folder / parent, names)
    }


def _weights(folder: Path) -> dict[PurePosixPath, list[str]]:
    """Return the names of all weight files of a source, by their folders in it."""
    names = _listing(folder)
    return {
        parent: weights_in(names, parent) for parent in sorted({PurePosixPath(name).parent for name in names})
    }


def _described(known: str) -> list[str]:
    """Return the names of the models with config files in the folder `known` of a plug-in."""
    folder = _local_folder(known)
    return [] if folder is None else [path.relative_to(folder).as_posix() for path in folder.glob("*/*")]


def _local_folder(pretrained: str) -> Path | None:
    """Return the folder that `pretrained` names, or None for a hub name."""
    if not pretrained or len(pretrained) > LONGEST_PATH:
        raise SourceError(
            f"expected a folder, a hub name or {PACKAGE_PREFIX}package/folder, got '{shown_path(pretrained)}'"
        )
    if pretrained.startswith(PACKAGE_PREFIX):
        package, _, inside = pretrained.removeprefix(PACKAGE_PREFIX).partition("/")
        try:
            return package_folder(package, inside)
        except LookupError as error:
            form = f"the form is {PACKAGE_PREFIX}package/folder"
            raise SourceError(f"'{pretrained}': {error.args[0]} ({form})") from error
    # Only these are folders, so that one in the working directory never replaces a model of the hub.
    if not pretrained.startswith(("/", "./", "../", "~")) and pretrained not in (".", ".."):
        return None
    # os.path, since `Path` raises for an unknown user and for an overlong name
    path = os.path.abspath(os.path.expanduser(pretrained))
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path):
        around = os.path.dirname(path)
        if is_weight_file(path) and not os.path.isfile(os.path.join(around, "config.json")):
            raise SourceError(_single_file(pretrained))
        raise SourceError(f"'{pretrained}' is a file; name the folder that holds it: '{around}'")
    raise SourceError(f"'{pretrained}': there is no folder {path}; check the spelling")


def _single_file(pretrained: str) -> str:
    return f"expected a folder of config and weights, got '{pretrained}', a single file; {CONVERSION}, and name that"


def _from_hub(name: str, files: Sequence[str], weights: bool, known: str | None) -> Path:
    if is_weight_file(name) and os.path.isfile(name):
        raise SourceError(_single_file(name))
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        form = "it cannot be a hub name ('owner/model'), and a folder starts with '/', './', '../' or '~'"
        raise SourceError(f"'{name}': {form}; check the spelling") from error
    cached, lacking = _cached(name, files, weights)
    if cached is not None and not lacking:
        return _checked(name, cached, files, weights)
    if known is not None and (folder := _local_folder(known)) is not None:
        described = folder / name
        if described.is_dir() and not _missing(_listing(described), files, weights):
            return described
    tried = f"'{name}': the cache {constants.HF_HUB_CACHE} "
    tried += f"lacks {' and '.join(lacking)} of it" if cached is not None else "does not hold it"
    if constants.HF_HUB_OFFLINE:
        raise SourceError(f"{tried}, and HF_HUB_OFFLINE forbids asking the hub. {_REMEDY}")
    tried += f", and the hub ({constants.ENDPOINT}) "
    remote = _probe(name, tried)
    lacking = _missing(remote, files, weights)
    if lacking:
        raise SourceError(f"{tried}lacks {' and '.join(lacking)} of it. Name a model that has them")
    refuse_adapter(name, remote, files)
    patterns = [_literal(file) for file in _needed(remote, files, weights)]
    try:
        downloaded = Path(snapshot_download(name, allow_patterns=patterns))
    except (HTTPError, OSError) as error:
        raise SourceError(
            f"{tried}broke off the download: {excerpt(describe_error(error), 300)}. Try again"
        ) from error
    return _checked(name, downloaded, files, weights)


_REMEDY = "Name a local folder (as ./folder), set HF_HOME to where a cache holds it, or check the spelling"


def _cached(name: str, files: Sequence[str], weights: bool) -> tuple[Path | None, list[str]]:
    """Return the newest snapshot in the hub cache, if any, and the files that it lacks."""
    try:
        # no patterns: `_missing` decides below whether the snapshot is complete enough
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        return None, []
    return folder, _missing(_listing(folder), files, weights)


def _probe(name: str, tried: str) -> list[str]:
    """Return the names of the model's files on the hub, from one request with a short timeout."""
    try:
        return _ask_hub(name)
    except GatedRepoError as error:
        remedy = "Request access on its page, then log in with `hf auth login`"
        raise SourceError(f"{tried}restricts it to accounts with access. {remedy}") from error
    except RepositoryNotFoundError as error:
        raise SourceError(f"{tried}answered that it does not exist or is private. {_REMEDY}") from error
    except HfHubHTTPError as error:
        raise SourceError(
            f"{tried}answered with an error: {excerpt(describe_error(error), 300)}. {_REMEDY}"
        ) from error
    except (HTTPError, OSError, ValueError) as error:  # no connection, or an answer that is not the hub's
        raise SourceError(
            f"{tried}could not be reached: {excerpt(describe_error(error), 300)}. {_REMEDY}"
        ) from error


def _ask_hub(name: str) -> list[str]:
    """Make one request; raise its error or a TimeoutError. `HfApi` would add requests for telemetry."""
    answer: Future[list[str]] = Future()
    headers = {"authorization": f"Bearer {token}"} if (token := get_token()) else {}

    def ask() -> None:
        try:
            url = f"{constants.ENDPOINT}/api/models/{name}"
            response = get_session().get(url, headers=headers, timeout=PROBE_SECONDS)
            hf_raise_for_status(response)
            answer.set_result([sibling["rfilename"] for sibling in response.json().get("siblings", ())])
        except Exception as error:
            answer.set_exception(error)

    # in a thread, because name look-up has no timeout and connecting applies it to each address
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(PROBE_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"no answer within {PROBE_SECONDS:g} seconds") from None


def _missing(names: Iterable[str], files: Sequence[str], weights: bool) -> list[str]:
    """Return those of `files`, and of the weights beside each `config.json` in them, that `names` lacks."""
    names = list(names)
    missing = [
        " or ".join(f"'{alternative}'" for alternative in pattern.split("|"))
        for pattern in files
        if not any(_matches(name, pattern) for name in names)
    ]
    if weights and not missing:
        for parent in _model_folders(files):
            missing += missing_weights(names, parent)
    elif missing:
        notes = (unused_weights(names, parent) for parent in _read_folders(files))
        missing[-1] += next(filter(None, notes), "")
    return missing


def _checked(pretrained: str, folder: Path, files: Sequence[str], weights: bool) -> Path:
    """Return a complete folder, after checking that a library reads its weights and no others.

    Raises:
        SourceError: it would read other files or files of any size, or there is an adapter beside the weights.
    """
    names = _listing(folder)
    for name in names:
        if _matches(PurePosixPath(name).name, _READ_WHOLE) and (problem := size_problem(folder / name)):
            raise SourceError(f"{folder / name}: {problem}")
    refuse_adapter(pretrained, names, files)
    for parent in _model_folders(files) if weights else ():
        if problem := misread_weights(folder / parent, weights_in(names, parent)):
            raise SourceError(f"{folder / parent}: {problem}")
    return folder


def refuse_adapter(pretrained: str, names: Iterable[str], files: Sequence[str]) -> None:
    """Refuse an adapter of peft in a folder with a `config.json` in `files`, or in the folder around them.

    Raises:
        SourceError: `names`, the files of `pretrained`, include such an adapter.
    """
    configs = {str(parent / ADAPTER_CONFIG) for parent in _read_folders(files)}
    for name in sorted(configs.intersection(names)):
        raise SourceError(
            f"'{pretrained}': expected weights alone, got an adapter of peft beside them ({name}), which libraries "
            "apply or ignore unnoticed; merge it into the weights (merge_and_unload and save_pretrained of peft) or "
            f"name a folder without {ADAPTER_CONFIG}; to train an adapter, set model.adapters"
        )


def _needed(names: Sequence[str], files: Sequence[str], weights: bool) -> list[str]:
    """Return the files to download: small ones beside those named, and the weights beside each `config.json`."""
    parents = {
        str(PurePosixPath(alternative).parent) for pattern in files for alternative in pattern.split("|")
    }
    needed = [
        name
        for name in names
        if any(_matches(name, pattern) for pattern in files)
        or (name.endswith(_SMALL_SUFFIXES) and str(PurePosixPath(name).parent) in parents)
    ]
    if weights:
        needed += [name for parent in _model_folders(files) for name in weights_in(names, parent)]
    return needed


def _model_folders(files: Sequence[str]) -> list[PurePosixPath]:
    return [path.parent for path in map(PurePosixPath, files) if path.name == "config.json"]


def _read_folders(files: Sequence[str]) -> list[PurePosixPath]:
    """Return the folders of models in `files`, and the one around them: [] if there is no model."""
    folders = _model_folders(files)
    return [*dict.fromkeys([*folders, PurePosixPath()])] if folders else []


def _matches(name: str, pattern: str) -> bool:
    """Return True if a relative file name matches one of the globs in `pattern`; `*` does not match `/`."""
    parts = name.split("/")
    globs = [alternative.split("/") for alternative in pattern.split("|")]
    return any(len(parts) == len(glob) and all(map(fnmatchcase, parts, glob)) for glob in globs)


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _listing(folder: Path) -> list[str]:
    """Return the visible files of a folder and of its direct subfolders; models go no deeper."""
    return sorted(path.relative_to(folder).as_posix() for path in _entries(folder) if os.path.isfile(path))


def _irregular(folder: Path) -> str:
    """Return a note on the entries named like files that are something else, such as a link to nowhere; "" if none."""
    kinds = []
    for path in sorted(_entries(folder)):
        try:
            kind = irregular_kind(path)
        except OSError as error:
            kind = f"a broken link ({error.strerror})"
        if kind and (kind != "a folder" or is_weight_file(path.name) or path.suffix in _SMALL_SUFFIXES):
            kinds.append(f"'{path.relative_to(folder).as_posix()}' is {kind}")
    return f"; {shortened(kinds)}" if kinds else ""


def _entries(folder: Path) -> Iterator[Path]:
    return (path for pattern in ("[!.]*", "[!.]*/[!.]*") for path in folder.glob(pattern))


def _contents(folder: Path, most: int = 12) -> str:
    names = sorted(f"{path.name}/" if os.path.isdir(path) else path.name for path in folder.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more


def _hash(path: Path) -> str:
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    """Return the hash of a file; `size` and `changed_ns` make a changed file a new cache key."""
    return sha256(path)
