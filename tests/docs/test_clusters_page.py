"""docs/clusters.md: its commands parse, its messages are those of the code, and its files have their structure."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreamkit.recipe.loading import load_recipe
from dreamkit.registry.registry import Registry
from every_command import COMMANDS, split_command

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "clusters.md").read_text()
LINES = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.replace("\\\n", "").splitlines()
]
FAULTS = PAGE.partition("## Fault by fault")[2]


@pytest.mark.parametrize("line", [line for line in LINES if re.match("dreamkit |torchrun ", line)])
def test_a_command_parses(line: str) -> None:
    words = shlex.split(line)
    arguments = words[words.index("dreamkit") + 1 :]
    name, rest = split_command(arguments)
    context = COMMANDS[name].make_context(name, rest)
    recipe = context.params["recipe"]
    if recipe is not None and "=" not in recipe:
        assert load_recipe(recipe, context.params.get("overrides") or (), Registry.load()).train.steps
    else:
        assert context.params["resume"]


def test_messages_of_the_page_are_those_of_the_code() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "dreamkit").rglob("*.py"))
    spoken = re.sub(r"\"\n\s+f?\"", "", code)  # one string in several lines
    for message in (
        "the processes of the run cannot be connected",
        "a process of the run did not end its step or read its data within",
        "on a file system that all machines share",
        "expected the same packages in all processes of a run",
        "expected the same settings in all processes of a run",
        "expected the same data on all machines of a run",
        "hybrid expects as many processes on each machine",
        "ended without a message: it was killed, or crashed",
        "is being written by another dreamkit command",
    ):
        assert message in FAULTS and message in spoken, message


def test_the_script_of_ray_train_is_short_and_uses_public_names() -> None:
    tree = ast.parse((DOCS / "ray_train.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in imports} == {"pathlib", "ray.train", "ray.train.torch", "dreamkit"}
    assert len((DOCS / "ray_train.py").read_text().splitlines()) <= 45


def test_the_job_of_kubernetes_finds_its_first_pod() -> None:
    service, job = yaml.safe_load_all((DOCS / "job.yaml").read_text())
    name = job["metadata"]["name"]
    spec = job["spec"]
    pod: dict[str, Any] = spec["template"]["spec"]
    (container,) = pod["containers"]
    (script,) = container["args"]
    assert (service["kind"], job["kind"]) == ("Service", "Job") and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"--rdzv-endpoint {name}-0.{pod['subdomain']}:" in script
    assert f"--nnodes {spec['completions']} " in script and spec["parallelism"] == spec["completions"]
    assert f"--nproc-per-node {container['resources']['limits']['nvidia.com/gpu']} " in script
    (timeout,) = re.findall(r"--shutdown-timeout (\d+)", script)
    assert pod["terminationGracePeriodSeconds"] > int(timeout)
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert spec["completionMode"] == "Indexed" and pod["restartPolicy"] == "Never"
