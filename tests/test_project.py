"""The project's own rules: floors, dependencies, notebooks, wording."""

import argparse
import ast
import graphlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest
import yaml

import dotlib
from dotlib import __main__ as command_line
from dotlib.arms import STUDIES
from dotlib.config import PROFILES

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DOCS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))

# Module: its floor, then the modules of the same floor that it may import.
FLOORS = {
    "config": (0, "config_parts"),
    "config_parts": (0,),
    "metrics": (0, "metrics_regions"),
    "metrics_regions": (0,),
    "stats": (0,),
    "stats_crossed": (0, "stats"),
    "stats_aa": (0, "stats", "stats_crossed"),
    "power_law": (0, "stats"),
    "convergence": (0, "stats"),
    "workers": (0,),
    "provenance": (0,),
    "physics.green": (0,),
    "physics": (1,),
    "physics.geometry": (1,),
    "physics.optodes": (1, "physics.geometry"),
    "physics.ssor": (1,),
    "physics.multigrid": (1, "physics.geometry", "physics.ssor"),
    "physics.diffusion": (1, "physics.geometry", "physics.optodes", "physics.ssor", "physics.multigrid"),
    "physics.jacobian": (1, "physics.diffusion", "physics.geometry", "physics.optodes"),
    "physics.rytov": (1,),
    "physics.homogeneous": (1, "physics.diffusion", "physics.geometry", "physics.jacobian", "physics.rytov"),
    "physics.lift": (1, "physics.geometry", "physics.homogeneous", "physics.jacobian", "physics.rytov"),
    "physics.gauss_newton": (
        1,
        "physics.diffusion",
        "physics.homogeneous",
        "physics.jacobian",
        "physics.lift",
        "physics.rytov",
    ),
    "physics.closed_form": (1, "physics.geometry", "physics.homogeneous", "physics.lift", "physics.rytov"),
    "data.surface": (1,),
    "data.phantoms": (1, "data.surface"),
    "data.probe": (1, "data.phantoms", "data.surface"),
    "losses": (1,),
    "recipes": (1,),
    "improvements": (1, "recipes"),
    "reconstructions": (1, "improvements", "recipes"),
    "arms": (1, "improvements", "reconstructions", "recipes"),
    "factors": (1, "improvements", "recipes", "reconstructions"),
    "models": (1,),
    "models.blocks": (1,),
    "models.attention": (1, "models.blocks"),
    "models.skips": (1, "models.attention", "models.blocks"),
    "models.stages": (1, "models.attention", "models.blocks", "models.skips"),
    "models.autoencoder": (1, "models.blocks", "models.stages", "models.vit"),
    "models.reconstructor": (1, "models.autoencoder", "models.blocks", "models.stages", "models.vit"),
    "models.vit": (1, "models.blocks"),
    "optim": (1,),
    "data": (2,),
    "data.noise": (2,),
    "data.schema": (2,),
    "data.ledger": (2,),
    "data.inspector": (2,),
    "data.foreign": (2, "data.inspector", "data.ledger"),
    "data.store": (2, "data.foreign", "data.ledger", "data.schema"),
    "data.checks": (2, "data.store"),
    "data.split": (2,),
    "data.recording": (2, "data.noise", "data.store", "data.checks", "data.split"),
    "data.simulate": (2, "data.recording", "data.store", "data.checks", "data.split"),
    "data.sampling": (2,),
    "data.bodies": (2,),
    "data.augment": (2, "data.bodies"),
    "data.snirf_file": (2, "data.schema"),
    "data.snirf": (2, "data.foreign", "data.snirf_file"),
    "data.placement": (2,),
    "data.lifts": (
        2,
        "data.dataset",
        "data.noise",
        "data.placement",
        "data.recording",
        "data.sampling",
        "data.simulate",
        "data.split",
        "data.store",
    ),
    "data.samples": (
        2,
        "data.augment",
        "data.bodies",
        "data.dataset",
        "data.lifts",
        "data.placement",
        "data.split",
        "data.store",
    ),
    "data.classical": (2, "data.dataset", "data.lifts", "data.simulate", "data.split", "data.store"),
    "data.dataset": (2, "data.store", "data.simulate", "data.checks", "data.split", "data.bodies"),
    "archive": (3,),
    "checkpoint": (3, "archive"),
    "inference": (3, "checkpoint"),
    "evaluation": (3, "inference"),
    "perceptual": (3, "inference"),
    "history": (3, "checkpoint"),
    "journal": (3, "checkpoint"),
    "machine": (3,),
    "memory": (3, "machine"),
    "monitor": (3,),
    "tracking": (3,),
    "trainer": (3, "evaluation", "history", "inference", "journal", "machine", "memory", "monitor", "perceptual"),
    "records": (3, "checkpoint"),
    "run": (4,),
    "run_store": (4, "run"),
    "cluster": (4,),
    "slurm": (4, "cluster", "run"),
    "shards": (4, "cluster", "run", "slurm"),
    "standing": (4, "cluster", "run", "run_store", "slurm"),
    "study": (4, "cluster", "run", "slurm", "standing"),
    "search": (4, "run"),
    "ledger": (4, "run", "search"),
    "sweep": (4, "cluster", "ledger", "run", "search", "slurm", "study"),
    "outcomes": (4, "study"),
    "results": (4, "comparison", "outcomes", "study"),
    "trivial": (4,),
    "comparison": (4, "trivial"),
    "judged_sets": (4,),
    "judged_scores": (4, "judged_sets", "trivial"),
    "judged_records": (4,),
    "judgement": (4, "judged_records", "judged_scores", "judged_sets", "study", "trivial"),
    "localisation": (4, "study"),
    "reconstruct": (4,),
    "trained": (4, "study"),
    "reconstruction_sets": (4,),
    "reconstruction_scores": (4, "reconstruction_sets"),
    "reconstruction_limits": (4, "reconstruction_sets"),
    "reconstruction_records": (4,),
    "reconstruction_tuning": (4,),
    "reconstruction_times": (4, "reconstruction_sets", "reconstruction_tuning"),
    "reconstruction_judgement": (
        4,
        "judgement",
        "reconstruction_limits",
        "reconstruction_records",
        "reconstruction_scores",
        "reconstruction_sets",
        "reconstruction_times",
        "reconstruction_tuning",
        "study",
    ),
    "sections": (4,),
    "sections.baseline": (4, "comparison", "outcomes", "study"),
    "sections.light": (4,),
    "sections.light_readings": (4, "sections.light"),
    "sections.light_spheres": (4, "sections.light"),
    "sections.schedules": (4,),
    "sections.optimisers": (4, "comparison"),
    "sections.factorial": (4, "sections.optimisers"),
    "sections.settings": (4, "sections.optimisers"),
    "sections.tuning": (4, "search", "sections.settings"),
    "sections.speed": (4, "sections.optimisers", "sections.settings"),
    "sections.hypotheses": (4, "comparison", "sections.optimisers", "sections.speed", "sections.stability"),
    "sections.attention": (
        4,
        "comparison",
        "sections.attention_costs",
        "sections.hypotheses",
        "sections.hypotheses_architecture",
        "sections.optimisers",
    ),
    "sections.attention_costs": (4, "sections.efficiency", "sections.optimisers"),
    "sections.attention_maps": (
        4,
        "localisation",
        "outcomes",
        "sections.attention_costs",
        "sections.measured",
        "study",
    ),
    "sections.ablation": (4, "comparison", "sections.attention_costs", "sections.optimisers"),
    "sections.advice": (4, "comparison", "sections.ablation", "sections.hypotheses"),
    "sections.false_discovery": (4, "comparison", "sections.optimisers"),
    "sections.stability": (4, "sections.measured", "sections.optimisers"),
    "sections.learning_curve": (4, "sections.optimisers"),
    "sections.hypotheses_architecture": (4, "sections.ablation", "sections.hypotheses"),
    "sections.measured": (4, "comparison"),
    "sections.generalisation": (4, "judged_sets", "sections.measured"),
    "sections.budget": (
        4,
        "sections.ablation",
        "sections.attention_costs",
        "sections.criteria",
        "sections.measured",
        "sections.optimisers",
    ),
    "sections.criteria": (4, "comparison", "judged_scores", "sections.generalisation", "sections.measured", "trivial"),
    "sections.inverse": (
        4,
        "reconstruction_judgement",
        "reconstruction_records",
        "reconstruction_sets",
        "sections.measured",
    ),
    "sections.inverse_inclusions": (
        4,
        "reconstruction_judgement",
        "reconstruction_limits",
        "reconstruction_records",
        "reconstruction_sets",
        "sections.inverse",
        "sections.measured",
    ),
    "sections.inverse_views": (
        4,
        "reconstruction_judgement",
        "reconstruction_sets",
        "sections.inverse",
        "sections.measured",
    ),
    "sections.inverse_ensemble": (4, "reconstruction_judgement", "reconstruction_scores"),
    "sections.inverse_picture": (
        4,
        "reconstruction_judgement",
        "reconstruction_sets",
        "reconstruction_tuning",
        "study",
    ),
    "sections.loss_scale": (4,),
    "sections.step_profile": (4,),
    "sections.roofline": (4, "sections.step_profile"),
    "sections.naive": (4,),
    "sections.efficiency": (4, "sections.naive", "sections.roofline"),
    "plots": (5,),
    "plots.ablation": (5, "plots", "plots.optimisers"),
    "plots.attention": (5, "plots", "plots.optimisers"),
    "plots.generalisation": (5, "plots"),
    "plots.inverse": (5, "plots"),
    "plots.light": (5, "plots"),
    "plots.optimisers": (5, "plots"),
    "plots.efficiency": (5, "plots"),
    "plots.tuning": (5, "plots", "plots.optimisers"),
    "plots.reconstruction": (5, "plots"),
    "plots.viewer": (5, "plots", "plots.light", "plots.reconstruction"),
    "viewer": (5, "plots", "plots.viewer"),
    "latex": (5,),
    "shown": (5, "latex"),
    "report": (5, "latex", "plots", "shown"),
    "chapter": (5, "report", "shown"),
    "bench_rows": (5,),
    "bench_forward": (5, "bench_rows"),
    "bench_lift": (5, "bench_forward", "bench_rows"),
    "bench_sharing": (5, "bench_rows"),
    "bench_store": (5, "bench_rows"),
    "bench": (5, "bench_forward", "bench_lift", "bench_rows", "bench_sharing", "bench_store"),
    "pages": (5, "report", "shown"),
    "workbook": (5, "pages"),
    "thesis": (5, "latex", "pages", "report"),
    "commands": (5, "bench", "plots", "plots.reconstruction", "thesis", "workbook"),
    "commands_runs": (5,),
    "__main__": (5, "commands", "commands_runs"),
}


