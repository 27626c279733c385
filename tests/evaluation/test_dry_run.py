"""``stepjax run --dry-run``: what it prints of a small run; it changes nothing."""

import re

import pytest
from runs import contents, copy_run

from stepjax import forest
from stepjax.evaluation import dry_run, show_data

pytestmark = pytest.mark.usefixtures("quick_runs")


def test_a_dry_run_shows_sizes_rows_a_step_and_a_judgment(tmp_path):
    folder = tmp_path / "run"
    run = copy_run(folder, "M2", "M3", "eval/M[23]*")
    before, settings = contents(folder), run.settings
    text = dry_run.dry_run(run)
    after = contents(folder)
    assert after.pop("log.txt") and before.pop("log.txt")  # how busy the search was
    assert after == before and run.settings == settings
    assert "  model: 9,104 parameters; training holds about 145.7 kB" in text
    assert re.search(r"  ift rows: 96, of \d+ to \d+ tokens, \d+ on average\n", text)
    assert "  0 rows are longer than train.row_length=88 and left out\n" in text
    assert "  sft phase first: 40 updates of 16 rows\n" in text
    assert "  questions_2: 24 problems, prompts of " in text
    # The mask: the prompt of a solution is not in the loss, its steps are.
    rows = text[text.index("the first ift row") : text.index("the first eft row")]
    counts = re.findall(
        r"  (\d+) tokens, (not in the loss|weight 1 in the loss):", rows
    )
    total = int(re.match(r"the first ift row, (\d+) tokens", rows)[1])
    assert [mask for _, mask in counts] == ["not in the loss", "weight 1 in the loss"]
    assert sum(int(count) for count, _ in counts) == total
    assert ":'Step 1: '" in rows.split("weight 1")[1]
    # The newest model samples, and judges what it sampled.
    assert "one step that M1 samples and judges\n" in text
    assert "1 expansions, " in text and "step 1, attempt 1" in text
    assert re.search(
        r"one held-out judgment of M1\narith-heldout-\S+: (right|wrong)", text
    )
    assert "    judgment: " in text


def test_a_long_part_of_a_row_is_cut_in_the_middle(codec):
    ids = codec.line("Step 1: 5*3+1=6\n") * 20
    tree = forest.path_tree(ids, [0.0] * 3 + [3.0] + [0.5] * (len(ids) - 4))
    lines = list(show_data.of_tree(codec, tree))
    assert lines[0] == "  3 tokens, not in the loss:"
    assert "  1 token, weight 3 in the loss:" in lines
    assert f"  {len(ids) - 4} tokens, weight 0.5 in the loss:" in lines
    assert f"[{len(ids) - 4 - 48} more]" in " ".join(lines)
