"""Rules of the whole project: which way imports run, what file names are free, and that the README tells the truth."""

import ast
import importlib.metadata
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from sft.configuration import DpoConfig, SftConfig, read_configuration

PROJECT = Path(__file__).parents[1]
PACKAGES = ("reward", "sft", "preference")
MAY_IMPORT = {"reward": {"reward"}, "sft": {"reward", "sft"}, "preference": set(PACKAGES)}
SCRIPTS = {"sft/run.py": SftConfig, "preference/dpo.py": DpoConfig, "preference/compare_models.py": None}
SOURCES = sorted(path for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))


def python(*arguments):
    """Output of a fresh interpreter in the project's folder; the test fails where it does."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --------------------------------------------------------------------- imports


def imported(path):
    """Top-level names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module.partition(".")[0])
    return names


def test_imports_run_one_way():
    assert len(SOURCES) > 40
    for path in SOURCES:
        package = path.relative_to(PROJECT).parts[0]
        forbidden = imported(path) & set(PACKAGES) - MAY_IMPORT[package]
        assert not forbidden, f"{path.relative_to(PROJECT)} imports {forbidden}"


def test_reward_needs_the_standard_library_sqlglot_apsw_and_what_shows_progress():
    allowed = set(sys.stdlib_module_names) | {"reward", "sqlglot", "apsw", "tqdm"}
    for path in (PROJECT / "reward").rglob("*.py"):
        assert imported(path) <= allowed, f"{path.relative_to(PROJECT)} imports {imported(path) - allowed}"


def test_judge_pairs_and_report_load_no_torch():
    """What people wait for at a prompt: torch alone takes seconds to import."""
    modules = (
        "reward",
        "reward.judge",
        "reward.audit",
        "preference.controls",
        "preference.pairs",
        "preference.report",
        "preference.significance",
        "preference.inspection.command",
        "preference.inspection.rerun",
        "preference.inspection.server",
        "preference.inspection.store",
        "sft.configuration",
        "sft.prompt",
        "sft.examples",
    )
    python(
        "-c",
        f"import sys, {', '.join(modules)}\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'accelerate', 'datasets'} & sys.modules.keys()\n"
        "assert not heavy, heavy",
    )


def test_no_module_hides_one_that_is_installed():
    """`accelerate launch sft/run.py` puts sft/ first on the path, where its files go before all others."""
    installed = set(importlib.metadata.packages_distributions()) - set(PACKAGES)
    taken = installed | set(sys.stdlib_module_names) | {"flash_attn", "bitsandbytes", "vllm"}
    for package in ("sft", "preference"):
        own = {
            path.stem
            for path in (PROJECT / package).iterdir()
            if path.suffix == ".py" or (path / "__init__.py").exists()
        }
        assert len(own) > 5 and not own - {"__init__"} & taken


def test_files_stay_short_enough_to_read():
    for path in SOURCES:
        count = len(path.read_text(encoding="utf-8").splitlines())
        assert count <= 320, f"{path.relative_to(PROJECT)} has {count} lines"
    for script in SCRIPTS:
        assert len((PROJECT / script).read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_an_entry_script_is_instant(script):
    shown = python(
        "-c",
        f"""
import runpy, sys
sys.argv = [{script!r}, "--help"]
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit as exit:
    assert exit.code == 0
assert "torch" not in sys.modules, "torch was loaded"
""",
    )
    assert shown.startswith("usage: ") and f"accelerate launch {script}" in shown


@pytest.mark.parametrize("module", ["preference.answer", "reward.judge", "reward.audit"])
def test_help_of_a_module(module):
    shown = python("-m", module, "--help")
    assert shown.startswith("usage: ") and f"python -m {module}" in shown


# --------------------------------------------------------------------- packaging


def pyproject():
    return tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))