def module_name(path):
    """The module's name below dotlib; a package has its folder's name, dotlib itself the empty one."""
    return ".".join(path.relative_to(ROOT / "dotlib").with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {module_name(path): path for path in sorted((ROOT / "dotlib").rglob("*.py"))}


def imported(name, path):
    """The modules of dotlib that a file imports anywhere in it, inside functions too."""
    package = ("dotlib." + name).strip(".").split(".")[: None if path.name == "__init__.py" else -1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join(base + (node.module.split(".") if node.module else []))
            children = {f"{base}.{alias.name}" for alias in node.names}
            found |= {child if child.removeprefix("dotlib.") in MODULES else base for child in children}
    return {module.removeprefix("dotlib").removeprefix(".") for module in found if module.split(".")[0] == "dotlib"}


def test_package_imports_nothing_heavy():
    script = "import sys, dotlib; print(sorted({'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_point_down(name):
    others = imported(name, MODULES[name]) - {""}
    unknown = ({name} | others) - set(FLOORS)
    assert not unknown, f"dotlib.{name} is or imports {unknown}, on no floor: add it to the table FLOORS in this file"
    floor, *beside = FLOORS[name]
    for other in others:
        child = MODULES[name].name == "__init__.py" and other.startswith(name + ".")
        allowed = FLOORS[other][0] < floor or other in beside or (child and FLOORS[other][0] == floor)
        assert allowed, f"{name} (floor {floor}) imports {other} (floor {FLOORS[other][0]})"


def test_imports_make_no_circle():
    assert imported("", MODULES[""]) == set(), "dotlib/__init__.py imports a part of itself"
    tuple(graphlib.TopologicalSorter({name: imported(name, path) for name, path in MODULES.items()}).static_order())


def test_environment_agrees_with_pyproject():
    python, pip, packages = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert python == "python" + PROJECT["requires-python"]
    assert (pip, packages) == ("pip", {"pip": ["-e .[test]"]})
    assert "test" in PROJECT["optional-dependencies"]


def test_version_is_one():
    assert PROJECT["version"] == dotlib.__version__


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_module_fits_in_a_head(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.skipif(not shutil.which("git"), reason="no git on this machine")
def test_gitignore_spares_sources(tmp_path):
    kept = ["dotlib/data/x.py", "figures/x.pdf", "results/x.csv", "notebooks/x.ipynb"]
    ignored = ["data/x.h5", "runs/x", "build/x", ".venv/x", "notebooks/wandb/x", "dotlib/__pycache__/x.pyc"]
    shutil.copy(ROOT / ".gitignore", tmp_path)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    git = ["git", "-C", str(tmp_path), "-c", "core.excludesFile="]
    subprocess.run([*git, "init", "--quiet"], check=True, env=environment)
    command = [*git, "check-ignore", *kept, *ignored]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.stdout.split() == ignored


def cell_faults(tree, code):
    """What must not stand in a cell of code."""
    nodes = list(ast.walk(tree))
    if any(isinstance(node, ast.ClassDef) for node in nodes):
        yield "class"
    if any(isinstance(node, ast.Try | ast.TryStar) for node in nodes):
        yield "try"
    if any(isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path" for node in nodes):
        yield "sys.path"
    if re.search(r"\bpip\b", code):
        yield "pip"
    if re.search(r"""["'](~?/\w|[A-Za-z]:[\\/])""", code):
        yield "absolute path"


def parameter_faults(tree, code):
    """The names of the parameters cell that lack an annotation or a trailing comment."""
    comments = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(code).readline) if t.type == tokenize.COMMENT}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign) or (
            isinstance(node, ast.AnnAssign) and (node.value is None or node.end_lineno not in comments)
        ):
            yield "parameter without annotation, value or comment"


def notebook_faults(notebook):
    """Every way in which a stored notebook breaks the rules, by name."""
    cells = notebook["cells"]
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    parameters = [cell for cell in codes if "parameters" in cell["metadata"].get("tags", [])]
    faults = {
        "kernel": notebook["metadata"].get("kernelspec", {}).get("name") != "python3",
        "cell ids": not all(cell.get("id") for cell in cells) or len({cell.get("id") for cell in cells}) < len(cells),
        "outputs": any(cell["outputs"] or cell["execution_count"] is not None for cell in codes),
        "more than 25 code cells": len(codes) > 25,
        "parameters cell": len(parameters) != 1,
    }
    found = {fault for fault, present in faults.items() if present}
    for cell in codes:
        code = "".join(cell["source"])
        try:
            tree = ast.parse(code)
        except SyntaxError:
            found.add("not plain Python")
            continue
        found |= {*cell_faults(tree, code), *(parameter_faults(tree, code) if cell in parameters else ())}
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_keeps_the_rules(path):
    assert notebook_faults(json.loads(path.read_text(encoding="utf-8"))) == set()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_two_figures_or_tables_of_a_notebook_share_a_name(path):
    """The later one would take the former's files."""
    codes = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    names = []
    for node in [node for cell in codes for node in ast.walk(ast.parse("".join(cell["source"])))]:
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("show", "save"):
            names += [argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant)]
    assert len(names) > 5 and sorted(set(names)) == sorted(names)


