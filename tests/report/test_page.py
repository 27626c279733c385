"""The page in a browser: it is opened, filtered, walked by keyboard, and looked at.

Needs the Python package playwright and a Chromium. One that is installed is taken,
otherwise the one of `playwright install chromium`.
"""

import dataclasses
import shutil

import hostile_run
import pytest
from hostile_run import IMAGE, SCRIPT

from stepjax import records, trajectory
from stepjax.report import build
from stepjax.trajectory import Verdict

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed"
    )
    path = next(filter(None, map(shutil.which, NAMES)), None)
    with api.sync_playwright() as playwright:
        try:
            # Chromium's sandbox does not start for root, as in a container.
            started = playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox"]
            )
        except api.Error as error:
            pytest.skip(f"no browser starts: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = hostile_run.make(tmp_path_factory.mktemp("page") / "run", extra=200)
    return build.write(folder, hostile_run.is_right).path


@pytest.fixture
def opened(browser, path, request):
    """The opened page; no console message and no request but that for the file."""
    width, height = SIZES[getattr(request, "param", "wide")]
    page = browser.new_page(viewport={"width": width, "height": height})
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]")
    yield page
    assert messages == [] and requests == [path.as_uri()]
    assert page.evaluate("window.broken") is None
    page.close()


def asked(page):
    """The id of the problem that is shown."""
    return page.text_content(".asked h2")


def wait_for(page, name):
    page.wait_for_function(
        "name => document.querySelector('.asked h2')?.textContent === name", arg=name
    )


@pytest.fixture
def searches(opened):
    opened.click("#to-searches")
    wait_for(opened, "hostile")
    return opened


def test_the_overview_comes_first_and_has_the_plots(opened):
    assert opened.is_visible("#overview") and opened.is_hidden("#searches")
    assert opened.locator("figure svg").count() >= 8
    assert (
        opened.text_content(".warnings li:first-child") == f"M1, train: first: {IMAGE}"
    )


@pytest.mark.parametrize("opened", SIZES, indirect=True)
def test_nothing_is_wider_than_the_window(searches):
    width = searches.viewport_size["width"]
    for name in ("#to-overview", "#to-searches"):
        searches.click(name)
        assert searches.evaluate("document.documentElement.scrollWidth") == width


def test_html_of_a_model_is_shown_as_text(searches):
    assert searches.text_content(".asked .text") == f"Add {SCRIPT} to {IMAGE}"
    first = searches.locator(".candidate .text").first
    assert first.text_content() == f"0 {IMAGE}"
    assert searches.locator("img").count() == 0
    assert searches.text_content("#rows li p") == f"Add {SCRIPT} to {IMAGE}"[:140]


def test_chosen_and_rejected_multiplicity_and_score_are_shown(searches):
    lines = searches.locator(".step").first.locator(".candidate .line").all()
    shown = [" ".join(line.locator("span").all_text_contents()) for line in lines]
    assert shown == [
        "chosen right ×3 score 4 logp -1.50 2 tokens",
        "wrong ×1 score 1 logp -1.50 5 tokens",
        "rejected wrong ×1 no score logp -1.50 2 tokens",
    ]


def test_the_matrix_has_both_orders_and_a_cell_shows_its_explanations(searches):
    step = searches.locator(".step").first
    assert step.locator(".matrix button").all_text_contents() == list("11121?")
    calls = step.locator(".calls")
    assert calls.locator("h4").all_text_contents() == [
        "1 first, 3 second: 1 wins",
        "3 first, 1 second: 1 wins",
    ]
    step.get_by_role("button", name="2 shown first, 3 second: 2 wins").click()
    assert calls.locator("h4").all_text_contents() == [
        "2 first, 3 second: 2 wins",
        "3 first, 2 second: no verdict",
    ]
    assert calls.locator(".text").first.text_content() == f"shown as 12 {IMAGE}"
    assert searches.locator(".matrix button.flip").count() == 2  # of step 2


def test_a_dropped_step_and_refused_samples_are_marked(searches):
    searches.keyboard.press("j")
    wait_for(searches, "dropped")
    titles = [
        " ".join(t.split()) for t in searches.locator(".step h3").all_inner_texts()
    ]
    assert titles == [
        "Step 1 attempt 1 one candidate dropped later",
        "Step 2 attempt 1 tie, goes back 1 flip",
        "Step 1 attempt 1 preference",
        "Kept solution",
    ]
    searches.keyboard.press("ArrowRight")
    wait_for(searches, "refused")
    assert "4 samples refused: cut off" in searches.text_content(".refused")


def test_keys_walk_to_the_next_and_the_previous_problem(searches):
    assert searches.is_disabled("#previous")
    for name in ("dropped", "refused", "plain", "more-0"):
        searches.keyboard.press("j")
        wait_for(searches, name)
    searches.keyboard.press("k")
    wait_for(searches, "plain")
    assert searches.text_content("#place") == "4 of 204"
    assert searches.url.endswith("#searches/M1/questions/plain")
    searches.keyboard.press("/")
    searches.keyboard.type("more-19")
    wait_for(searches, "more-19")  # typed letters do not walk
    assert searches.text_content("#found") == "11 of 204 problems"


