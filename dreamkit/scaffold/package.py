"""Writes the package: whole, or not at all."""

from __future__ import annotations

import ast
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Final

from dreamkit.errors import DreamkitError, did_you_mean
from dreamkit.registry.kinds import KINDS as REGISTERED
from dreamkit.registry.registry import Registry
from dreamkit.scaffold.names import LICENSES, Names, PartKind, kind_called, names_for
from dreamkit.storage.folders import in_use_reason

FOLDER = Path(__file__).parent
TRAINED: Final = (
    "visual_projector",
    "condition_projector",
    "dream_queries",
    "new_tokens",
)  # by digits/stage1
CLASS = "NewPart"  # what the part is called in `dreamkit.scaffold.parts`

# top-level package that a part imports -> what its distribution asks for
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
    """Writes a plug-in package called `name` into the folder `out` (`./name`); returns it and the files in it.

    Raises:
        DreamkitError: an unknown kind or license, a name that cannot be used, or a folder that is in use. Nothing is
            written then.
    """
    chosen = kind_called(kind)
    if license not in LICENSES:
        raise DreamkitError(f"there is no license text for '{license}'; {did_you_mean(license, LICENSES)}")
    if author is not None and not (author.strip() and author.isprintable()):
        raise DreamkitError(f"{author!r} is no author's name; give one in a line of text")
    stems = (chosen.module, *chosen.beside)
    sources = {f"{stem}.py": _text(f"parts/{stem}.py") for stem in stems}
    names = names_for(name, chosen, _bound(sources.values()), registry)
    folder = Path(name) if out is None else out
    if what := in_use_reason(folder):
        raise DreamkitError(f"{folder} {what}; name a new folder by --out")
    files = _files(names, chosen, sources, license, author)
    _write(folder, files)
    return folder, sorted(map(Path, files))


def _files(
    names: Names, kind: PartKind, sources: Mapping[str, str], license: str, author: str | None
) -> dict[str, str]:
    """The text of each file, by its path in the package's folder."""
    section = f"{{name: {names.component}{', config: {}' if kind.beside else ''}}}"
    more = dict(kind.more)
    if kind.beside:  # weights of its own, which are random and must be trained too
        more["train.trainable"] = f"[{', '.join((*TRAINED, kind.section))}]"
    overrides = {f"model.{kind.section}": section, **more}
    values = {
        "name": names.distribution,
        "package": names.package,
        "component": names.component,
        "class_name": names.class_name,
        "module": kind.module,
        "title": kind.title,
        "summary": kind.summary,
        "hook": REGISTERED[kind.module].hook,
        "section": kind.section,
        "recipe_value": section,
        "recipe_more": "".join(_yaml(key, value) for key, value in more.items()),
        "overrides": " ".join(f"'{key}={value}'" for key, value in overrides.items()),
        "license": license,
        "year": str(date.today().year),
        "holder": author or f"the authors of {names.distribution}",
        "authors": f"authors = [{{ name = {json.dumps(author, ensure_ascii=False)} }}]\n" if author else "",
        "dreamkit_range": compatible(version("dreamkit-core")),
        "save_tokenizer": "part.save_tokenizer(folder)\n" if "words" in kind.beside else "",
    }
    needed = ["dreamkit-core" + values["dreamkit_range"], *_requirements(sources.values())]
    values["dependencies"] = "\n".join(f'    "{each}",' for each in needed)

    def filled(template: str) -> str:
        return Template(_text(f"templates/{template}")).substitute(values)

    values["settings"] = filled("weights.md.in" if kind.beside else "projector.md.in").strip()
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


def _yaml(key: str, value: str) -> str:
    """Return a dotted key and its value as lines of a recipe."""
    section, _, name = key.partition(".")
    return f"{section}:\n  {name}: {value}\n" if name else f"{section}: {value}\n"


def compatible(found: str) -> str:
    """The versions of dreamkit whose interfaces are those of version `found`: `>=0.1,<0.2` for 0.1.3."""
    major, minor = map(int, found.split(".")[:2])
    return f">={major}.{minor},<{f'0.{minor + 1}' if major == 0 else major + 1}"


def _requirements(sources: Iterable[str]) -> list[str]:
    """What the imports of these modules ask for, from `REQUIREMENTS`."""
    imported = set()
    for node in _nodes(sources):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported.add(node.module.partition(".")[0])
    return [requirement for package, requirement in REQUIREMENTS.items() if package in imported]


def _bound(sources: Iterable[str]) -> frozenset[str]:
    """The names that these modules use, which the part's class would hide."""
    names = set()
    for node in _nodes(sources):
        match node:
            case ast.alias(name=name, asname=asname):
                names.add(asname or name)
            case ast.ClassDef(name=name) | ast.Name(id=name):
                names.add(name)
    return frozenset(names - {CLASS})


def _nodes(sources: Iterable[str]) -> Iterator[ast.AST]:
    for source in sources:
        yield from ast.walk(ast.parse(source))


def _license(name: str, values: Mapping[str, str]) -> str:
    """The whole text of a license. The Apache License is that of dreamkit, and so has another holder's name in it."""
    ours = re.compile(r"Copyright \d{4} The dreamkit authors")
    text = ours.sub("Copyright $year $holder", _text(f"templates/LICENSE-{name}"))
    return Template(text).substitute(values)


def _text(file: str) -> str:
    return (FOLDER / file).read_text(encoding="utf-8")


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Writes beside the folder, then renames; into a folder that is there and empty, what is in it is moved."""
    folder = folder.absolute()
    place = folder if folder.is_dir() else folder.parent
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".dreamkit-", dir=place) as temporary:
        whole = Path(temporary) / folder.name
        for name, text in files.items():
            file = whole / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        if place == folder:
            for entry in whole.iterdir():
                entry.rename(folder / entry.name)
        else:
            whole.rename(folder)