def notebook_of(*sources, tags=("parameters",), **changes):
    """A notebook of code cells, the first of them tagged; `changes` go into every cell."""
    cell = {"cell_type": "code", "outputs": [], "execution_count": None}
    cells = [{**cell, "id": str(i), "source": s, "metadata": {}, **changes} for i, s in enumerate(sources)]
    cells[0]["metadata"] = {"tags": list(tags)}
    return {"cells": cells, "metadata": {"kernelspec": {"name": "python3"}}}


@pytest.mark.parametrize(
    ("notebook", "fault"),
    [
        (notebook_of("seeds: int = 3  # paired seeds"), None),
        (notebook_of("n: int = 3  # n", "print(f'{n}/validation')"), None),
        (notebook_of("seeds = 3  # paired seeds"), "parameter without annotation, value or comment"),
        (notebook_of("seeds: str = '#3'"), "parameter without annotation, value or comment"),
        (notebook_of("n: int = 3  # n", tags=()), "parameters cell"),
        (notebook_of(*["n: int = 3  # n"] * 26), "more than 25 code cells"),
        (notebook_of("n: int = 3  # n", execution_count=1), "outputs"),
        (notebook_of("n: int = 3  # n", outputs=[{}]), "outputs"),
        (notebook_of("n: int = 3  # n", "n", id="same"), "cell ids"),
        (notebook_of("n: int = 3  # n", "%matplotlib inline"), "not plain Python"),
        (notebook_of("n: int = 3  # n", "class A: pass"), "class"),
        (notebook_of("n: int = 3  # n", "try:\n    n\nfinally:\n    n"), "try"),
        (notebook_of("n: int = 3  # n", "sys.path.append('..')"), "sys.path"),
        (notebook_of("n: int = 3  # n", "run('pip install x')"), "pip"),
        (notebook_of("n: int = 3  # n", "open('/data/x')"), "absolute path"),
        ({**notebook_of("n: int = 3  # n"), "metadata": {}}, "kernel"),
    ],
)
def test_notebook_rules_see_the_fault(notebook, fault):
    assert notebook_faults(notebook) == ({fault} if fault else set())


