"""Everything an installed distribution registers, put to the kit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dreamkit.errors import PluginError, did_you_mean
from dreamkit.registry.registry import KINDS, Registry, distributions
from dreamkit.testing import contracts
from dreamkit.testing.bound import Bound, outcomes
from dreamkit.testing.expect import ContractError, KitError
from dreamkit.testing.kinds import KINDS as PARTS, miniature
from dreamkit.testing.outcomes import Outcome

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
        """The plug-in works, and its class can be imported and is of its kind.

        Raises:
            ContractError: it does not.
        """
        if self.problem is not None:
            raise ContractError(f"{REGISTERED}: {self.problem}")

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
        raise PluginError(
            f"no installed plug-in is called '{distribution}'; {did_you_mean(distribution, installed.values())}; "
            "install it, such as with `pip install -e .`"
        )
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
        raise PluginError(f"'{name}' registers no part, data set or task, so there is nothing to test")
    names = {each.name for each in found}
    if component is not None and component not in names:
        raise PluginError(f"'{name}' registers no '{component}'; {did_you_mean(component, names)}")
    chosen = [each for each in found if component in (None, each.name)]
    return chosen if check is None else _only(chosen, check)


def _component(registry: Registry, distribution: str, kind: str, name: str, quick: bool) -> Component:
    try:
        cls = registry.get(kind, name)
    except PluginError as error:
        return Component(distribution, kind, name, problem=str(error))
    if kind not in PARTS:
        return Component(distribution, kind, name)
    repeat = f"dreamkit test-plugin {distribution} --component {name} --check {{check}}"
    bound = contracts.bind(kind, miniature(cls), quick=quick, repeat=repeat)
    return Component(distribution, kind, name, tuple(bound))


def _only(chosen: list[Component], check: str) -> list[Component]:
    """Those components that have the check, and it alone."""
    known = {bound.name for each in chosen for bound in each.bound}
    if check not in known:
        raise KitError(f"there is no check '{check}' of what is registered; {did_you_mean(check, known)}")
    return [
        replace(each, bound=bound)
        for each in chosen
        if (bound := tuple(one for one in each.bound if one.name == check))
    ]


def normalized(name: str) -> str:
    """A distribution's name as PyPA's specification compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()
