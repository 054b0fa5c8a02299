"""Requirements of a plug-in's distribution on dreamkit, from its package metadata."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import Distribution, version

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from dreamkit.errors import excerpt

CORE = "dreamkit-core"
EARLIER = "dreamkit"  # the core's earlier distribution name, which is another project on the package index


def requirement_problems(distribution: Distribution) -> Iterator[tuple[str, bool]]:
    """Yield a message for each requirement on dreamkit to change; True marks those that the installed version meets.

    Raises:
        ValueError: one of the requirements is invalid.
    """
    installed = version(CORE)
    for requirement in _applicable(distribution):
        text = str(requirement).partition(";")[0].strip()
        if not requirement.specifier.contains(installed, prereleases=True):
            yield (
                f"requires {text}, but {CORE} {installed} is installed; install another version of one",
                False,
            )
        if canonicalize_name(requirement.name) == EARLIER:
            fix = f"{CORE}{requirement.specifier}"
            yield f"requires {text}, which is another project on the package index; require {fix}", True


def _applicable(distribution: Distribution) -> Iterator[Requirement]:
    """Yield the requirements on dreamkit that apply in this environment, without those of extras."""
    for text in distribution.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise ValueError(f"invalid requirement '{excerpt(text)}' in its metadata") from error
        is_on_dreamkit = canonicalize_name(requirement.name) in (CORE, EARLIER)
        if is_on_dreamkit and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            yield requirement