BANNED = re.compile(
    r"\b(advanced|robust|comprehensive|state[- ]of[- ]the[- ]art|cutting[- ]edge|seamless(ly)?)\b"
    r"|[\u2600-\u27bf\u2b50\u2b55\ufe0f\U0001f000-\U0001faff]"  # emoji and dingbats
    r"|(?<![\w.])/(home|root|Users)/\w",
    re.IGNORECASE,
)


def test_wording_is_plain():
    folders = (ROOT / name for name in ("dotlib", "tests", "notebooks", "benchmarks", "results", "docs", "figures"))
    paths = {*ROOT.iterdir(), *(path for folder in folders for path in folder.rglob("*"))} - {Path(__file__).resolve()}
    found = {
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in paths
        if path.suffix in {".py", ".md", ".ipynb", ".toml", ".yml", ".txt", ".cff"}
        for match in BANNED.finditer(path.read_text(encoding="utf-8"))
    }
    assert found == set()


def links(text):
    """Where a page's links and pictures lead, but those to the web; code is none."""
    prose = re.sub(r"^ *```.*?^ *```|`[^`]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\[[^\[\]]*\]\(([^()\s]+)\)", prose)
    return {target for target in targets if not re.match(r"https?:", target)}


def anchors(text):
    """What may follow a # in a link to a page: its headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_links_lead_to_what_there_is(page):
    text, broken = page.read_text(encoding="utf-8"), []
    for target in links(text):
        path, _, anchor = target.partition("#")
        to = page.parent / path if path else page
        if not to.is_file() or (anchor and anchor not in anchors(to.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


def commands(text):
    """The lines of a page's code blocks that are commands, and what stands between backticks."""
    plain = re.sub(r"^ *```python$.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^    +((?:\S+=\S* )*(?:\.venv/bin/|dotlib |make ).+)$", plain, re.MULTILINE)
    rest = re.sub(r"^    .*$", "", plain, flags=re.MULTILINE)
    return lines, [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]


