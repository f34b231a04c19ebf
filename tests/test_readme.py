"""What the README says is true: its tree, its commands, its links."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from flows.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(?:bash)?\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
FOLDERS = ("pipeline", "models", "flows", "tests", "examples", "infra", "docs")


def tree():
    """The paths of the file tree, files and folders."""
    (block,) = (block for block in BLOCKS if block.startswith("pipeline/"))
    paths, above = [], []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], line.split()[0]]
        paths.append("".join(above))
    return paths


def commands():
    """Every line of a shell block, continued lines joined."""
    text = "\n".join(block.replace("\\\n", " ") for block in BLOCKS)
    return [line.strip() for line in text.splitlines()]


def parse(command):
    """Parse a `widefield` command without running it; errors as the command line would raise them."""
    group = typer.main.get_command(app)
    name, *arguments = shlex.split(command)[1:]
    with group.make_context("widefield", [name, *arguments]) as context:
        group.commands[name].make_context(name, arguments, parent=context)


def test_every_file_of_the_tree_exists():
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_every_tracked_file_is_in_the_tree():
    listed = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this copy is no git checkout")
    known = set(tree())
    whole = tuple(path for path in known if path.endswith("/") and not any(p.startswith(path) for p in known - {path}))
    tracked = [path for path in listed.stdout.splitlines() if not path.endswith("__init__.py")]
    assert [path for path in tracked if path not in known and not path.startswith(whole)] == []


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("widefield ")])
def test_every_command_parses(command):
    parse(command)


@pytest.mark.parametrize("name", list(typer.main.get_command(app).commands))
def test_the_examples_of_the_help_parse(name):
    examples = re.findall(r"`(widefield [^`]*)`", typer.main.get_command(app).commands[name].epilog)
    assert examples
    for example in examples:
        parse(example)


def test_a_command_that_does_not_exist_would_be_found():
    with pytest.raises(typer.TyperException, match="--blocks"):
        parse("widefield segment scene.tif --bundle b --out o --blocks 3")


def test_every_make_target_exists():
    targets = set(re.findall(r"^make (\w+)|`make (\w+)`", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert [name for pair in targets for name in pair if name and f"\n{name}:" not in makefile] == []


def test_every_link_and_script_leads_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"^python (\S+\.py)", README, re.MULTILINE)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_names_every_command_and_output():
    from pipeline.outputs import ASSETS

    for word in (*typer.main.get_command(app).commands, *ASSETS, "item.json", "mask.zarr"):
        assert f"`{word}" in README