def constraints():
    """Pinned versions by canonical name."""
    pins = {}
    for line in (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, equals, version = line.partition("==")
            assert equals and re.fullmatch(r"[0-9][\w.+!]*", version), f"not an exact pin: {line}"
            assert canonicalize_name(name) not in pins, f"pinned twice: {name}"
            pins[canonicalize_name(name)] = version
    return pins


def test_every_dependency_is_pinned_within_its_range():
    project, pins = pyproject()["project"], constraints()
    requirements = [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]]
    assert len(requirements) > 15
    for requirement in requirements:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} has no pin in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow its pin {pin}"
    assert pins["torch"] == "2.13.0"


def test_dependencies_of_dependencies_are_pinned_too():
    """A version that is left open today is another one on a fresh machine tomorrow."""
    pins, open_ones = constraints(), set()
    for name in pins:
        try:
            needed = map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in needed:
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                open_ones.add(canonicalize_name(requirement.name))
    # torch's CUDA libraries come with exact pins of its own.
    own = {name for name in open_ones if name.startswith(("nvidia", "cuda", "triton"))} | {"setuptools"}
    assert not open_ones - pins.keys() - own, "dependencies without a pin in constraints.txt"


def test_every_import_is_a_declared_dependency():
    providers = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(Requirement(text).name) for text in pyproject()["project"]["dependencies"]}
    known = set(sys.stdlib_module_names) | set(PACKAGES) | {"flash_attn", "bitsandbytes", "vllm"}
    used = set().union(*map(imported, SOURCES)) - known
    undeclared = {name for name in used if not {canonicalize_name(found) for found in providers[name]} & declared}
    assert not undeclared, f"imported, and not named in pyproject.toml: {sorted(undeclared)}"