def parser_of(words):
    """The parser of a command, and of the verb after it, as far as the words name them; None where one does not."""
    parser = command_line._parser()
    for word in words:
        choices = next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
        if choices is None or not re.match(r"[a-z]", word):
            return parser
        if (parser := choices.get(word)) is None:
            return None
    return parser


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_commands_of_a_page_are_those_of_the_command_line(page):
    """Whole lines are parsed, and name known studies and profiles; of the rest, command and options are known."""
    lines, spans = commands(page.read_text(encoding="utf-8"))
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[0].rpartition("/")[2] == "dotlib":
            given = command_line._parser().parse_args(words[1:])
            assert getattr(given, "study", "4.2-baseline") in STUDIES, line
            assert getattr(given, "profile", "quick") in PROFILES, line
    for words in (span.split() for span in spans if span.startswith("dotlib ")):
        parser = parser_of(words[1:])
        assert parser is not None, " ".join(words)
        known = {option for action in parser._actions for option in action.option_strings}
        assert {word for word in words if word.startswith("-")} <= known, " ".join(words)


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_make_targets_of_a_page_are_those_of_the_makefile(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    lines, spans = commands(page.read_text(encoding="utf-8"))
    for line in [*lines, *spans]:
        words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z]+=", word)]
        if words[:1] == ["make"]:
            assert set(words[1:]) <= targets, line


