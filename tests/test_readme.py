"""What the README and the pages of docs/ show is run, or compared with what is true."""

import json
import math
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

import stepjax
from stepjax import config, forest, main, own_functions, pair_trees, prompts, records
from stepjax.cli import help
from stepjax.initial_data import command as init_data
from stepjax.initial_data.formats import sources
from stepjax.run import data, kind
from stepjax.settings import from_config
from stepjax.worlds import arithmetic, word_problems_data

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"))
}
README, DATA = PAGES["README.md"], PAGES["docs/data.md"]
INITIAL = PAGES["docs/initial_data.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language=""):
    """The blocks of a page in this language; "" for commands, rows and drawings."""
    return [text for name, text in FENCE.findall(page) if name == language]


def run(code, **names):
    exec(compile(code, "an example of a page", "exec"), names)
    return names


def test_the_loss_example_of_the_readme_is_the_formula():
    (code,) = blocks(README, "python")
    table = np.random.default_rng(0).normal(size=(7, 5))  # a token's next one
    contexts = ((1, 2, 3), (1, 4))
    steps = {"chosen": ((4, 0), (3, 2)), "rejected": ((2,), (3, 3, 4))}
    reference = {"chosen": (-5.0, -6.0), "rejected": (-1.5, -3.0)}

    def logp(context, step):
        path = (*context[-1:], *step)
        return sum(
            table[a][b] - math.log(sum(math.exp(x) for x in table[a]))
            for a, b in zip(path, path[1:], strict=False)
        )

    batch, rewards = {}, {}
    for side, both in steps.items():
        tokens, mask = np.zeros((2, 2, 6), np.int32)
        for row, (context, step) in enumerate(zip(contexts, both, strict=True)):
            end = len(context) + len(step)
            tokens[row, :end] = context + step
            mask[row, len(context) : end] = 1
        batch |= {f"{side}_tokens": tokens, f"{side}_mask": mask}
        batch[f"reference_{side}_logps"] = jnp.array(reference[side])
        rewards[side] = [
            0.1 * (logp(context, step) - old)
            for context, step, old in zip(contexts, both, reference[side], strict=True)
        ]
    margins = np.subtract(rewards["chosen"], rewards["rejected"])
    expected = sum(math.log(1 + math.exp(-margin)) for margin in margins) / 2
    assert np.abs(margins).min() > 0.01

    loss = run(code, apply=lambda params, tokens: params[tokens])["loss"]
    value, grads = jax.value_and_grad(loss)(jnp.array(table, jnp.float32), batch)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    # 3 and 4 come before tokens of a step; 1 and 2 before tokens of a context only.
    largest = np.abs(grads).max(1)
    assert (largest[[3, 4]] > 1e-3).all() and not largest[[0, 1, 2, 5, 6]].any()


def test_the_step_that_the_readme_shows_is_right_and_its_pair_is_in_the_data_page():
    (shown,) = (block for block in blocks(README) if "judgment" in block)
    problem = re.search(r"^problem +(\S+)", shown, re.MULTILINE)[1]
    before = re.search(r"^so far +(\S.*)$", shown, re.MULTILINE)[1]
    pair = re.search(r'^pair +chosen "(.*)", rejected "(.*)"$', shown, re.MULTILINE)
    chosen, rejected = pair.groups()
    assert arithmetic.is_right(problem, [], before)
    assert arithmetic.is_right(problem, [before], chosen)
    assert not arithmetic.is_right(problem, [before], rejected)
    (row,) = (block for block in blocks(DATA) if "verdicts" in block)
    row = json.loads(row.replace(", ...", ""))
    assert row["problem"] == problem
    assert row["candidates"][row["best"]] == chosen
    assert row["candidates"][row["worst"]] == rejected
    assert row["scores"][row["best"]] == max(row["scores"])
    for first, second, winner, text in row["verdicts"]:
        assert text in shown and text.endswith(f"[[{winner}]]")
        assert row["best"] == (first if winner == "A" else second)


def test_the_rows_of_the_data_page_can_be_read(tmp_path):
    (shown,) = (block for block in blocks(DATA) if block.startswith("ift.jsonl "))
    kinds = {
        "ift": records.Solution,
        "eft": records.Comparison,
        "questions": records.Question,
        "test": records.Problem,
    }
    parts = re.split(r"^(\w+)\.jsonl +", shown, flags=re.MULTILINE)[1:]
    assert parts[::2] == list(kinds)
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(" ".join(text.split()) + "\n", "utf-8")
        (row,) = records.read_jsonl(path, kinds[name])
        if name == "ift":
            prompts.check_steps(prompts.Templates(), row.steps)


def test_the_records_of_the_initial_data_page_can_be_read(tmp_path):
    (shown,) = (block for block in blocks(INITIAL) if block.startswith("question "))
    parts = re.split(r"^(\w+) +", shown, flags=re.MULTILINE)[1:]
    assert parts[::2] == list(sources.TYPES)
    for to, text in zip(parts[::2], parts[1::2], strict=True):
        (tmp_path / "x.jsonl").write_text(" ".join(text.split()) + "\n", "utf-8")
        read = sources.read(tmp_path / "x.jsonl", "jsonl", to, prompts.Templates())
        assert [type(row) for row in read] == [sources.TYPES[to]]


def test_the_formats_of_the_initial_data_page():
    form = r"^\| (`[\w`, ]+`) \| [^|]+ \| ([^`|]+) \|$"
    rows = re.findall(form, INITIAL.split("## Making IFT")[0], re.MULTILINE)
    said = {name: to for names, to in rows for name in re.findall(r"\w+", names)}
    made = {form: ", ".join(makes) for form, makes in sources.FORMATS.items()}
    made |= {"jsonl": "all below", init_data.PAIRS: "preference"}
    assert said == made


def test_the_config_and_the_prompts_of_the_data_page_are_valid():
    first, second, *_ = blocks(DATA, "python")
    c = run(first)["get_config"]()
    assert config.to_dict(c) != config.to_dict(config.default())
    assert c.data.questions == (400,) and len(c.data.questions) == c.iterations
    run(second, c=c)
    prompts.check_templates(prompts.Templates(c.prompts.solve, c.prompts.judge))


def test_the_formats_of_the_data_page_are_all_there_are():
    rows = re.findall(r"^\| `(\w+\.\w+_format)` \| (.+) \|$", DATA, re.MULTILINE)
    readers = {f"data.{name}_format": made for name, made in data.READERS.items()}
    readers["prm.labels_format"] = sources.readers("labels")
    readers["data.eft_format"] = kind.choose(from_config(config.default())).readers
    said = {name: set(re.findall(r"`(\w+)`", text)) for name, text in rows}
    assert said == {name: set(made) for name, made in readers.items()}


def test_the_table_and_the_error_of_the_data_page_are_true(tmp_path):
    (table,) = (block for block in blocks(DATA) if block.startswith("question,"))
    (tmp_path / "questions.csv").write_text(table, "utf-8")
    texts = prompts.Templates()
    (row,) = sources.read(tmp_path / "questions.csv", "jsonl", "problem", texts)
    assert row.answer == "37"
    (said,) = (block for block in blocks(DATA) if block.startswith("stepjax: "))
    place, _, reason = said.strip().removeprefix("stepjax: my_data/").partition(": ")
    rows = [{"problem": "p", "steps": ["\\boxed{7}"]}] * 2
    rows.append({"id": "p3", "problem": "p", "steps": ["so", "Step 5: so 7"]})
    records.write_jsonl(tmp_path / "ift.jsonl", rows)
    with pytest.raises(ValueError) as caught:
        sources.read(tmp_path / "ift.jsonl", "jsonl", "solution", texts)
    assert str(caught.value) == f"{tmp_path}/{place}: {reason}"


def test_the_judge_and_the_proposer_of_the_data_page():
    judging, proposing, *_ = blocks(DATA, "python")[2:]
    score = run(judging)["score"]
    steps = ("so 14 + 9 = 23, 23 * 3 = 69", "14 + 9 = 24, 24 * 3 = 72", "9 - 2 = 6")
    asked = own_functions.Choice("q", "p", ("Step 1: ",), (*steps, "no idea"))
    assert score([asked]) == [[1.0, 0.5, 0.0, 0.5]]
    place = own_functions.Place("q", "p", (), 3, 17)
    ((*texts,),) = run(proposing)["propose"]([place])
    assert texts == ["3 + 0 = 0", "3 + 1 = 1", "3 + 2 = 2"]


def test_the_settings_of_the_initial_data_page_are_valid():
    c = config.default()
    run(blocks(INITIAL, "python")[0], c=c)
    settings = from_config(c)
    assert settings.data.make_eft and settings.prm.heldout_count == 100
    readers = sources.FORMATS[c.prm.labels_format]
    assert "labels" in readers and c.data.ift_format in data.READERS["ift"]


def test_the_tfds_example_of_the_initial_data_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.chdir(tmp_path)
    names = run(blocks(INITIAL, "python")[1])
    assert len(names["batch"]) == 8 and len(names["stream"]) == 38
    assert set(names["batch"]) < set(names["rows"])


def test_the_defaults_of_the_data_page_are_those_of_the_config():
    c = config.default()
    table = DATA.split("## The files")[0]
    rows = re.findall(r"^\| `(\w+\.\w+)` \| ([^|]+) \|", table, re.MULTILINE)
    assert len(rows) == 7
    for name, value in rows:
        if name == "dpo.optimizer":
            learning_rate, schedule = value.split(", ")
            assert c.dpo.optimizer.learning_rate == float(learning_rate)
            assert c.dpo.optimizer.schedule == schedule
        else:
            group, key = name.split(".")
            assert c[group][key] == json.loads(value.strip("`"))


def test_the_row_of_the_design_page_is_what_a_search_becomes():
    page = PAGES["docs/design.md"]
    names = re.search(r"^ token +(.*)$", page, re.MULTILINE)[1].split()
    ids = {name: number for number, name in enumerate(names, 50)}

    def step(*tokens):
        return tuple(ids[token] for token in tokens)

    problem, best = step("x1", "x2"), step("a1", "a2")
    pairs = [
        forest.IdPair(problem, best, step("b")),
        forest.IdPair(problem + best, step("c"), step("d1", "d2")),
    ]
    tree = pair_trees.trajectory_tree(pairs)
    assert tree.tokens.tolist() == list(ids.values())
    for field in ("parent", "position", "subtree_end"):
        row = re.search(rf"^ {field} +((?:-?\d+ +)+)", page, re.MULTILINE)[1]
        assert getattr(tree, field).tolist() == list(map(int, row.split()))
    for i, name in enumerate(names):
        row = re.search(rf"^ +{name} ((?: +[■.])+)", page, re.MULTILINE)[1].split()
        sees = [j <= i < tree.subtree_end[j] for j in range(len(names))]
        assert [mark == "■" for mark in row] == sees


def test_the_script_of_the_real_model_page_writes_what_a_run_reads(tmp_path):
    rows = (
        ("number0 books on number1 shelves , how many ?", "56.0 9.0", "*", "504.0"),
        ("He had $ number0 and lost $ number1 .", "10.50 3.00", "-", "7.5"),
        ("HE HAD $ number0 and lost $ number1 .", "10.50 3.00", "-", "7.5"),  # repeated
        ("number0 pens and number1 pens .", "4.0 5.0", "+", "10.0"),  # it is 9
    )
    table = "".join(
        f'"{text}",{numbers},{symbol} number0 number1,{answer}\n'
        for text, numbers, symbol, answer in rows
    )
    train = tmp_path / "SVAMP" / "data" / "mawps-asdiv-a_svamp" / "train.csv"
    train.parent.mkdir(parents=True)
    train.write_text(f"Question,Numbers,Equation,Answer\n{table}", "utf-8")
    tests = [
        {
            "ID": "chal-1",
            "Body": "It costs $ 4",
            "Question": "How much?",
            "Answer": 4.0,
        },
        {"ID": "chal-2", "Body": "Why?", "Question": "How many?", "Answer": 2.5},
    ]
    (tmp_path / "SVAMP" / "SVAMP.json").write_text(json.dumps(tests), "utf-8")

    script = runpy.run_path(str(ROOT / "docs" / "word_problems.py"))
    script["main"](str(tmp_path / "SVAMP"), str(tmp_path / "data"))

    made = tmp_path / "data" / "word_problems"
    equations = word_problems_data.read_equations(made / "mawps_asdiv_train.jsonl")
    assert [(row.problem, row.answer, row.equation) for row in equations] == [
        ("56 books on 9 shelves, how many?", "504", "* 56 9"),
        ("He had $10.5 and lost $3.", "7.5", "- 10.5 3"),
    ]
    tested = data.READERS["test"]["word_problems"](
        made / "svamp_test.jsonl", prompts.Templates()
    )
    assert [(row.id, row.problem, row.answer) for row in tested] == [
        ("chal-1", "It costs $4. How much?", "4"),
        ("chal-2", "Why? How many?", "2.5"),
    ]


def test_every_command_of_the_pages_exists():
    lines = [
        line
        for page in PAGES.values()
        for block in blocks(page)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("stepjax ")
    ]
    assert len(lines) > 8
    known = {*help.OPTIONS, *flags.FLAGS}
    for line in lines:
        command, *words = line.split()[1:]
        assert command in main.COMMANDS
        for flag in re.findall(r"(?<= --)[\w.-]+", " ".join(["", *words])):
            name, *path = flag.split(".")
            assert name in known
            value = config.default()
            for part in path:
                value = value[part]  # raises for a setting that does not exist


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        file, _, anchor = target.partition("#")
        if file.startswith("https:"):
            continue
        path = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        assert path.exists()
        if anchor:
            titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            assert anchor in {
                re.sub(r"[^\w-]", "", t.lower().replace(" ", "-")) for t in titles
            }


def test_every_file_of_the_package_is_on_its_map():
    package = Path(stepjax.__file__).parent
    files = [path for path in package.rglob("*.py") if path.name != "__init__.py"]
    assert len(files) > 40
    words = set(re.findall(r"\w+(?:\.py|/)", stepjax.__doc__))
    for path in files:
        assert path.name in words
        assert path.parent == package or f"{path.parent.name}/" in words