def test_every_package_and_its_data_are_installed():
    listed = set(pyproject()["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(PROJECT).as_posix().replace("/", ".") for path in SOURCES}
    assert listed == folders
    data = pyproject()["tool"]["setuptools"]["package-data"]
    for package, patterns in data.items():
        for pattern in patterns:
            assert list((PROJECT / package.replace(".", "/")).glob(pattern)), f"{package}: nothing is {pattern}"
    kept = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in (PROJECT / package.replace(".", "/")).glob(pattern)
    }
    everything = {
        path
        for package in PACKAGES
        for path in (PROJECT / package).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert everything == kept


# ---------------------------------------------------------------------- README


def shell_commands(text):
    """Commands of a Markdown text's ```bash blocks, continued lines joined, comments cut off."""
    commands = []
    for block in re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                commands.append(words)
    return commands


def readme():
    return (PROJECT / "README.md").read_text(encoding="utf-8")


def options_of(arguments, known):
    """{option: values} of a command's arguments; the test fails at an option that --help does not name."""
    found, option = {}, None
    for word in arguments:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            assert option in known, f"unknown option {word}"
            found.setdefault(option, []).extend([value] if equals else [])
        elif option is not None:
            found[option].append(word)
    return found


def known_options(help_text):
    return set(re.findall(r"(--[a-z][\w-]*)", help_text))


INSPECTION = ("summary", "show", "serve", "label", "agreement", "apply", "export")


@pytest.fixture(scope="module")
def help_texts():
    """--help of the entry scripts, modules and commands, each asked once."""
    texts = {script: python(script, "--help") for script in SCRIPTS}
    texts |= {command: python("-m", "preference.inspection.command", command, "--help") for command in INSPECTION}
    return texts | {
        module: python("-m", module, "--help") for module in ("preference.answer", "reward.judge", "reward.audit")
    }


def check(words, help_texts):
    """Fail unless a command names files, configurations and options that exist."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, arguments = words[0], words[1:]
    if program in ("bash", "sbatch"):
        assert (PROJECT / arguments[0]).is_file(), f"no file {arguments[0]}"
    elif program == "accelerate":
        assert arguments[0] == "launch"
        place = next(index for index, word in enumerate(arguments) if word.endswith(".py"))
        script = arguments[place]
        assert script in SCRIPTS, f"no entry script {script}"
        launcher = arguments[1:place]
        for option, value in zip(launcher, launcher[1:], strict=False):
            if option == "--config_file":
                assert "compute_environment" in YAML(typ="safe", pure=True).load(
                    (PROJECT / value).read_text(encoding="utf-8")
                )
        found = options_of(arguments[place + 1 :], known_options(help_texts[script]))
        if model := SCRIPTS[script]:
            default = "configs/sft.yaml" if script.startswith("sft") else "configs/dpo.yaml"
            [config] = found.get("--config", [default])
            settings = [setting.replace("$run", "runs/x") for setting in found.get("--set", [])]
            read_configuration(model, PROJECT / config, settings)
            assert set(found.get("--only", [])) <= {"sample", "judge", "pairs", "train"}
    elif program == "python" and arguments[0].endswith(".py"):
        assert (PROJECT / arguments[0]).is_file(), f"no file {arguments[0]}"
    elif program == "python":
        assert arguments[0] == "-m"
        options_of(arguments[2:], known_options(help_texts[arguments[1]]))
    elif program == "inspect-preferences":
        assert pyproject()["project"]["scripts"][program] == "preference.inspection.command:main"
        assert arguments[0] in INSPECTION, f"no command {arguments[0]}"
        options_of(arguments[1:], known_options(help_texts[arguments[0]]))
    else:
        assert program in ("git", "cd", "pip", "ls"), f"{program}: a command that no test knows"


def test_every_command_of_the_readme_names_what_exists(help_texts):
    commands = shell_commands(readme())
    assert ["bash", "launch/quickstart.sh"] in commands and ["bash", "launch/test.sh"] in commands and len(commands) > 8
    assert {words[1] for words in commands if words[0] == "inspect-preferences"} == set(INSPECTION), "every command is documented"
    for words in commands:
        check(words, help_texts)


def test_every_command_in_the_comments_of_configs_and_launch_files_names_what_exists(help_texts):
    found = 0
    for path in [*(PROJECT / "configs").glob("*.yaml"), *(PROJECT / "launch").glob("*.yaml")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"#\s+(accelerate launch (?:.* )?\w+/\w+\.py.*)", line):
                words = shlex.split(match[1].replace("[", "").replace("]", ""), comments=True)
                check([word for word in words if word != "..."], help_texts)
                found += 1
    assert found > 3


def test_the_commands_of_the_quickstart_have_known_keys(help_texts):
    text = (PROJECT / "launch" / "quickstart.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("accelerate launch")]
    assert len(commands) == 3
    for words in commands:
        check(words, help_texts)


def test_the_two_commands_stand_by_line_20_of_the_readme():
    head = readme().splitlines()[:20]
    assert any("bash launch/quickstart.sh" in line for line in head) and any(
        "bash launch/test.sh" in line for line in head
    )


def test_every_relative_link_of_the_readme_leads_somewhere():
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", readme())
    for link in links:
        if not re.match(r"[a-z]+:", link):
            assert (PROJECT / link).exists(), f"README.md links to {link}, which is not there"


def test_no_place_in_the_texts_waits_for_its_figures():
    for name in ("README.md", "RESULTS.md"):
        found = re.findall(r"\b[A-Z0-9]+_(?:OUTPUT|TIME)\b", (PROJECT / name).read_text(encoding="utf-8"))
        assert not found, f"{name} still has the placeholders {found}"


def test_files_that_the_readme_names_exist():
    """Whatever stands in backticks and begins with a folder of the project."""
    named = re.findall(r"`((?:configs|launch|sft|preference|reward|tests)/[\w./{},*-]*)`", readme())
    assert len(named) > 5
    for name in named:
        if "{" not in name and "*" not in name and "." in name:
            assert (PROJECT / name).exists(), f"README.md names {name}"


def test_stated_files_of_the_house_are_there():
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "constraints.txt", ".ci/run"):
        assert (PROJECT / name).is_file(), name
    assert "Apache License" in (PROJECT / "LICENSE").read_text(encoding="utf-8")
