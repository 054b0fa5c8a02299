"""Commands of plug-ins: they are listed and run, and a broken one stops no other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dreamkit.errors import PluginError
from dreamkit.registry.registry import Registry
from every_command import COMMANDS
from meta.installing import install

HOOK = "\n@hookimpl\ndef dreamkit_commands():\n    return [{}]\n"
TYPER = "from pathlib import Path\nfrom typing import Annotated\nimport typer\n"
INDEX = (
    TYPER
    + '''
def index(folder: Path, workers: Annotated[int, typer.Option(min=1, help="processes")] = 2) -> None:
    """Index the tars of a folder.

    Example: dreamkit shelf index tars --workers 4
    """
    typer.echo(f"{workers} workers index {folder}")

tools = typer.Typer(help="Tools of one distribution.")

@tools.command()
def sweep() -> None:
    """Sweep."""
    typer.echo("swept")

@tools.command()
def fail() -> None:
    """Fail."""
    from dreamkit import DreamkitError

    raise DreamkitError("expected a folder, got a file")
'''
)
VERIFY = (
    TYPER
    + '''
app = typer.Typer()

@app.command()
def verify(strict: bool = False) -> None:
    """Verify data."""
    typer.echo(f"verified, {strict=}")

nothing = 3
empty = typer.Typer()

def untypable(value: "Missing") -> None:
    """No such type is defined."""
'''
)

# package -> (commands of its hook: name, target and summary; its module `parts`)
PACKAGES = {
    "ware1": (
        [
            ("shelf index", "ware1.parts:index", "Index tars."),
            ("tools", "ware1.parts:tools", "Tools of one."),
            ("twin", "ware1.parts:index", ""),
            ("group", "ware1.parts:index", ""),
        ],
        INDEX,
    ),
    "ware2": (
        [
            ("shelf verify", "ware2.parts:app", "Verify data."),
            ("twin", "ware2.parts:app", ""),
            ("group inside", "ware2.parts:app", ""),
            ("ghost", "ware2.parts:aap", "Its target is missing."),
            ("nothing", "ware2.parts:nothing", "Not a command."),
            ("empty", "ware2.parts:empty", "An app without commands."),
            ("untypable", "ware2.parts:untypable", "A parameter of an undefined type."),
        ],
        VERIFY,
    ),
    "tardy": (
        [("late", "tardy.parts:app", "Its library is missing.")],
        "import a_library_nobody_has\n",
    ),
    "halts": ([("stops", "halts.parts:app", "Its module exits.")], "raise SystemExit('bye')\n"),
    "greedy": (
        [("check", "greedy.parts:f", ""), ("train fast", "dreamkit.cli.looking:plugins", "")],
        "def f(): print('mine')",
    ),
    "wordy": ([("one two three", "wordy.parts:app", "")], ""),
    "shapeless": ([("shapeless", "shapeless.parts.app", "")], ""),
}
BROKEN = {
    "twin": "command 'twin' is registered by ware1 1.0 and by ware2 1.0; uninstall one, or name the plug-ins",
    "group": "command 'group' is registered by ware1 1.0 and by ware2 1.0 (as 'group inside'); uninstall one",
    "ghost": "command 'ghost' of ware2 1.0: module 'ware2.parts' has no 'aap'; did you mean 'app'?",
    "nothing": "command 'nothing' of ware2 1.0: ware2.parts:nothing is neither a function nor a typer app",
    "empty": "command 'empty' of ware2 1.0: typer cannot make a command of ware2.parts:empty: RuntimeError: ",
    "untypable": "command 'untypable' of ware2 1.0: typer cannot make a command of ware2.parts:untypable: NameError: ",
    "late": "command 'late' of tardy 1.0: importing tardy.parts:app failed: ModuleNotFoundError: No module named",
    "stops": "command 'stops' of halts 1.0: importing halts.parts:app failed: SystemExit: bye",
}
CLASH = "a word is a command or a group of commands, not both; uninstall one of them"
PROBLEMS = [
    "plug-in 'ware1' of ware1 1.0: command 'twin' is also registered by ware2 1.0; uninstall one of them",
    "plug-in 'ware2' of ware2 1.0: command 'twin' is also registered by ware1 1.0; uninstall one of them",
    f"plug-in 'ware1' of ware1 1.0: command 'group' clashes with 'group inside' of ware2 1.0: {CLASH}",
    f"plug-in 'ware2' of ware2 1.0: command 'group inside' clashes with 'group' of ware1 1.0: {CLASH}",
    "plug-in 'greedy' of greedy 1.0: command 'check' clashes with 'check', a command of dreamkit itself; rename it",
    "plug-in 'greedy' of greedy 1.0: command 'train fast' clashes with 'train', a command of dreamkit itself; rename"
    " it",
    "plug-in 'wordy' of wordy 1.0: command 'one two three': expected one or two words of letters, digits and '-'",
    "plug-in 'shapeless' of shapeless 1.0: command 'shapeless': expected a target of the form 'module:name', got "
    "'shapeless.parts.app'",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for package, (commands, parts) in PACKAGES.items():
        records = ", ".join(
            f"Component({name!r}, {target!r}, {summary!r})" for name, target, summary in commands
        )
        install(folder, package, HOOK.format(records), parts)
    return folder


@pytest.fixture
def run(run, site: Path, monkeypatch: pytest.MonkeyPatch):
    """Return `run` with the packages installed."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("COLUMNS", "80")
    return run


def sections(help_text: str) -> dict[str, list[str]]:
    """Return the lines of each section of a help text, without continuation lines."""
    lines: dict[str, list[str]] = {}
    for heading, body in re.findall(r"^(\S.*):\n((?:  .*\n?)+)", help_text, re.MULTILINE):
        lines[heading] = [line[2:] for line in body.splitlines() if line[2:3] != " "]
    return lines