def test_every_command_has_a_line():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    parser = command_line._parser()
    every = next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    assert {name for name in every if f"dotlib {name} " not in text} == set()


def test_map_has_every_notebook_and_study():
    """A study is named whole, or by what follows its section's number."""
    rows = re.findall(r"^\| (4\.\d) .*$", text := DOCS[0].read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [path.name[:3] for path in NOTEBOOKS]
    for name in [f"(notebooks/{path.name})" for path in NOTEBOOKS]:
        assert name in text
    for name in STUDIES:
        row = re.search(rf"^\| {name[:3]} .*$", text, re.MULTILINE)[0]
        assert f"`{name}`" in row or f"`{name[3:]}`" in row, name


def test_modules_page_has_every_module_and_no_other():
    text = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
    named = {pattern: set(ROOT.glob(pattern)) for pattern in re.findall(r"`(dotlib/[\w/*]+\.py)`", text)}
    assert [pattern for pattern, paths in named.items() if not paths] == []
    modules = {path for path in MODULES.values() if path.name != "__init__.py"}
    assert {str(path.relative_to(ROOT)) for path in modules - set().union(*named.values())} == set()


def test_citation_agrees_with_pyproject():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(found) and found["cff-version"] == "1.2.0"
    assert (found["version"], found["license"]) == (PROJECT["version"], PROJECT["license"])
    holder = re.search(r"^Copyright \(c\) \d+, (.+)$", (ROOT / "LICENSE").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert [author["name"] for author in found["authors"]] == [holder]


def test_rules_of_pages_see_the_fault():
    text = "[a](docs/x.md) `[b](no.md)`\n![c\nd](f.png) [e](https://e.org)\n```python\n[g](h)\n```\n# Two words: `x`"
    assert links(text) == {"docs/x.md", "f.png"} and anchors(text) == {"two-words-x"}
    lines, spans = commands("    .venv/bin/dotlib x  # y\n`dotlib\nruns`\n```python\n    make z\n```\n    A=1 make b\n")
    assert lines == [".venv/bin/dotlib x  # y", "A=1 make b"] and spans == ["dotlib runs"]
    assert parser_of(["nothing"]) is None and parser_of(["runs", "nothing"]) is None
    assert parser_of(["runs", "rm"]).prog == "dotlib runs rm"
    assert parser_of(["study", "NAME", "--on"]).prog == "dotlib study"
