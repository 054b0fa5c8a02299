"""The files of a new plug-in package, written all or none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any, Final

from dreamkit.errors import DreamkitError, describe_value, did_you_mean
from dreamkit.registry.kinds import KINDS as REGISTERED
from dreamkit.registry.registry import Registry
from dreamkit.scaffold.names import KINDS, LICENSES, Names, PartKind, names_for
from dreamkit.storage.folders import filled_folder, in_use_reason
from dreamkit.storage.writing import writing

FOLDER = Path(__file__).parent
TRAINED: Final = (
    "visual_projector",
    "condition_projector",
    "dream_queries",
    "new_tokens",
)  # by digits/stage1
TESTED: Final = {
    True: "this kind of part on a tiny one, which\n`{}.tiny_config()` describes",
    False: "data sets on the few files that\n`{}.tiny_config(folder)` writes",
}
CLASS = "NewPart"  # the name of each part in `dreamkit.scaffold.parts`

# top-level package that a part imports -> requirement of the distribution
REQUIREMENTS: Final[Mapping[str, str]] = {
    "PIL": "pillow>=10.1",
    "safetensors": "safetensors>=0.5",
    "tokenizers": "tokenizers>=0.21",
    "torch": "torch>=2.6",
    "transformers": "transformers>=5.0",
}


def new_plugin(
    name: str,
    kind: str,
    out: Path | None = None,
    *,
    license: str = LICENSES[0],
    author: str | None = None,
    registry: Registry,
) -> tuple[Path, list[Path]]:
    """Write a plug-in package with the distribution `name` into `out` (default: `./name`).

    Returns the folder, and the paths of its files relative to it.

    Raises:
        DreamkitError: an unknown kind or license, an invalid name, or a folder in use. Nothing is written then.
        OutputError: the folder cannot be written, or another command is writing it.
    """
    if kind not in KINDS:
        raise DreamkitError(f"unknown kind '{kind}'; {did_you_mean(kind, KINDS)}")
    if license not in LICENSES:
        raise DreamkitError(f"unknown license '{license}'; {did_you_mean(license, LICENSES)}")
    if author is not None and not (author.strip() and author.isprintable()):
        raise DreamkitError(f"expected the author's name on one line, got {describe_value(author)}")
    part = KINDS[kind]
    sources = {f"{stem}.py": _text(f"parts/{stem}.py") for stem in (part.module, *part.helpers)}
    words = frozenset(re.findall(r"\w+", "".join(sources.values()))) - {CLASS}
    names = names_for(name, part, words, registry)
    folder = Path(name) if out is None else out
    files = _files(names, part, sources, license, author)
    _write(folder, files)
    return folder, sorted(map(Path, files))


def _files(
    names: Names, kind: PartKind, sources: Mapping[str, str], license: str, author: str | None
) -> dict[str, str]:
    """Return the text of each file by its path in the package's folder."""
    settings = _settings(names, kind)
    values: dict[str, Any] = {
        **vars(names),
        **vars(kind),
        "hook": REGISTERED[kind.module].hook,
        "recipe": "".join(_yaml(key, value) for key, value in settings.items()),
        "overrides": " ".join(f"'{key}={value}'" for key, value in settings.items()),
        "noun": "part" if kind.is_part else "data set",
        "build": f"tiny_{'part' if kind.is_part else 'dataset'}({names.class_name})",
        "tested": TESTED[kind.is_part].format(names.class_name),
        "license": license,
        "year": str(date.today().year),
        "holder": author or f"the authors of {names.distribution}",
        "authors": f"authors = [{{ name = {json.dumps(author, ensure_ascii=False)} }}]\n" if author else "",
        "dreamkit_range": compatible(version("dreamkit-core")),
        "save_tokenizer": "part.save_tokenizer(folder)\n" if "words" in kind.helpers else "",
    }
    imported = set(re.findall(r"^(?:from|import) (\w+)", "\n".join(sources.values()), re.MULTILINE))
    requirements = [f"dreamkit-core{values['dreamkit_range']}"]
    requirements += [requirement for package, requirement in REQUIREMENTS.items() if package in imported]
    values["dependencies"] = "\n".join(f'    "{requirement}",' for requirement in requirements)

    def filled(template: str) -> str:
        return Template(_text(f"templates/{template}")).substitute(values)

    values["settings"] = filled("weights.md.in" if kind.has_weights else "projector.md.in").strip()
    values["use"] = filled(f"use_{'part' if kind.is_part else 'dataset'}.md.in").strip()
    parts = {
        f"{names.package}/{file}": re.sub(rf"\b{CLASS}\b", names.class_name, text)
        for file, text in sources.items()
    }
    return {
        **parts,
        f"{names.package}/__init__.py": filled("hooks.py.in"),
        f"{names.package}/py.typed": "",
        "tests/test_contract.py": filled("test_contract.py.in"),
        "pyproject.toml": filled("pyproject.toml.in"),
        "README.md": filled("README.md.in"),
        "LICENSE": _license(license, values),
        ".gitignore": filled("gitignore.in"),
        ".github/workflows/test.yml": filled("test.yml.in"),
        ".github/workflows/publish.yml": filled("publish.yml.in"),
    }


def _settings(names: Names, kind: PartKind) -> dict[str, str]:
    """Return the settings of a recipe with the component, by their keys."""
    if not kind.is_part:
        return {kind.section: f"[{{name: {names.component}, path: examples}}]"}
    section = f"{{name: {names.component}{', config: {}' if kind.has_weights else ''}}}"
    settings = {f"model.{kind.section}": section, **kind.settings}
    if kind.has_weights:  # its random weights must be trained too
        settings["train.trainable"] = f"[{', '.join((*TRAINED, kind.section))}]"
    return settings


def _yaml(key: str, value: str) -> str:
    """Return a dotted key and its value as lines of a recipe."""
    section, _, name = key.partition(".")
    return f"{section}:\n  {name}: {value}\n" if name else f"{section}: {value}\n"


def compatible(dreamkit_version: str) -> str:
    """Return the range of versions with the same interfaces: `>=0.1,<0.2` for 0.1.3, `>=1.2,<2` for 1.2.3."""
    major, minor = map(int, dreamkit_version.split(".")[:2])
    return f">={major}.{minor},<{f'0.{minor + 1}' if major == 0 else major + 1}"


def _license(name: str, values: Mapping[str, Any]) -> str:
    """Return the text of a license. The Apache License is dreamkit's own file, so its copyright line is replaced."""
    ours = re.compile(r"Copyright \d{4} The dreamkit authors")
    text = ours.sub("Copyright $year $holder", _text(f"templates/LICENSE-{name}"))
    return Template(text).substitute(values)


def _text(file: str) -> str:
    return (FOLDER / file).read_text(encoding="utf-8")


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Write all files into a new or empty folder, or none."""
    with filled_folder(folder.absolute()) as staging:
        if reason := in_use_reason(folder):
            raise DreamkitError(f"{folder} {reason}; pass a new folder with --out")
        for name, text in files.items():
            with writing(file := staging / name):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
