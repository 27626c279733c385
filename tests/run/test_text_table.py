"""Tables fit the terminal and lose no figure."""

import pytest
from rich.cells import cell_len

from stepjax.run.monitor import Monitor
from stepjax.run.text_table import text_table

ROWS = [
    {
        "model": f"M{n}",
        "greedy % [95 %]": f"{n}0.6 [{n}8.2, 56.9]",
        "search %": f"{n}1.1",
        "unseen %": f"{n}2.2",
        "judge %": f"{n}3.3",
        "sampled %": f"{n}4.4",
        "tie %": f"{n}5.5",
        "flip %": f"{n}6.6",
        "unparsed %": f"{n}7.7",
        "steps": f"{n}.88",
        "tokens/step": f"{n}9.9",
    }
    for n in range(5)
]


def test_a_table_that_fits_is_one(tmp_path, capsys):
    rows = [dict(list(row.items())[:3]) for row in ROWS[:2]]
    expected = """\
a title
┏━━━━━━━┳━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━┓
┃ model ┃   greedy % [95 %] ┃ search % ┃
┡━━━━━━━╇━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━┩
│ M0    │ 00.6 [08.2, 56.9] │     01.1 │
│ M1    │ 10.6 [18.2, 56.9] │     11.1 │
└───────┴───────────────────┴──────────┘
"""
    assert text_table(rows, "a title", 40) == expected
    assert Monitor(tmp_path).table("a title", rows) == expected
    assert capsys.readouterr().out == f"{expected}\n"
    text = text_table(ROWS, "a title", 200)
    assert "a title" in text and "10.6 [18.2, 56.9]" in text
    assert len([line for line in text.splitlines() if "│ M" in line]) == 5
    assert all(f" {head} " in text for head in ROWS[0])


def test_heads_are_broken_before_columns_go_to_another_table():
    rows = [dict(list(row.items())[:3]) for row in ROWS[:1]]
    assert (
        text_table(rows, None, 39)
        == """\
┏━━━━━━━┳━━━━━━━━━━━━━━━━━━━┳━━━━━━━━┓
┃       ┃                   ┃ search ┃
┃ model ┃   greedy % [95 %] ┃      % ┃
┡━━━━━━━╇━━━━━━━━━━━━━━━━━━━╇━━━━━━━━┩
│ M0    │ 00.6 [08.2, 56.9] │   01.1 │
└───────┴───────────────────┴────────┘
"""
    )
    assert (
        text_table(rows, "a title", 30)
        == """\
a title
┏━━━━━━━┳━━━━━━━━━━━━━━━━━━━┓
┃ model ┃   greedy % [95 %] ┃
┡━━━━━━━╇━━━━━━━━━━━━━━━━━━━┩
│ M0    │ 00.6 [08.2, 56.9] │
└───────┴───────────────────┘
a title
(continued)
┏━━━━━━━┳━━━━━━━━┓
┃       ┃ search ┃
┃ model ┃      % ┃
┡━━━━━━━╇━━━━━━━━┩
│ M0    │   01.1 │
└───────┴────────┘
"""
    )


@pytest.mark.parametrize("width", [40, 60, 80, 120, 127, 200])
def test_a_wide_table_loses_no_figure(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = text_table(ROWS, "a title")
    assert max(map(cell_len, text.splitlines())) <= width and "…" not in text
    found = {f"M{n}": [] for n in range(5)}
    for line in text.splitlines():
        if line.startswith("│"):
            model, *values = [cell.strip() for cell in line.strip("│").split("│")]
            found[model] += values
    assert found == {row["model"]: list(row.values())[1:] for row in ROWS}
    assert text.count("┏") == {40: 4, 60: 3, 80: 2, 120: 1, 127: 1, 200: 1}[width]
