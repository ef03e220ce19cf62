"""README and docs/: links lead somewhere, commands exist, and Python examples run."""

import contextlib
import functools
import importlib
import importlib.util
import io
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

import afmrl_jax
from tests.test_package import ORDER

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = {"scaling.md"}
"""Pages that a command writes; what they show of the shell is not for the reader to run."""
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SHELL = ("sh", "bash", "console", "shell")
NESTED = ("bench", "index")
"""Commands with commands of their own."""


def label(path):
    return str(path.relative_to(ROOT))


def blocks(page, *languages):
    text = page.read_text(encoding="utf-8")
    return [x for x in FENCE.finditer(text) if x["language"] in languages]


def shell_text(page):
    """What a page shows of the shell: fenced, or indented by four places after an empty line."""
    fenced = [x["code"] for x in blocks(page, *SHELL)]
    rest = FENCE.sub("", page.read_text(encoding="utf-8"))
    indented = re.findall(r"(?:(?<=\n\n)|\A)((?: {4}\S[^\n]*\n)+)", rest)
    inline = re.findall(r"`((?:afmrl|make|python) [^`\n]*(?:\n[^`\n]+)?)`", rest)
    return [*fenced, *indented, *(x.replace("\n", " ") + "\n" for x in inline)]


def shell_commands(page):
    """Each command as a list of words, without variables, launchers and redirections."""
    for text in shell_text(page):
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            words = shlex.split(line.removeprefix("$ ").replace("…", ""), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            for stop in (">", "|", "<", "&&"):
                if stop in words:
                    words = words[: words.index(stop)]
            if words:
                yield words


def afmrl_calls(words):
    """The arguments that the command gives to `afmrl`, by whatever way it starts it."""
    if words[0] == "afmrl":
        return words[1:]
    if "afmrl_jax" in words and words[words.index("afmrl_jax") - 1] == "-m":
        return words[words.index("afmrl_jax") + 1 :]
    if words[:2] == ["make", "demo"]:
        given = [x.removeprefix("ARGS=") for x in words[2:] if x.startswith("ARGS=")]
        return ["train", *shlex.split(" ".join(given))]
    return None


@functools.cache
def help_text(*command):
    from afmrl_jax.cli.main import main

    out, wide = io.StringIO(), pytest.MonkeyPatch()
    with wide.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("COLUMNS", "240")
        with contextlib.suppress(SystemExit):
            main([*command, "--help"])
    return out.getvalue()


@functools.cache
def subcommands(*command):
    usage = re.search(r"\{([\w,-]+)\}", help_text(*command))
    return set(usage[1].split(","))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_architecture_prints_the_import_order():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"<!-- ORDER .*? -->\n```text\n(.*?)```", text, re.DOTALL)
    assert [tuple(x.split(", ")) for x in found.splitlines()] == list(ORDER)


def test_architecture_names_every_folder():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in (ROOT / "afmrl_jax").iterdir():
        if path.is_dir() and (path / "__init__.py").exists():
            assert f"`{path.name}/" in text, path.name


def test_api_has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    found = re.findall(r"^::: afmrl_jax\.(\w+)$", text, re.MULTILINE)
    assert len(found) == len(set(found))
    assert set(found) == set(afmrl_jax.__all__) - {"__version__"}


def test_the_tests_in_the_table_of_findings_exist():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([SW]\d+) \|.*\| (.*) \|$", text, re.MULTILINE)
    assert {name for name, _ in rows} == {f"S{n}" for n in range(1, 12)} | {
        f"W{n}" for n in range(1, 10)
    }
    for name, cell in rows:
        named = re.findall(r"`([\w/]+\.py)`: ((?:`test_\w+`(?:, )?)+)", cell)
        assert named, name
        for file, tests in named:
            code = (ROOT / "tests" / file).read_text(encoding="utf-8")
            for test in re.findall(r"`(\w+)`", tests):
                assert f"\ndef {test}(" in code, f"{name}: {file} has no {test}"


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_and_pictures_exist(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w-]", "", x.lower().replace(" ", "-")) for x in headings}


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_named_files_exist(page):
    """Paths inside the repository, written as code."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    tops = "afmrl_jax|experiments|tests|examples|docs"
    for name in re.findall(rf"`((?:{tops})/[\w/.-]+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", [x for x in PAGES if x.name not in WRITTEN], ids=label)
def test_commands_exist(page):
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in shell_commands(page):
        if words[0] == "make":
            for word in words[1:]:
                assert "=" in word or word in targets, words
        if words[0].startswith("python") and len(words) > 1:
            if words[1] == "-m":
                assert words[2] == "venv" or importlib.util.find_spec(words[2]), words
            elif words[1].endswith(".py"):
                assert (ROOT / words[1]).is_file(), words
        for word in words:
            if re.match(r"(experiments|tests|examples|docs)/", word) and "=" not in word:
                assert any(ROOT.glob(word)), words
        call = afmrl_calls(words)
        if call:
            check_call(call)


def check_call(words):
    if not words[0].startswith("-"):
        assert words[0] in subcommands(), words
    depth = 0
    while depth < min(2, len(words)) and re.fullmatch(r"[a-z][\w-]*", words[depth]):
        depth += 1
    if words[0] not in NESTED:
        depth = min(depth, 1)
    elif depth == 2:
        assert words[1] in subcommands(words[0]), words
    if depth == 2 or words[0] not in NESTED:
        text = help_text(*words[:depth])
        for word in words[depth:]:
            option = word.partition("=")[0]
            if re.match(r"--?[a-z]", option):
                assert re.search(rf"(?<![\w.-]){re.escape(option)}(?![\w.-])", text), words


@pytest.mark.parametrize("page", [x for x in PAGES if blocks(x, "python")], ids=label)
def test_python_blocks_compile(page):
    for block in blocks(page, "python"):
        compile(block["code"], label(page), "exec")


@pytest.fixture(scope="module")
def tiny_demo(whole_run, tmp_path_factory):
    """A folder with a finished run of tiny models as runs/demo, and photo.jpg."""
    folder = tmp_path_factory.mktemp("reader")
    own = folder / "runs" / "demo"
    shutil.copytree(whole_run, own, ignore=shutil.ignore_patterns(".lock"))
    Image.new("RGB", (64, 48), "tan").save(folder / "photo.jpg")
    return folder


RUNNABLE = [x for x in PAGES if any(not b["reason"] for b in blocks(x, "python"))]


@pytest.mark.parametrize("page", RUNNABLE, ids=label)
def test_python_blocks_run(page, request, monkeypatch, tmp_path):
    """The blocks of a page run one after the other, in one namespace and an own folder."""
    shown = [x for x in blocks(page, "python") if not x["reason"]]
    if any("runs/demo" in x["code"] for x in shown):
        monkeypatch.chdir(request.getfixturevalue("tiny_demo"))
    else:
        monkeypatch.chdir(tmp_path)
    text, space = page.read_text(encoding="utf-8"), {"__name__": "page"}
    for block in shown:
        # Lines are counted as in the page, so that a failure names its place.
        above = text[: block.start("code")].count("\n")
        exec(compile("\n" * above + block["code"], label(page), "exec"), space)


def test_the_site_loads_nothing_from_elsewhere(tmp_path):
    """Built where the extra `docs` is installed, as by `make docs`."""
    pytest.importorskip("mkdocs")
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", html):
            assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag), f"{page.name}: {tag}"
