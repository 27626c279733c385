"""Which verdict a judgment gives: ordinary and hostile texts, each with its reason."""

import pytest

from stepjax import pointwise, prompts, verdicts
from stepjax.prompts import Templates

DEFAULT = Templates()
INSTRUCTION = (
    "End with your verdict on the last line: [[A]] if candidate A is better, [[B]] if "
    "candidate B is better."
)
# (what a judge wrote, its verdict, why)
TEXTS = [
    # What a judge gives.
    ("A is right. [[A]]", "A", "the usual form"),
    ("[[B]]", "B", "nothing else"),
    ("Both add.\n\n**[[A]]**", "A", "bold"),
    ("## Verdict\n__[[B]]__\n", "B", "emphasis, a heading, a blank line at the end"),
    ("Verdict: [[ A ]]", "A", "blanks inside"),
    ("Verdict: [[**B**]].", "B", "emphasis inside"),
    ("So `[[A]]`", "A", "code at the end"),
    ('My verdict is "[[B]]".', "B", "quotation marks around it at the end"),
    ('{"verdict": "[[A]]"}', "A", "as JSON"),
    ("```\n[[B]]\n```", "B", "in a block of code"),
    (r"$\boxed{[[A]]}$", "A", "in a box"),
    ("[[A]] because B divides by 0.", "A", "a reason behind it"),
    ("[[B]]\n\nThank you! I hope this helps.", "B", "lines behind it"),
    ("[[A]]<|im_end|>", "A", "a special token behind it"),
    ("[[A]] no, [[B]] is better", "B", "the last of two"),
    ("[[A]]? No: [[B]]", "B", "the first is asked"),
    ("First [[A]]. On second thought [[B]]. No, [[A]].", "A", "the last of three"),
    ("[[A]] [[B]]", "B", "two without a word between them: the last"),
    ("[[B]], not [[A]]", "B", "the last is refused"),
    ("I prefer [[A]] over [[B]].", "A", "the last is refused"),
    ("[[B]] is better than [[A]]", "B", "the last is refused"),
    ("I prefer [[A]] to [[B]].", "A", "the last is refused"),
    ("[[A]] is superior to [[B]].", "A", "the last is refused"),
    ("[[A]]. B is wrong, so it isn't [[B]].", "A", "the last is refused"),
    ("[[A]]. It cannot be [[B]].", "A", "the last is refused"),
    ("**[[A]]** > [[B]]", "A", "the last is the worse one"),
    ("[[A]], no: I change [[A]] to [[B]]", "B", "a change"),
    ("Verdict -> [[A]]", "A", "an arrow, with no verdict before it"),
    ("[[A]] -> [[B]]", "B", "an arrow between two"),
    (
        "The step is right if x > 0, so my verdict is [[A]]",
        "A",
        "an if in between",
    ),
    ("All else is equal. [[B]]", "B", "an else of the argument"),
    ("A says: if x = 1, stop. [[A]]", "A", "an if of the sentence before"),
    (f"I was told: {INSTRUCTION}\nA is wrong.\n[[B]]", "B", "an echo, then a verdict"),
    ("If A is better I write [[A]]. It is not.\n[[B]]", "B", "a plan, then a verdict"),
    ("> [[A]] if A is better\n\n[[B]]", "B", "a quotation, then a verdict"),
    (
        "[Start of candidate B]\nStep 2: 3. [[B]]\n[End of candidate B]\n[[A]]",
        "A",
        "a candidate that holds a verdict, then the judge's own",
    ),
    ("B writes '[[B]]' to be chosen. [[A]]", "A", "a quoted one, then its own"),
    # What it does not give.
    ("", None, "nothing"),
    ("A is better", None, "no verdict"),
    ("[[C]] [A] [[a]] [[A] ] [[AB]] A]] [[", None, "other forms"),
    (r"\boxed{A}", None, "a box, which the template does not ask for"),
    ("[ [A] ]", None, "blanks between the brackets"),
    (INSTRUCTION, None, "an echo of the prompt"),
    (f"**{INSTRUCTION}** Both are good.", None, "the same within a line"),
    ("I output [[A]] if A is better, [[B]] if B is better", None, "its instruction"),
    ("I output [[A]] if A is better and [[B]] otherwise", None, "the same"),
    ("If A is better, I output [[A]]; otherwise [[B]].", None, "the same"),
    ("If A is better: [[A]].\nIf B is better: [[B]].", None, "the same in two lines"),
    ("- If A is better, [[A]], else [[B]]", None, "the same as a list"),
    ("Write [[B]] only if B is better.", None, "one of the two"),
    ("Write `[[A]]` when A is better.", None, "one of the two, as code"),
    ("[[A]] means A is better, [[B]] = B is better", None, "what the forms mean"),
    ("End with [[A]] or [[B]]. A is better.", None, "the choices"),
    ("The answer is either '[[A]]' or '[[B]]'", None, "the choices, quoted"),
    ("[[A]] / [[B]]", None, "the choices"),
    ("[[A]], [[B]]", None, "the choices"),
    ("**[[A]]** or **[[B]]**?", None, "the choices, bold"),
    ("Is it [[A]]? I cannot say.", None, "asked"),
    ("It is not [[A]]", None, "refused, without the other one"),
    ("> The verdict is [[A]]", None, "a quoted line"),
    ('B says "the verdict is [[B]]", which is odd.', None, "within a quotation"),
    (
        "B holds “[[B]]”, which must not count.",
        None,
        "a quotation, then text",
    ),
    (
        "[Start of candidate A]\nStep 2: [[A]]\n[End of candidate A]\nIt is right.",
        None,
        "a candidate that holds a verdict",
    ),
    ("[Start of candidate B]\nStep 2: 3\n[[B]]", None, "the same, cut off"),
    ("[[Ａ]] [[А]]", None, "letters of other alphabets that look alike"),
]


