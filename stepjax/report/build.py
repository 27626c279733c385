"""Builds DIR/report/index.html from what a run directory holds.

The page is one file that needs nothing else: styles, script, plots and searches are
inside, and its content security policy forbids the browser to load anything. Texts of
models reach it in two ways only: escaped by jinja2, or packed (see `searches`) and put
in place as text by the script.
"""

import base64
import hashlib
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2

from stepjax.controls import IsRight
from stepjax.evaluation import (
    benchmark_tables,
    benchmarks,
    budgets,
    calibration,
    show,
    tables,
)
from stepjax.lm import files
from stepjax.report import charts, data_map, paper_tables, searches, solved

MOST = 25_000_000  # bytes of the page
_BESIDE = 3_000_000  # bytes of it that are not searches, at most
_HERE = pathlib.Path(__file__).parent


class Written(NamedTuple):
    """What was written.

    Attributes:
      path: of the page.
      problems: how many searched problems it holds.
      left_out: what was left out to keep it small, in words; "" for nothing.
    """

    path: pathlib.Path
    problems: int
    left_out: str


def write(
    workdir: pathlib.Path,
    is_right: IsRight | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Written:
    """Writes the page of a run, which may still be going on.

    Args:
      workdir: the run directory; stages that are not finished are left out.
      is_right: gold of a world, which marks candidates as right or wrong; None where
        nothing is known about single steps.
      settings: of the run, as nested dictionaries; {} lists none.

    Raises:
      ValueError: for a run without a finished stage, or for a file that is damaged or
        has changed since it was written.
    """
    models = _last(workdir)
    results = [_results(workdir, number) for number in range(models + 1)]
    if not any(results):
        raise ValueError(
            f"{workdir} holds no finished stage; expected a run whose first model is "
            "trained or measured. Run `stepjax run` on the same --workdir first."
        )
    sources, found, sampled = [], [], []
    for number in range(models + 1):
        counts = _greedy_counts(results[number])
        found.append({})
        for source, states in _sources(workdir, number, is_right):
            sources.append(source)
            if source.problems in ("questions", "test"):
                # The test problems, which come last, are the same for all models.
                found[number] = calibration.counts_of_verdicts(states)
                found[number]["first_wins"] = calibration.first_wins(states)
                part = "search" if source.problems == "test" else "own_search"
                counts[part] = _search_counts(states)
        sampled.append(counts)
    packed = searches.pack(sources, MOST - _BESIDE)
    measured = _benchmarks(workdir, models)
    sections = [
        ("Accuracy", "accuracy", charts.accuracy(results, measured)),
        ("The judge", "judge", charts.judging(results, found)),
        ("Steps and lengths", "steps", charts.steps(results)),
        ("What training changed", "training", charts.training(results)),
        ("Time and tokens", "costs", charts.costs(results, sampled)),
    ]
    keys, rows = [part[1] for part in sections], tables.tables(workdir, models)
    drawn = dict(zip(keys, rows, strict=True))
    found_by = solved.groups(_solved(workdir))
    sections.insert(1, ("Test-time methods", "solved", solved.charts(found_by)))
    sections.append(("Data", "map", data_map.charts(workdir)))
    text = _template().render(
        name=workdir.resolve().name,
        facts=_facts(results, settings or {}),
        sections=[part for part in sections if part[2] or drawn.get(part[1])],
        judged=_judged(workdir),
        no_map=data_map.note(workdir),
        tables=drawn,
        sampled=charts.sampled_table(sampled),
        benchmarks=benchmark_tables.tables(workdir, models),
        solved=solved.tables(found_by),
        published=charts.published_tables(results, measured)
        + paper_tables.tables(results, measured, settings or {}, _counts(workdir)),
        legend=budgets.LEGEND | benchmark_tables.LEGEND | tables.LEGEND,
        warnings=_warnings(results),
        settings=_flat(settings or {}),
        packed=packed,
        problems=sum(len(source.rows) for source in sources),
        **_assets(),
    )
    path = workdir / "report" / "index.html"
    files.make_folder(path.parent)
    with files.replacing(path) as file:
        # A lone surrogate, which a broken text may hold, has no UTF-8.
        file.write(text.encode("utf-8", "replace").decode("utf-8"))
    return Written(path, sum(len(source.rows) for source in sources), packed.left_out)


def _last(workdir: pathlib.Path) -> int:
    """Returns the number of the newest model that is finished or measured."""
    paths = [*workdir.glob("M*/manifest.json"), *workdir.glob("eval/M*.json")]
    names = (
        re.match(r"M(\d+)(?:_|$)", p.stem) or re.match(r"M(\d+)$", p.parent.name)
        for p in paths
    )
    return max((int(name[1]) for name in names if name), default=0)


def _results(workdir: pathlib.Path, number: int) -> dict[str, dict]:
    """Returns `tables.results` of a model, after a look at what they hold."""
    found = tables.results(workdir, number)
    for part, manifest in found.items():
        needed = ["seconds"]
        if part not in ("trained", "own_search"):
            needed += ["metrics"] if part == "training" else ["metrics", "items"]
        _check(manifest, needed, f"{workdir}: M{number}, {tables.STAGES[part]}")
    return found


def _check(manifest: Any, needed: Sequence[str], place: str) -> None:
    """Raises ValueError for a result that lacks what the page reads of it."""
    absent = [key for key in needed if key not in manifest]
    if absent:
        raise ValueError(
            f"{place}: the result has no {' and no '.join(absent)}; expected what "
            "`stepjax` wrote. Delete its file, and run the same command again."
        )


def _sources(
    workdir: pathlib.Path, number: int, is_right: IsRight | None
) -> Iterator[tuple[searches.Source, list]]:
    """Yields the searches of a model: of its questions, its test, other benchmarks."""
    for path in sorted(show.searches(workdir, number), key=_order):
        own = path.parent.name == f"M{number}"
        name = "questions" if own else _problems(path)
        graded = {}
        if not own:
            result = files.read_json(path.with_suffix(".json"))
            _check(result, ("items",), str(path.with_suffix(".json")))
            graded = {item["id"]: item for item in result["items"]}
        states = show.states_of(path)
        rows = [
            searches.of_state(state, is_right, graded.get(state.question.id))
            for state in states
        ]
        if rows:
            yield searches.Source(f"M{number}", name, rows), states


def _order(path: pathlib.Path) -> tuple[bool, bool, str]:
    return path.parent.name == "eval", path.stem.endswith("_test_search"), path.name


def _problems(path: pathlib.Path) -> str:
    """Returns "test" of eval/M1_test_search.json."""
    return path.stem.partition("_")[2].rpartition("_")[0]


def _benchmarks(workdir: pathlib.Path, models: int) -> dict[str, list[dict]]:
    """Returns name of a file that models were measured on → results of each model."""
    found: dict[str, list[dict]] = {}
    for mode in ("greedy", "search"):
        for path in sorted((workdir / "eval").glob(f"M*_*_{mode}.json")):
            number, name = path.stem.partition("_")[0][1:], _problems(path)
            if name in ("test", "unseen") or not number.isdecimal():
                continue
            every = found.setdefault(name, [{} for _ in range(models + 1)])
            result = files.read_json(path)
            _check(result, ("metrics", "items"), str(path))
            every[int(number)][mode] = result
    short = benchmarks.short_names(list(found))
    return {short[name]: every for name, every in found.items()}


def _judged(workdir: pathlib.Path) -> list[dict[str, str]]:
    """Returns the table of files of judged steps that models were measured on."""
    measured = []
    for path in sorted((workdir / "eval").glob("M*_*_judge.json")):
        name = _problems(path)
        if not name.startswith("heldout"):
            result = files.read_json(path)
            _check(result, ("metrics",), str(path))
            head = {"model": path.stem.partition("_")[0], "file": name}
            measured.append((head, result["metrics"]))
    return tables.judged_files(measured)


def _solved(workdir: pathlib.Path) -> dict[str, dict]:
    """Returns name → result of each method, as `stepjax solve` has written them."""
    found = {}
    for path in sorted((workdir / "eval").glob(solved.PATTERN)):
        found[path.stem] = files.read_json(path)
        _check(found[path.stem], ("metrics",), str(path))
    return found


def _counts(workdir: pathlib.Path) -> dict[str, int]:
    """Returns file of the run's data → its rows; {} before they are there."""
    path = workdir / "data" / "manifest.json"
    return files.read_json(path)["counts"] if path.exists() else {}


def _greedy_counts(results: Mapping[str, Mapping]) -> dict[str, dict[str, int]]:
    return {
        part: {
            "tokens": sum(item["tokens"] for item in results[part]["items"]),
            "samples": len(results[part]["items"]),
        }
        for part in ("greedy", "unseen")
        if part in results
    }


def _search_counts(states: list) -> dict[str, int]:
    expansions = [e for state in states for e in state.expansions]
    candidates = [c for e in expansions for c in e.candidates]
    return {
        "tokens": sum(c.count * len(c.ids) for c in candidates),
        "samples": sum(c.count for c in candidates),
        "judgments": sum(len(e.verdicts) for e in expansions),
    }


def _facts(results: list[dict], settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what stands below the title: what was run, and with what."""
    facts = [("models", f"M0 to M{len(results) - 1}" if len(results) > 1 else "M0")]
    if "iterations" in settings:
        facts.append(("iterations planned", str(settings["iterations"])))
    if "search" in settings:
        facts.append(("candidates per step", str(settings["search"]["width"])))
    manifest = next((part for found in results for part in found.values()), {})
    if "seed" in manifest:
        facts.append(("seed", str(manifest["seed"])))
    versions = manifest.get("versions", {})
    facts += [(name, versions[name]) for name in ("stepjax", "jax") if name in versions]
    return facts


def _warnings(results: list[dict]) -> list[str]:
    return [
        f"M{number}, {tables.STAGES[part]}: {warning}"
        for number, found in enumerate(results)
        for part, manifest in found.items()
        for warning in manifest.get("warnings", ())
    ]


def _flat(settings: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Returns settings by their full name, as search.width."""
    flat = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{before}{name}.")
        else:
            flat.append((f"{before}{name}", str(value)))
    return flat


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(_HERE),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html")


def _assets() -> dict[str, str]:
    """Returns style sheet and script, and the digest that lets only this one run."""
    script = (_HERE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (_HERE / "page.css").read_text("utf-8")
    return {"style": style, "script": script, "digest": digest}