@pytest.mark.parametrize(
    ("name", "found"),
    [("tie", 2), ("flip", 2), ("wrong", 1), ("back", 2), ("open", 1)],
)
def test_a_filter_leaves_the_problems_that_have_it(searches, name, found):
    searches.click(f"[data-filter={name}]")
    assert searches.text_content("#found") == f"{found} of 204 problems"
    assert searches.locator("#rows li").count() == found
    searches.click(f"[data-filter={name}]")
    assert searches.text_content("#found") == "204 of 204 problems"


def test_filters_hold_together_with_the_number_of_steps(searches):
    searches.fill("#low", "2")
    assert searches.text_content("#found") == "2 of 204 problems"
    searches.click("[data-filter=wrong]")
    wait_for(searches, "plain")
    searches.fill("#high", "1")
    assert searches.text_content("#found") == "0 of 204 problems"
    assert "No problem passes" in searches.text_content("#problem")


def test_the_longest_problems_come_first_on_request(searches):
    searches.keyboard.press("j")
    wait_for(searches, "dropped")
    searches.select_option("#order", "tokens")
    wait_for(searches, "hostile")
    ids = searches.locator("#rows li span:first-child").all_text_contents()
    assert ids[:2] == ["hostile", "plain"] and ids[-1].startswith("more-")


def test_searches_of_the_test_have_their_answers_and_an_address(searches, path):
    searches.select_option("#source", label="M1, test")
    wait_for(searches, "hostile")
    assert "right is 5" in searches.text_content(".asked .line")
    searches.keyboard.press("Escape")
    searches.goto(f"{path.as_uri()}#searches/M1/test/plain")
    wait_for(searches, "plain")
    assert searches.text_content("#found") == "4 of 4 problems"


def test_a_list_of_hundreds_draws_only_what_is_seen(searches):
    assert searches.locator("#rows li").count() < 40
    searches.evaluate("document.getElementById('list').scrollTop = 1e6")
    searches.wait_for_selector("#rows li:has-text('more-199')")
    searches.click("#rows li:has-text('more-199')")
    wait_for(searches, "more-199")
    assert searches.is_disabled("#next")


@pytest.fixture
def shown(browser, tmp_path):
    """Opens the page of one step with these verdicts."""
    pages = []

    def show(*verdicts, **changed):
        folder = hostile_run.make(tmp_path / "run")
        both = (hostile_run.candidate("0"), hostile_run.candidate("1"))
        made = hostile_run.expansion(1, both, "", "pair", verdicts=verdicts)
        made = dataclasses.replace(made, **changed)
        row = trajectory.to_row(hostile_run.state("one", "count", made))
        records.write_jsonl(folder / "M1" / "search.jsonl", [row])
        pages.append(browser.new_page())
        pages[0].goto(f"{build.write(folder).path.as_uri()}#searches")
        wait_for(pages[0], "one")
        return pages[0]

    yield show
    pages[0].close()


def test_candidates_that_are_judged_alone_have_a_list(shown):
    rated = Verdict(0, 0, "4", f"good {IMAGE}"), Verdict(1, 1, None, "no number")
    page = shown(*rated, Verdict(1, 1, "B", "false"))
    heads = page.locator(".calls h4").all_text_contents()
    assert heads == ["1: rating 4", "2: no verdict", "2: wrong"]
    assert page.locator(".calls .text").first.text_content() == f"good {IMAGE}"
    assert page.locator(".matrix").count() == 0


def test_ties_probabilities_and_several_explanations_of_a_call(shown):
    votes = [Verdict(0, 1, side, side, 0.75) for side in "ABA"]
    page = shown(*votes, Verdict(1, 0, "C", "neither"), scores=(2 / 3, 0.25))
    assert page.locator(".matrix button").all_text_contents() == ["1", "="]
    assert page.locator(".calls h4").all_text_contents() == [
        "1 first, 2 second: 1 wins, 0.75 for 1",
        "1 first, 2 second: 2 wins, 0.75 for 1",
        "1 first, 2 second: 1 wins, 0.75 for 1",
        "2 first, 1 second: tie",
    ]
    assert page.locator(".matrix button.flip").count() == 2
    assert "1 flip" in page.text_content(".step h3")
    assert "score 0.667" in page.text_content(".candidate .line")


def test_a_step_that_the_judge_calls_wrong_is_marked(shown):
    calls = Verdict(0, 0, "B"), Verdict(1, 1, "B")
    page = shown(*calls, action="reject", best=None, worst=None)
    assert "called wrong" in page.text_content(".step h3")
    assert page.locator("[data-filter]").all_text_contents() == ["went back 1"]