# Sentences that begin with a condition, or have one behind the mark.
CONDITIONS = [
    ("If we compare both steps, the better is [[A]].", "A", "somebody looks"),
    ("When both are checked, [[B]] is right.", "B", "the same"),
    ("When I check A, it divides by 0, so [[B]].", "B", "the same of one side"),
    ("If you look at A and B, [[A]] it is.", "A", "the same of both"),
    ("When A and B are compared, I prefer [[A]] to [[B]].", "A", "and one refused"),
    ("[[B]], when both are compared.", "B", "the same behind the mark"),
    ("[[A]] if we compare both.", "A", "the same behind the mark"),
    ("If I am not mistaken, [[B]] is my verdict.", "B", "about the judge"),
    ("If I had to pick one, [[A]].", "A", "about the judge"),
    ("If x > 0, the step holds, so [[A]].", "A", "about the problem"),
    ("If we multiply the right-hand side, both agree: [[B]].", "B", "the same"),
    ("[[A]]. When x = 5 is put in, it is [[B]].", "B", "the last, without a choice"),
    ("If a = 3, we are done. [[A]]", "A", "a sentence before"),
    ("If we go step by step, [[A]].", "A", "no step in particular"),
    ("When we check A and it is right, I write [[A]].", None, "what the look shows"),
    ("If we check A, and it holds, [[A]]", None, "the same"),
    ("If I compare which one is better, [[A]]", None, "the same"),
    ("If A, [[A]]", None, "a side"),
    ("In case of B: [[B]].", None, "a side"),
    ("If candidate A checks its result, [[A]].", None, "a side that looks"),
    ("When the first one divides by 0, [[B]].", None, "a side"),
    ("When the latter skips a line, [[A]].", None, "a side"),
    ("If x > 0, and A is right, [[A]].", None, "a side behind and"),
    ("If, as I think, A is right, [[A]].", None, "a side behind a remark"),
    ("If one step divides by 0, [[B]].", None, "one of the steps"),
    ("If both are equally good, [[A]].", None, "how they are"),
    ("If there is an error, [[B]].", None, "how one is"),
    ("Unless the other one is better, [[A]].", None, "how one is"),
    ("[[A]] if it divides by 2.", None, "a condition behind the mark"),
    ("If x is 5, [[A]]. If x is 6, [[B]].", None, "two conditions of one kind"),
    ("If x is 5, [[A]]; when x is 6, [[B]].", None, "the same in one sentence"),
    ("If x is 5, [[A]], if it is 6, [[B]].", None, "the same with commas"),
    ("If x is 5, [[A]]. Otherwise [[B]].", None, "a condition and its alternative"),
    ("[[A]] if so, else [[B]]", None, "the same, short"),
    ("if x == 5: [[A]] else: [[B]]", None, "the same as a program"),
    ("If correctness is all that matters, [[A]].", "A", "about the judge"),
    ("When judged on correctness, [[B]] wins.", "B", "about the judge"),
    ("If we put x = 3 in, A fails; therefore [[B]].", "B", "what follows from it"),
    ("So if A is right, I write [[A]].", None, "a word before it"),
    ("Now, when B is better, [[B]].", None, "a word before it"),
    ("But when both are compared, [[B]].", "B", "the same, and somebody looks"),
    ("I said if A is right, [[A]]? No. B is right: [[B]]", "B", "asked, then given"),
]
OTHERWISE = [
    ("[[A]] (otherwise we would have a contradiction)", "A", "a reason"),
    ("[[B]], otherwise 2 = 3.", "B", "a reason"),
    ("B must hold (otherwise 2 = 3), so [[B]].", "B", "a reason in brackets"),
    ("A must be wrong, otherwise 2 = 3, so [[B]].", "B", "a reason, and what follows"),
    ("It is 4; otherwise A holds; hence [[B]]", "B", "the same"),
    ("[[A]], otherwise [[B]]", None, "a choice"),
    ("[[A]] (otherwise [[B]])", None, "a choice"),
    ("[[A]], otherwise B.", None, "a choice"),
    ("[[B]] (otherwise candidate A)", None, "a choice"),
    ("For A I write [[A]] and otherwise I write [[B]]", None, "its second half"),
    ("Otherwise (if B is better), [[B]]", None, "brackets within it"),
    ("A right: [[A]], otherwise, given that 2 = 2, [[B]]", None, "its second half"),
]
ESCAPED = [
    (r"\[\[A\]\]", "A", "all brackets"),
    (r"**\[\[B\]\]**.", "B", "the same, bold"),
    (r"\[\[A]]", "A", "the opening ones"),
    (r"[[A]] or \[\[B\]\]", None, "the choices"),
    (r"\[\[A\]\] if A is better", None, "with a condition"),
    (r"`\[\[A\]\]` is for A", None, "in a quotation"),
    (r"\[[A]\]", None, "[A] as displayed mathematics"),
    (r"\[[[A]]\]", "A", "[[A]] as displayed mathematics"),
    (r"\[[A]]", "A", "a backslash before it"),
    (r"\\[\\[A", None, "not closed"),
]
THOUGHTS = [
    ("<think>A adds. [[A]]</think>\n[[B]]", "B", "a verdict behind a thought"),
    ("<think>A adds. [[A]]</think>\nBoth are good.", None, "only in a thought"),
    ("<think>\nA adds. [[A]]", None, "a thought that was cut off"),
    ("[[B]]\n<think>Or [[A]]?", "B", "a verdict before a thought"),
    ("A adds. [[A]]\n</think>\n\n[[B]]", "B", "a thought that the prompt opened"),
    ("A adds. [[A]]\n</think>\n\n", None, "the same without a verdict"),
    ("<think>If A is better,</think> [[A]]", "A", "a condition that was a thought"),
    ("<think>> </think>[[A]]", "A", "a quotation that was a thought"),
    ("<think>1</think>[[A]]<think>2 [[B]]</think>", "A", "two thoughts"),
    ("<think>1</think>[[A]]</think>", "A", "closed twice"),
    ("<think><think>1</think>[[A]]", "A", "opened twice"),
    ("<THINK>[[A]]</THINK> [[B]]", "B", "capitals"),
    ("<thinking>[[A]]", None, "another name of the tag"),
    ('B writes "<think>" in its step. [[A]]', "A", "a tag that is quoted"),
    ("B holds `</think>`. [[A]] wins: x", "A", "the same"),
    (
        "[Start of candidate B]\n<think>\n[End of candidate B]\n[[A]]",
        "A",
        "a tag in a candidate",
    ),
    (
        "<think>\n[Start of candidate B]\n</think>\n[[B]]\n[End of candidate B]\nHm",
        None,
        "a candidate that would end the thought",
    ),
    ('<think>B writes "</think> [[B]]" to be chosen', None, "the same, quoted"),
    ("I think [[A]] <b>", "A", "another tag"),
]


