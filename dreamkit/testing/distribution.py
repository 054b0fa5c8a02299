"""Everything an installed distribution registers, put to the kit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata

from dreamkit.errors import PluginError, did_you_mean, with_article
from dreamkit.registry.kinds import KINDS
from dreamkit.registry.registry import Registry, distributions
from dreamkit.testing import contracts
from dreamkit.testing.bound import Bound, fail, outcomes
from dreamkit.testing.expect import ContractError, KitError
from dreamkit.testing.locating import raised_at
from dreamkit.testing.outcomes import Outcome
from dreamkit.testing.subject_kinds import KINDS as PARTS, tiny_part

REGISTERED = "registered"  # the check that every component is put to, of whatever kind


@dataclass(frozen=True)
class Component:
    """What a distribution registers under one name, and the checks it is put to; `problem` is why it cannot be used."""

    distribution: str
    kind: str
    name: str
    bound: tuple[Bound, ...] = ()
    problem: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def registered(self) -> None:
        """The plug-in works, and its class can be imported and is of its kind: a test, for pytest.

        Raises:
            ContractError: it does not.
        """
        __tracebackhide__ = True
        if self.problem is not None:
            fail(ContractError(self.problem), self.problem)

    def outcomes(self) -> Iterator[Outcome]:
        """What becomes of its checks, one by one."""
        yield Outcome(REGISTERED, "failed" if self.problem else "passed", self.problem or "")
        yield from outcomes(self.bound)


def components(
    distribution: str, *, component: str | None = None, check: str | None = None, quick: bool = False
) -> list[Component]:
    """What an installed distribution registers, or the one `component` of it, with its checks, or the one `check`.

    Raises:
        PluginError: no such distribution, one that registers nothing, or no such component in it.
        KitError: no such check.
    """
    registry, wanted = Registry.load(), normalized(distribution)
    installed = {normalized(name): name for name in distributions()}
    if wanted not in installed:
        raise PluginError(_not_a_plugin(distribution, registry, installed.values()))
    name = installed[wanted]
    found = [
        Component(name, "plug-in", problem.entry_point, problem=problem.message)
        for problem in registry.problems
        if normalized(problem.distribution.rpartition(" ")[0]) == wanted
    ]
    for kind in KINDS:
        for each in registry.components(kind).values():
            if normalized(each.distribution) == wanted:
                found.append(_component(registry, name, kind, each.component.name, quick))
    if not found:
        raise PluginError(f"'{name}' registers nothing, so there is nothing to test")
    names = {each.name for each in found}
    if component is not None and component not in names:
        raise PluginError(f"'{name}' registers no '{component}'; {did_you_mean(component, names)}")
    chosen = [each for each in found if component in (None, each.name)]
    return chosen if check is None else _only(chosen, check)


def _not_a_plugin(name: str, registry: Registry, installed: Iterable[str]) -> str:
    """Return why nothing can be tested under `name`, none of the `installed` distributions with plug-ins."""
    found = [each for kind in KINDS if (each := registry.components(kind).get(name))]
    if found:
        return "\n".join(
            f"'{name}' is {with_article(each.kind)} of {each.distribution}; test it with: dreamkit test-plugin "
            f"{each.distribution} --component {name}"
            for each in found
        )
    try:
        version = metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):
        return (
            f"no installed plug-in is called '{name}'; {did_you_mean(name, installed)}; "
            "install it, such as with `pip install -e .`"
        )
    return f"'{name}' {version} is installed, but registers no dreamkit plug-in; see `dreamkit plugins`"


def _component(registry: Registry, distribution: str, kind: str, name: str, quick: bool) -> Component:
    try:
        cls = registry.get(kind, name)
    except PluginError as error:
        place = raised_at(error, registry.components(kind)[name].component.target.partition(":")[0])
        return Component(distribution, kind, name, problem=f"{place}: {error}" if place else str(error))
    if kind not in PARTS:
        return Component(distribution, kind, name)
    repeat = f"dreamkit test-plugin {distribution} --component {name} --check {{check}}"
    bound = contracts.bind(kind, tiny_part(cls), quick=quick, repeat=repeat)
    return Component(distribution, kind, name, tuple(bound))


def _only(chosen: list[Component], check: str) -> list[Component]:
    """Those components that have the check, and beside `registered`, which all have, it alone."""
    if check == REGISTERED:
        return [replace(each, bound=()) for each in chosen]
    known = {bound.name for each in chosen for bound in each.bound}
    if check not in known:
        raise KitError(
            f"there is no check '{check}' of what is registered; {did_you_mean(check, {REGISTERED, *known})}"
        )
    return [
        replace(each, bound=bound)
        for each in chosen
        if (bound := tuple(one for one in each.bound if one.name == check))
    ]


def normalized(name: str) -> str:
    """A distribution's name as PyPA's specification compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()
