"""Writes the word problems of docs/real_model.md from a clone of arkilpatel/SVAMP.

    python docs/word_problems.py SVAMP data

makes data/word_problems/mawps_asdiv_train.jsonl (problems with their equations) and
svamp_test.jsonl (problems with their answers).
"""

import csv
import json
import pathlib
import re
import sys
from collections.abc import Iterator

from stepjax.initial_data.formats import word_problems
from stepjax.prompts import Templates


def plain(text: str) -> str:
    """Writes "He has $ 3.00 , or 4.50 ." as "He has $3, or 4.5."."""
    text = re.sub(r"(\d)\.0+(?!\d)|(\.\d*[1-9])0+(?!\d)", r"\1\2", text)
    return re.sub(r"(\$) (?=\d)| (?=[,.?!;:])", r"\1", text).strip()


def training_rows(clone: pathlib.Path) -> Iterator[dict[str, str]]:
    """Yields MAWPS and ASDiv, with their numbers put back into texts and equations.

    Rows whose equation does not give the answer, and repeated problems, are left out.
    """
    path = clone / "data" / "mawps-asdiv-a_svamp" / "train.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    seen = set()
    for number, row in enumerate(rows):
        values = row["Numbers"].split()

        def filled(name: str, row=row, values=values) -> str:
            parts = re.split(r"\bnumber(\d+)\b", row[name])
            parts[1::2] = [values[int(place)] for place in parts[1::2]]
            return plain("".join(parts))

        made = {"id": f"mawps-asdiv-{number}", "problem": filled("Question")}
        made |= {"answer": filled("Answer"), "equation": filled("Equation")}
        try:
            word_problems.solution(made, "", Templates())
        except ValueError:
            continue
        if made["problem"].lower() not in seen:
            yield made
        seen.add(made["problem"].lower())


def test_rows(clone: pathlib.Path) -> Iterator[dict[str, str]]:
    """Yields SVAMP."""
    for row in json.loads((clone / "SVAMP.json").read_text("utf-8")):
        body = row["Body"].strip()
        body += "" if body.endswith((".", "?", "!")) else "."
        problem, answer = plain(f"{body} {row['Question']}"), plain(str(row["Answer"]))
        yield {"id": row["ID"], "problem": problem, "answer": answer}


def main(clone: str, data: str) -> None:
    """Writes both files."""
    folder, source = pathlib.Path(data, "word_problems"), pathlib.Path(clone)
    made = {"mawps_asdiv_train": training_rows(source), "svamp_test": test_rows(source)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in made.items():
        lines = [json.dumps(row) + "\n" for row in rows]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(lines), "utf-8")
        print(f"{path}: {len(lines)} rows")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/word_problems.py CLONE_OF_SVAMP DATA_FOLDER")
    main(*sys.argv[1:])
