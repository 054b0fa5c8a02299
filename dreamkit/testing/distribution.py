"""The contract kit on everything that an installed distribution registers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata

from dreamkit.errors import PluginError, did_you_mean, with_article
from dreamkit.registry.kinds import KINDS
from dreamkit.registry.registry import Registry, distributions
from dreamkit.testing import contracts
from dreamkit.testing.bound import BoundCheck, fail, outcomes
from dreamkit.testing.check import current_check
from dreamkit.testing.dataset_subject import missing_example, tiny_dataset
from dreamkit.testing.expect import ContractError, KitError
from dreamkit.testing.locating import raised_at
from dreamkit.testing.outcomes import Outcome
from dreamkit.testing.subject_kinds import KINDS as TESTED, PARTS, tiny_part

REGISTERED = "registered"  # the check of every component, whatever its kind
CONTRACT = "contract"  # stands for all checks of a data set without an example


@dataclass(frozen=True)
class Component:
    """A registered component and its checks.

    `problem` is why it cannot be used, `untested` why it has no checks though its kind has; else None.
    """

    distribution: str
    kind: str
    name: str
    bound: tuple[BoundCheck, ...] = ()
    problem: str | None = None
    untested: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    def registered(self) -> None:
        """Fail, as a pytest test, if the plug-in is broken or the class cannot be imported or is not of its kind.

        Raises:
            ContractError: with the problem.
        """
        __tracebackhide__ = True
        if self.problem is not None:
            fail(ContractError(self.problem), self.problem)

    def outcomes(self) -> Iterator[Outcome]:
        """Run the checks and yield their outcomes."""
        yield Outcome(REGISTERED, "failed" if self.problem else "passed", self.problem or "")
        if self.untested is not None:
            yield Outcome(CONTRACT, "skipped", self.untested)
        yield from outcomes(self.bound)


def components(
    distribution: str, *, component: str | None = None, check: str | None = None, quick: bool = False
) -> list[Component]:
    """Return the components that an installed distribution registers, each with its checks.

    `component` selects one component by its name, `check` one check.

    Raises:
        PluginError: the distribution is not installed or registers nothing, or it has no such component.
        KitError: the check is unknown.
    """
    registry, key = Registry.load(), normalized(distribution)
    installed = {normalized(name): name for name in distributions()}
    if key not in installed:
        raise PluginError(_not_a_plugin(distribution, registry, installed.values()))
    name = installed[key]
    registered = [
        Component(name, "plug-in", problem.entry_point, problem=problem.message)
        for problem in registry.problems
        if not problem.is_note and normalized(problem.distribution.rpartition(" ")[0]) == key
    ]
    for kind in KINDS:
        for each in registry.components(kind).values():
            if normalized(each.distribution) == key:
                registered.append(_component(registry, name, kind, each.component.name, quick))
    if not registered:
        raise PluginError(f"'{name}' registers nothing, so there is nothing to test")
    names = {each.name for each in registered}
    if component is not None and component not in names:
        raise PluginError(f"unknown component '{component}' of '{name}'; {did_you_mean(component, names)}")
    chosen = [each for each in registered if component in (None, each.name)]
    return chosen if check is None else _only(chosen, check)


def _not_a_plugin(name: str, registry: Registry, installed: Iterable[str]) -> str:
    """Return why `name` cannot be tested: it is none of the `installed` distributions with plug-ins."""
    matches = [each for kind in KINDS if (each := registry.components(kind).get(name))]
    if matches:
        return "\n".join(
            f"'{name}' is {with_article(each.kind)} of {each.distribution}; test it with: dreamkit test-plugin "
            f"{each.distribution} --component {name}"
            for each in matches
        )
    try:
        version = metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):
        return (
            f"unknown plug-in '{name}'; {did_you_mean(name, installed)}; "
            "install the package, for example with `pip install -e .`"
        )
    return f"'{name}' {version} is installed, but registers no dreamkit plug-in; see `dreamkit plugins`"


def _component(registry: Registry, distribution: str, kind: str, name: str, quick: bool) -> Component:
    try:
        cls = registry.get(kind, name)
    except PluginError as error:
        place = raised_at(error, registry.components(kind)[name].component.target.partition(":")[0])
        return Component(distribution, kind, name, problem=f"{place}: {error}" if place else str(error))
    if kind not in TESTED:
        return Component(distribution, kind, name)
    is_part = kind in PARTS
    if not is_part and (reason := missing_example(cls)):
        return Component(distribution, kind, name, untested=reason)
    build = tiny_part(cls) if is_part else tiny_dataset(cls)
    repeat = f"dreamkit test-plugin {distribution} --component {name} --check {{check}}"
    bound = contracts.bind(kind, build, quick=quick, repeat=repeat)
    return Component(distribution, kind, name, tuple(bound))


def _only(chosen: list[Component], check: str) -> list[Component]:
    """Return the components that have the check `check`, with this check alone; every component has `registered`."""
    check = current_check(check)
    if check == REGISTERED:
        return [replace(each, bound=()) for each in chosen]
    known = {bound.name for each in chosen for bound in each.bound}
    if check not in known:
        raise KitError(f"unknown check '{check}'; {did_you_mean(check, {REGISTERED, *known})}")
    return [
        replace(each, bound=bound)
        for each in chosen
        if (bound := tuple(one for one in each.bound if one.name == check))
    ]


def normalized(name: str) -> str:
    """Return a distribution's name in the form in which PyPA's specification compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()