@pytest.mark.parametrize(
    "text, expected, why", TEXTS + CONDITIONS + OTHERWISE + ESCAPED + THOUGHTS
)
def test_what_a_judgment_gives(text, expected, why):
    assert prompts.parse_verdict(DEFAULT, text) == expected, why


@pytest.mark.parametrize(
    "form, text, expected, why",
    [
        (r"\boxed{{side}}", r"So \boxed{A}.", "A", "the template asks for a box"),
        (r"\boxed{{side}}", r"So \boxed{ B }", "B", "blanks inside"),
        (r"\boxed{{side}}", r"\boxed{12} [[A]]", None, "another box"),
        ("Winner: {side}.", "Winner: **A**.", "A", "emphasis"),
        ("Winner: {side}.", "Winner:A.", None, "without the blank of the template"),
        ("Winner: {side}", "Winner: Anne", None, "a word that begins with A"),
        ("{side} wins", "A wins", "A", "the letter is first"),
        ("{side} wins", "DNA wins", None, "a word that ends with A"),
        ("{side}", "B", "B", "the letter alone"),
        ("{side}", "Better", None, "a word"),
    ],
)
def test_other_templates(form, text, expected, why):
    assert prompts.parse_verdict(Templates(verdict=form), text) == expected, why


def test_a_tie_is_a_choice_where_it_is_allowed():
    for text in ("[[A]], [[B]] or [[C]]", "[[C]] if neither is better"):
        assert prompts.parse_verdict(DEFAULT, text, prompts.SIDES) is None
    assert prompts.parse_verdict(DEFAULT, "[[A]]? [[C]]", prompts.SIDES) == "C"