def test_the_help_lists_usable_commands_by_distribution_and_the_problems(run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    listed = sections(out)
    first_party = [heading for heading in listed if re.fullmatch("Commands( of dreamkit-.*)?", heading)]
    names = [re.split("  +", line)[0] for heading in first_party for line in listed[heading]]
    assert names[0] == "demo" and sorted(names) == sorted(COMMANDS)
    assert listed["Commands of ware1 1.0"] == ["shelf index  Index tars.", "tools        Tools of one."]
    assert listed["Commands of tardy 1.0"] == ["late  Its library is missing."]
    assert {"shelf verify  Verify data.", "ghost         Its target is missing."} <= {
        *listed["Commands of ware2 1.0"]
    }
    assert not re.search(r"^  (twin|group)", out, re.MULTILINE)
    missing = out[out.index("Commands may be missing") :]
    for problem in PROBLEMS:
        assert f"possible cause: {problem}" in missing


def test_two_distributions_can_share_the_first_word_of_a_command(run) -> None:
    code, out, _ = run("shelf", "--help")
    assert code == 0 and "dreamkit shelf [OPTIONS] COMMAND [ARGS]...\n" in out
    listed = sections(out)
    assert listed["Commands of ware1 1.0"] == ["index  Index tars."]
    assert listed["Commands of ware2 1.0"] == ["verify  Verify data."]
    code, out, err = run("shelf")
    assert code == 2 and "verify  Verify data." in out + err


def test_a_command_of_two_words_has_help_options_and_usage_errors(run) -> None:
    code, out, _ = run("shelf", "index", "--help")
    assert code == 0 and "dreamkit shelf index [OPTIONS] {folder}\n" in out
    assert "Index the tars of a folder." in out and "--workers" in out and "processes" in out
    assert run("shelf", "index", "tars", "--workers", "4") == (0, "4 workers index tars\n", "")
    code, out, err = run("shelf", "index", "tars", "--workers", "0")
    assert (code, out) == (2, "") and "--workers" in err


def test_an_app_of_one_command_becomes_that_command_without_completion(run) -> None:
    assert run("shelf", "verify", "--strict") == (0, "verified, strict=True\n", "")
    _, out, _ = run("shelf", "verify", "--help")
    assert "--strict" in out and "completion" not in out


def test_an_app_of_several_commands_becomes_a_group(run) -> None:
    assert run("tools", "sweep") == (0, "swept\n", "")
    code, out, _ = run("tools", "--help")
    assert code == 0 and "Tools of one distribution." in out and "completion" not in out


def test_a_user_error_of_a_command_is_one_sentence(run) -> None:
    assert run("tools", "fail") == (2, "", "dreamkit: expected a folder, got a file\n")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_command_is_one_sentence_that_names_its_distribution(run, name: str) -> None:
    code, out, err = run(name, "--help")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"dreamkit: {BROKEN[name]}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chekc", "digits/stage1"], "unknown command 'chekc'; did you mean 'check'?"),
        (["dta"], "unknown command 'dta'; did you mean 'data'?"),
        (["shelf", "indx", "--workers", "2"], "unknown command 'shelf indx'; did you mean 'shelf index'?"),
    ],
)
def test_an_unknown_command_prints_the_nearest_name_and_the_problems(
    run, words: list[str], message: str
) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "") and err.startswith(f"dreamkit: {message}\n")
    for problem in PROBLEMS:
        assert f"\n    possible cause: {problem}\n" in err


def test_plugins_lists_commands_and_problems(run) -> None:
    code, out, _ = run("plugins")
    assert code == 1
    assert re.search(r"^command +shelf index +ware1 1\.0 +Index tars\.$", out, re.MULTILINE)
    problems = [line.removeprefix("problem: ") for line in out.splitlines() if line.startswith("problem: ")]
    assert sorted(problems) == sorted(PROBLEMS)


def test_listing_imports_no_command_and_no_heavy_library(site: Path) -> None:
    code = (
        "import sys; from dreamkit.cli import main\n"
        "for arguments in (['--help'], ['data', '--help'], ['plugins'], ['recipes']):\n"
        "    sys.argv = ['dreamkit', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "loaded = {'torch', 'transformers', 'ware1.parts', 'ware2.parts', 'tardy.parts'} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)\n"
    )
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


def test_an_allow_list_selects_plug_ins_and_messages_name_the_excluded_ones(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMKIT_PLUGINS", "ware1")
    assert run("group", "tars") == (0, "2 workers index tars\n", "")
    code, _, err = run("shelf", "verify")
    assert code == 2 and "possible cause: DREAMKIT_PLUGINS excludes core, " in err
    assert "DREAMKIT_PLUGINS excludes core, " in run("--help")[1]


@pytest.mark.parametrize("allowed", ["", "greedy"])
def test_the_core_s_commands_work_with_any_plug_in_and_allow_list(
    run, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMKIT_PLUGINS", allowed)
    code, out, _ = run("check", "--help")
    assert code == 0 and "Check a recipe" in out
    code, out, _ = run("plugins")
    assert code == (1 if allowed else 0) and "import-published" in out


def test_the_registry_returns_the_function_of_a_command(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    registry = Registry.load()
    assert registry.get("command", "shelf index").__name__ == "index"
    with pytest.raises(PluginError, match="unknown command 'data'; known: cache, "):
        registry.get("command", "data")


def test_a_summary_of_the_core_is_the_first_line_of_the_help() -> None:
    for name, registered in Registry.load().components("command").items():
        if registered.component.target.startswith("dreamkit."):
            assert COMMANDS[name].help.splitlines()[0] == registered.component.summary
