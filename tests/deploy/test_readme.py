"""What deploy/README.md tells people to type is what the programs take, and what it names is there."""

import re
import shlex
from itertools import pairwise

import pytest
import typer.main

from deploy.reading import DEPLOY, PROGRAMS, ROOT, taken

TEXT = (DEPLOY / "README.md").read_text()
# What a word in front of a command means: a program, Compose's service, or an image with another entry point.
MEANT = {name: name for name in PROGRAMS} | {"coordinator": "koinon-coordinator", "koinon-client": "koinon"}
ENDS = {"<", ">", "|", "&&"}


def typed() -> list[str]:
    """The lines of the blocks of code, each whole."""
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
    return blocks.replace("\\\n", " ").splitlines()


def ours(line: str) -> list[str] | None:
    """The command of Koinon's in a line, as the program would get it; None if there is none."""
    words = shlex.split(line, comments=True)
    words = words[: next((i for i, word in enumerate(words) if word in ENDS), len(words))]
    for i, (word, following) in enumerate(pairwise(words)):
        program = MEANT.get(word.rpartition("/")[2])
        if program and "--entrypoint" in words:
            program = "koinon"
        if program and following in typer.main.get_command(PROGRAMS[program]).commands:
            return [program, *words[i + 1 :]]
        if (word, following) == ("koinon-client", "train.py"):  # the image's entry point says the rest
            return ["koinon", "client", *words[i + 1 :]]
    return None


COMMANDS = [found for line in typed() if (found := ours(line))]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_manual_is_one(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    assert taken(command)


def test_no_command_of_the_manual_is_overlooked():
    lines = [
        line for line in typed() if re.search(r"bin/koinon\S* [a-z]|compose (run|exec)|docker run", line)
    ]
    assert len(lines) > 9
    # One container is started by its image's own command.
    assert [line.split()[-1] for line in lines if ours(line) is None] == ["koinon-edge"]


def test_every_file_that_the_manual_names_is_there():
    named = set(re.findall(r"deploy/[\w./-]*\w", TEXT)) | {
        link.removeprefix("../") for link in re.findall(r"\]\((\S+?)\)", TEXT)
    }
    assert len(named) > 8
    for name in named - {"deploy"}:
        assert (ROOT / name).exists(), name


def test_every_file_is_in_the_manual():
    for file in [*(DEPLOY / "systemd").rglob("*.*"), *(DEPLOY / "docker").glob("*.Dockerfile")]:
        if file.is_file():
            assert file.name in TEXT, file.name