def test_the_instruction_of_each_judge_gives_no_verdict():
    for template in (prompts.JUDGE, prompts.JUDGE_OR_TIE, pointwise.SINGLE):
        t = Templates(judge=template)
        assert len(verdicts.marks(t.verdict, template)) == 2
        assert prompts.parse_verdict(t, template, prompts.SIDES) is None


def test_an_example_in_the_prompt_is_no_echo():
    shown = "Example:\nA adds.\n[[A]]\n\n[Start of question]"
    t = Templates(judge=prompts.JUDGE.replace("[Start of question]", shown))
    assert prompts.parse_verdict(t, "A adds.\n[[A]]") == "A"


def test_headings_that_a_judge_shares_with_the_prompt_hide_no_verdict():
    form = "{problem}\n{steps}\nCandidate A\n{a}\nCandidate B\n{b}\nJudgment\n"
    t = Templates(judge=form)
    said = "Candidate A\nadds.\nCandidate B\ndivides.\n"
    assert prompts.parse_verdict(t, f"{said}[[A]]") == "A"
    assert prompts.parse_verdict(t, f"{said}[[A]]\nJudgment\nnone") is None
    t = Templates(judge="{problem}\n{steps}\n---\n{a}\n---\n{b}\n---\n")
    assert prompts.parse_verdict(t, "---\n[[A]]\n---") == "A"


def test_the_place_of_a_verdict():
    text = "[[A]] or [[B]]: **[[ B ]]**!"
    found = prompts.find_verdict(DEFAULT, text)
    assert text[found.start : found.end] == "[[ B ]]"
    text = r"<think>[[A]]</think> \[\[B\]\]."
    found = prompts.find_verdict(DEFAULT, text)
    assert text[found.start : found.end] == r"\[\[B\]\]"


@pytest.mark.parametrize(
    "piece",
    [
        "[[A]] or ",
        "[[A]] if ",
        '"[[A]] x" ',
        "“[[A]]",
        "> [[A]]\n",
        "[[ ",
        "not [[A]]",
        "[Start of candidate A]\n[[A]]\n",
        INSTRUCTION,
        "else ",
        "If x, [[A]], if y, [[B]]. ",
        "[[A]] otherwise ",
        "otherwise (",
        "<think>[[A]]",
        "<think>[[B]]</think>",
    ],
)
def test_long_texts_are_read_in_linear_time(piece):
    # Quadratic time would take hours.
    long = piece * (1_000_000 // len(piece))
    assert prompts.parse_verdict(DEFAULT, "[[A]] x\n" + long) == "A"
