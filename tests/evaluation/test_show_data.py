"""``stepjax show --data``: rows of training as tokens and mask."""

import dataclasses
import re

import pytest
from runs import command, contents, copy_run

from stepjax import records
from stepjax.evaluation import show_data

pytestmark = pytest.mark.usefixtures("quick_runs")


def shown(folder, source, **options):
    run = copy_run(folder)
    text = show_data.show_data(folder, run.settings, source=source, **options)
    return run, text


def shown_with(folder, source, part, **changes):
    """Returns the first row as text, with some settings of a part changed."""
    settings = copy_run(folder).settings
    own = dataclasses.replace(getattr(settings, part), **changes)
    settings = dataclasses.replace(settings, **{part: own})
    return show_data.show_data(folder, settings, source=source, count=1)


def parts(text):
    """Returns (tokens, whether they are in the loss) of each part."""
    found = re.findall(r"  (?:\w+: )?(\d+) tokens, (.*):\n", text)
    return [(int(count), "not in" not in loss) for count, loss in found]


@pytest.mark.parametrize("source", ["ift", "eft"])
def test_a_row_is_a_prompt_that_is_not_in_the_loss_and_a_response_that_is(
    source, tmp_path
):
    run, text = shown(tmp_path / "run", source, count=1)
    head, name, *_ = text.splitlines()[0], *text.splitlines()[2:]
    assert head.startswith("1 of ") and head.endswith(f"data/{source}.jsonl")
    (prompt, *inside), tree = parts(text), run.sft_examples.trees[source][0]
    assert not prompt[1] and all(scored for _, scored in inside)
    assert sum(count for count, _ in inside) == len(tree.scored)
    total = sum(count for count, _ in [prompt, *inside])
    assert name.endswith(f": {total} tokens") and total == len(tree.tokens)
    ids = [int(i) for i in re.findall(r"(?:^|\s)(\d+):'", text)]
    assert ids == tree.tokens.tolist()


def test_a_verdict_has_its_weight(tmp_path):
    text = shown_with(tmp_path / "run", "eft", "sft", verdict_weight=3.0)
    assert "weight 1 in the loss:" in text
    assert "[[" in text.split("weight 3 in the loss:")[1]


def test_a_preference_is_its_context_and_two_steps(tmp_path):
    folder = tmp_path / "run"
    _, text = shown(folder, "pairs", number=1, count=1)
    _, row = next(iter(records.read_objects(folder / "M1/pairs.jsonl")))
    sizes = [len(row[f"{name}_ids"]) for name in ("context", "chosen", "rejected")]
    assert [count for count, _ in parts(text)] == sizes
    assert [scored for _, scored in parts(text)] == [False, True, True]
    # The newest model that has preferences, when none is named; a problem by its id.
    _, newest = shown(tmp_path / "other", "pairs", count=1)
    assert "M2/pairs.jsonl" in newest
    _, own = shown(tmp_path / "third", "pairs", number=1, problem=row["problem_id"])
    assert f"{row['id']}: " in own and text.splitlines()[2] in own


def test_a_row_that_is_too_long_is_marked(tmp_path):
    text = shown_with(tmp_path / "run", "ift", "train", row_length=20)
    assert "; LEFT OUT, longer than train.row_length=20" in text


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="--problem=none: .* has no row of this id"):
        shown(tmp_path / "one", "ift", problem="none")
    with pytest.raises(
        ValueError, match=r"M7/pairs.jsonl is not there; .*another --model"
    ):
        shown(tmp_path / "two", "pairs", number=7)
    folder = tmp_path / "empty"
    run = copy_run(folder)
    (folder / "M1/pairs.jsonl").write_text("")
    with pytest.raises(ValueError, match="M1/pairs.jsonl has no rows; .*preference"):
        show_data.show_data(folder, run.settings, source="pairs", number=1)
    with pytest.raises(ValueError, match="--data=x; expected one of ift, eft, pairs"):
        shown(tmp_path / "three", "x")


def test_the_command_changes_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    copy_run(folder)
    before = contents(folder)
    for source in show_data.SOURCES:
        arguments = f"--data={source}", "--random", "--n=2"
        assert command("show", f"--workdir={folder}", *arguments) == 0
        assert capsys.readouterr().out.startswith("2 of ")
    assert command("show", f"--workdir={folder}", "--data=eft", "--wrong") == 2
    assert "--data=eft and --wrong are given together" in capsys.readouterr().err
    assert command("show", f"--workdir={folder}", "--data=ift", "--model=M1") == 2
    assert "--data=ift and --model=M1 are given together" in capsys.readouterr().err
    assert contents(folder) == before
