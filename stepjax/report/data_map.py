"""A map of a run's data: t-SNE of its prompts and of its responses, one point a row.

`make` computes it with the run's newest model and keeps it in DIR/report/map.json;
`read` and `charts` bring it into the page. t-SNE is scikit-learn's (the extra
`report`). Near points are alike to the model; the distance between groups of points,
their size and the axes mean nothing.
"""

import hashlib
import importlib.util
import json
import pathlib
from typing import TYPE_CHECKING, Any

from stepjax.lm import files
from stepjax.report import plots
from stepjax.report.charts import Chart

if TYPE_CHECKING:
    import numpy as np

    from stepjax.run.run import Run

NAME = "map.json"
_LEAST = 5  # texts of a map
_TEXTS = {
    "prompts": "Problems, comparisons to judge, and problems with the steps so far.",
    "responses": "Solutions, judgments, and the chosen steps of preference pairs.",
}


def is_possible() -> bool:
    """Whether scikit-learn is installed."""
    return importlib.util.find_spec("sklearn") is not None


def note(workdir: pathlib.Path) -> str:
    """Returns why there is no map, in a sentence; "" if there is one."""
    if (workdir / "report" / NAME).exists():
        return ""
    if not is_possible():
        return (
            "There is no map of the data, because scikit-learn is not installed; the "
            "extra `report` brings it (pip install -e '.[report]')."
        )
    return "`stepjax report --map` adds a map of the data, made by the run's own model."


def make(run: "Run", number: int) -> None:
    """Computes the map with M`number` and writes it, unless it is there already.

    Args:
      run: the run.
      number: of the model; those of its pairs that are there already are on the map.

    Raises:
      ValueError: when there are too few texts for a map.
    """
    from stepjax.report import embeddings

    path = run.dir.path / "report" / NAME
    rows = embeddings.texts(run, number)
    if len(rows) < _LEAST:
        raise ValueError(
            f"{run.dir.path}: {len(rows)} rows of data fit into train.row_length="
            f"{run.settings.train.row_length}; expected at least {_LEAST} for a map."
        )
    text = json.dumps(rows)
    inputs = {"rows": hashlib.sha256(text.encode()).hexdigest()}
    inputs |= run.dir.model_digest(number) if number else {}
    if path.exists() and files.read_json(path).get("inputs") == inputs:
        run.tell(f"data map: done already by M{number}")
        return
    found = embeddings.vectors(run, run.params(number), rows)
    kinds = [row.kind for row in rows]
    made: dict[str, Any] = {"model": f"M{number}", "inputs": inputs}
    for name, vectors in zip(_TEXTS, found, strict=True):
        with run.monitor.during(f"data map: t-SNE of {len(rows)} {name}"):
            places = tsne(vectors, run.settings.seed)
        made[name] = {kind: [] for kind in kinds}
        for kind, place in zip(kinds, places, strict=True):
            made[name][kind].append([round(float(x), 2) for x in place])
    files.make_folder(path.parent)
    files.write_json(path, made)


def tsne(vectors: "np.ndarray", seed: int) -> "np.ndarray":
    """Returns places in the plane, [N, 2].

    Args:
      vectors: [N, E], at least five.
      seed: of scikit-learn; the same vectors then have the same places.
    """
    import threadpoolctl  # comes with scikit-learn
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    made = TSNE(init="pca", perplexity=perplexity, random_state=seed)
    # Its threads wait busily for each other: on a machine with other work, two threads
    # took minutes for what one does in seconds.
    with threadpoolctl.threadpool_limits(1):
        return made.fit_transform(vectors)


def charts(workdir: pathlib.Path) -> list[Chart]:
    """Returns the map of prompts and that of responses; [] where there is none.

    Raises:
      ValueError: for a damaged file.
    """
    path = workdir / "report" / NAME
    if not path.exists():
        return []
    found = files.read_json(path)
    model, drawn = found["model"], []
    for name, text in _TEXTS.items():
        title = f"Map of the {name}, by {model}"
        drawn.append(Chart(title, plots.points(found[name], note=title), text))
    return drawn
