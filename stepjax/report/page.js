"use strict";
// The search viewer. Texts of models become text nodes only, never HTML: everything on
// the page that is not in page.html is made by `make`.

const ROW = 50; // pixels of a row of the list, as in page.css
const CHUNK = 40; // problems of a chunk, as in searches.py
const FILTERS = [
  ["tie", "tie", "A step had several candidates and no preference"],
  ["flip", "flip", "The winner of a pair depended on which one was shown first"],
  ["wrong", "wrong best", "The candidate that was kept is wrong"],
  ["lost", "right one lost", "The candidate that was kept is wrong, and another one is right"],
  ["back", "went back", "A step was dropped or sampled again"],
  ["open", "not complete", "The search did not reach the end of a solution"],
  ["failed", "wrong answer", "The answer of the search is wrong"],
];
const ACTIONS = {
  pair: ["preference", "Chosen over rejected becomes a preference pair. The chosen step goes on."],
  append: ["tie", "No preference. The candidate that was sampled most often goes on."],
  back: ["tie, goes back", "No preference. The step before is dropped."],
  resample: ["tie, samples again", "No preference at step 1, which is sampled again."],
  reject: ["called wrong", "The judge calls the best candidate wrong. The step is sampled again."],
};
const STATUS = {
  complete: "complete",
  budget: "closed, expansions used up",
  length: "closed, no room for another step",
};

const $ = (id) => document.getElementById(id);
let sources = [];
let source = null;
let shown = []; // positions in the source of the problems that pass the filters
let at = 0; // position in `shown`
const pressed = new Set();
const chunks = new Map();
let asked = 0; // counts requests for a problem, so that only the last one is drawn

// Returns an element with attributes and children; strings become text.
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "onclick") element.addEventListener("click", value);
    else if (value !== null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

async function unpack(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

function problemAt(position) {
  const number = source.first + position;
  const name = "chunk" + Math.floor(number / CHUNK);
  if (!chunks.has(name)) chunks.set(name, unpack(name));
  return chunks.get(name).then((rows) => rows[number % CHUNK]);
}

function count(number, one, many) {
  return number.toLocaleString("en") + " " + (number === 1 ? one : many || one + "s");
}

// ---- the list and its filters

function applyFilters(keep) {
  const columns = source.columns;
  const word = $("find").value.trim().toLowerCase();
  const low = $("low").value === "" ? 0 : Number($("low").value);
  const high = $("high").value === "" ? Infinity : Number($("high").value);
  shown = [];
  for (let i = 0; i < columns.id.length; i++) {
    const steps = columns.steps[i];
    if (steps < low || steps > high) continue;
    if (![...pressed].every((name) => columns[name][i])) continue;
    if (word && !(columns.id[i] + "\n" + columns.head[i]).toLowerCase().includes(word)) continue;
    shown.push(i);
  }
  const order = $("order").value;
  if (order) shown.sort((a, b) => columns[order][b] - columns[order][a] || a - b);
  $("found").textContent = shown.length.toLocaleString("en") + " of " + count(columns.id.length, "problem");
  $("space").style.height = shown.length * ROW + "px";
  at = Math.max(0, shown.indexOf(keep));
  $("list").scrollTop = Math.max(0, (at - 2) * ROW);
  go(at);
}

function drawList() {
  const first = Math.max(0, Math.floor($("list").scrollTop / ROW) - 4);
  const last = Math.min(shown.length, first + Math.ceil($("list").clientHeight / ROW) + 9);
  const rows = [];
  for (let place = first; place < last; place++) {
    const i = shown[place];
    const columns = source.columns;
    const marks = FILTERS.filter(([name]) => columns[name][i]).map(([, label]) => label);
    rows.push(
      make(
        "li",
        { class: place === at ? "on" : "", onclick: () => go(place), title: marks.join(", ") },
        make("div", null, make("span", null, columns.id[i]), make("span", null, count(columns.steps[i], "step"))),
        make("p", null, columns.head[i]),
      ),
    );
  }
  $("rows").style.transform = `translateY(${first * ROW}px)`;
  $("rows").replaceChildren(...rows);
}

function chooseSource(next) {
  source = next;
  for (const name of [...pressed]) if (!source.columns[name].some(Boolean)) pressed.delete(name);
  const chips = FILTERS.map(([name, label, title]) => {
    const number = source.columns[name].filter(Boolean).length;
    if (!number) return null;
    const chip = make(
      "button",
      { type: "button", title, "data-filter": name, "aria-pressed": String(pressed.has(name)) },
      label + " ",
      make("small", null, number.toLocaleString("en")),
    );
    chip.addEventListener("click", () => {
      if (!pressed.delete(name)) pressed.add(name);
      chip.setAttribute("aria-pressed", String(pressed.has(name)));
      applyFilters(shown[at]);
    });
    return chip;
  });
  $("chips").replaceChildren(...chips.filter(Boolean));
}

// ---- one problem

function go(place) {
  if (!shown.length) {
    at = 0;
    asked++;
    drawList();
    $("place").textContent = "";
    $("previous").disabled = $("next").disabled = true;
    $("problem").replaceChildren(make("p", { class: "note" }, "No problem passes these filters."));
    return;
  }
  at = Math.min(Math.max(place, 0), shown.length - 1);
  const top = at * ROW;
  const list = $("list");
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  drawList();
  $("previous").disabled = at === 0;
  $("next").disabled = at === shown.length - 1;
  $("place").textContent = (at + 1).toLocaleString("en") + " of " + shown.length.toLocaleString("en");
  const number = ++asked;
  problemAt(shown[at]).then((row) => {
    if (number === asked) $("problem").replaceChildren(...drawProblem(row));
    const address = ["#searches", source.model, source.problems, row.id].map((part, i) => (i ? encodeURIComponent(part) : part));
    if (number === asked && !$("searches").hidden) history.replaceState(null, "", address.join("/"));
  }, fail);
}

function walk(by) {
  if (at + by < 0 || at + by >= shown.length) return;
  go(at + by);
  const top = $("problem").getBoundingClientRect().top;
  if (top < 0) window.scrollBy(0, top - 120);
}

function right(value) {
  if (value === null) return null;
  return make("span", { class: "tag " + (value ? "good" : "bad") }, value ? "right" : "wrong");
}

function drawProblem(row) {
  const facts = [make("span", null, STATUS[row.status] || row.status), make("span", null, count(row.expansions.length, "expansion")), make("span", null, count(row.kept.length, "step") + " kept"), make("span", null, count(row.tokens, "token"))];
  if (row.graded) {
    const given = row.graded.prediction === null ? "none" : row.graded.prediction;
    facts.push(make("span", null, "answer " + given), make("span", null, "right is " + row.graded.answer), right(row.graded.right));
  }
  const head = make("div", { class: "asked" }, make("h2", null, row.id), make("p", { class: "text" }, row.problem), make("p", { class: "line" }, facts));
  const dropped = droppedExpansions(row.expansions);
  const steps = row.expansions.map((expansion, i) => drawExpansion(expansion, dropped.has(i)));
  for (const hint of steps.flatMap((step) => [...step.querySelectorAll(".matrix p")]).slice(1)) hint.remove();
  const solution = make("section", { class: "step" }, make("h3", null, "Kept solution"), make("p", { class: "text" }, row.kept.length ? row.kept.join("\n") : "Nothing was kept."));
  return [head, ...steps, solution];
}

// Positions of the expansions whose step was kept and later dropped.
function droppedExpansions(expansions) {
  const kept = [];
  const dropped = new Set();
  expansions.forEach((expansion, i) => {
    if (expansion.action === "pair" || expansion.action === "append") kept.push(i);
    else if (expansion.action === "back") dropped.add(kept.pop());
  });
  return dropped;
}

function drawExpansion(expansion, isDropped) {
  const [label, text] = ACTIONS[expansion.action];
  const single = expansion.candidates.length === 1 && expansion.action !== "pair";
  const title = make("h3", null, "Step " + expansion.step, make("small", null, "attempt " + expansion.attempt), make("span", { class: "tag" + (expansion.action === "pair" ? " chosen" : "") }, single ? "one candidate" : label), expansion.flips ? make("span", { class: "tag" }, count(expansion.flips, "flip")) : null, isDropped ? make("span", { class: "tag rejected" }, "dropped later") : null);
  const note = single && expansion.action === "append" ? "All samples agree, so there is nothing to compare." : text;
  const candidates = make("div", null, expansion.candidates.map((candidate, i) => drawCandidate(expansion, candidate, i)));
  const calls = make("div", { class: "calls" });
  const compared = expansion.verdicts.some(([a, b]) => a !== b);
  const matrix = compared ? drawMatrix(expansion, calls) : null;
  if (!compared) drawRatings(expansion, calls);
  return make(
    "section",
    { class: "step" + (isDropped ? " dropped" : "") },
    title,
    make("p", { class: "note" }, note),
    make("div", { class: expansion.verdicts.length ? "both" : "" }, candidates, expansion.verdicts.length ? make("div", { class: "judged" }, matrix, calls) : null),
    expansion.refused.map((refused) => make("details", { class: "refused" }, make("summary", null, count(refused.count, "sample") + " refused: " + refused.fault), make("p", { class: "text" }, refused.text))),
    expansion.candidates.length || expansion.refused.length ? null : make("p", { class: "refused" }, "No sample was a candidate."),
  );
}

function drawCandidate(expansion, candidate, i) {
  const isBest = i === expansion.best;
  const isWorst = i === expansion.worst;
  const kind = isBest ? " best" : isWorst ? " worst" : "";
  const pair = expansion.action === "pair";
  const score = expansion.scores[i];
  return make(
    "div",
    { class: "candidate" + kind },
    make("b", null, String(i + 1)),
    make(
      "div",
      null,
      make("p", { class: "text" }, candidate.text),
      make(
        "p",
        { class: "line" },
        isBest ? make("span", { class: "tag chosen" }, pair ? "chosen" : "kept") : isWorst ? make("span", { class: "tag rejected" }, "rejected") : null,
        right(candidate.right),
        make("span", { title: "how often it was sampled" }, "×" + candidate.count),
        make("span", null, score === null ? "no score" : "score " + Number(score.toFixed(3))),
        make("span", { title: "log-probability of the step, in nats" }, "logp " + (candidate.logp === null ? "not finite" : candidate.logp.toFixed(2))),
        make("span", null, count(candidate.tokens, "token")),
        candidate.ends ? make("span", null, "ends the solution") : null,
      ),
    ),
  );
}

function drawMatrix(expansion, calls) {
  const size = expansion.candidates.length;
  const found = new Map();
  for (const verdict of expansion.verdicts) {
    const key = verdict[0] + "," + verdict[1];
    found.set(key, [...(found.get(key) || []), verdict]);
  }
  const buttons = new Map();
  const select = (i, j) => {
    for (const [key, button] of buttons) {
      button.setAttribute("aria-pressed", String(key === i + "," + j || key === j + "," + i));
    }
    const both = [[i, j], [j, i]].map((pair) => found.get(pair.join(","))).filter(Boolean);
    calls.replaceChildren(...both.flat().map(drawCall));
  };
  const cell = (i, j) => {
    const votes = found.get(i + "," + j);
    if (i === j || !votes) return make("td", null, i === j ? "" : "·");
    const won = winnerOf(votes);
    const back = found.has(j + "," + i) ? winnerOf(found.get(j + "," + i)) : null;
    const flips = won !== null && back !== null && won !== back;
    const kind = won === i ? "row" : won === j ? "column" : "";
    const said = won === null ? "no verdict" : won === "tie" ? "tie" : won + 1 + " wins";
    const title = `${i + 1} shown first, ${j + 1} second: ${said}` + (flips ? "; flips with the order" : "");
    const label = won === null ? "?" : won === "tie" ? "=" : String(won + 1);
    const button = make("button", { type: "button", class: kind + (flips ? " flip" : ""), title, "aria-label": title, "aria-pressed": "false", onclick: () => select(i, j) }, label);
    buttons.set(i + "," + j, button);
    return make("td", null, button);
  };
  const numbers = [...Array(size).keys()];
  const table = make(
    "table",
    null,
    make("tr", null, make("th", null, ""), numbers.map((j) => make("th", null, String(j + 1)))),
    numbers.map((i) => make("tr", null, make("th", null, String(i + 1)), numbers.map((j) => cell(i, j)))),
  );
  const { best, worst } = expansion;
  const first = expansion.verdicts[0];
  if (best !== null && worst !== null && buttons.has(best + "," + worst)) select(best, worst);
  else if (best !== null && worst !== null && buttons.has(worst + "," + best)) select(worst, best);
  else select(first[0], first[1]);
  return make("div", { class: "matrix" }, make("h4", null, "Winner of each call"), table, make("p", null, "Row: shown first. Column: shown second. Blue: the first one won, orange: the second one. Dashed: flips with the order. Press a cell for its explanations."));
}

// The side that most explanations of a call chose: a candidate, "tie", or null.
function winnerOf(votes) {
  const [a, b] = votes[0];
  const sides = { A: 0, B: 0, C: 0 };
  for (const [, , side] of votes) if (side in sides) sides[side]++;
  const most = Math.max(...Object.values(sides));
  const leading = Object.keys(sides).filter((side) => sides[side] === most);
  if (!most || leading.length > 1) return null;
  return { A: a, B: b, C: "tie" }[leading[0]];
}

function drawCall([a, b, side, response, probability]) {
  const said = { A: `${a + 1} wins`, B: `${b + 1} wins`, C: "tie" }[side] || "no verdict";
  const sure = probability === undefined ? "" : `, ${probability.toFixed(2)} for ${a + 1}`;
  return make("div", null, make("h4", null, `${a + 1} first, ${b + 1} second: ${said}${sure}`), explanation(response));
}

// Verdicts on candidates that were judged alone: right, wrong, or a rating.
function drawRatings(expansion, calls) {
  const words = { A: "right", B: "wrong", null: "no verdict" };
  calls.replaceChildren(...expansion.verdicts.map(([a, , verdict, response]) => make("div", null, make("h4", null, `${a + 1}: ` + (words[verdict] || "rating " + verdict)), explanation(response))));
}

function explanation(response) {
  if (response === null) return make("p", { class: "note" }, "Left out to keep this file small.");
  return make("p", { class: "text" }, response === "" ? "(no explanation)" : response);
}

// ---- the page

function fail(error) {
  $("message").hidden = false;
  $("message").textContent = "The searches cannot be read: " + error.message + ". Expected a browser with DecompressionStream: Chrome 80, Firefox 113, Safari 16.4 or later.";
}

function open() {
  const [view, ...parts] = location.hash.slice(1).split("/");
  const isSearches = view === "searches";
  $("searches").hidden = !isSearches;
  $("overview").hidden = isSearches;
  $("to-searches").classList.toggle("on", isSearches);
  $("to-overview").classList.toggle("on", !isSearches);
  if (!isSearches || !sources.length) return;
  const [model, problems, id] = parts.map(decoded);
  const next = sources.find((s) => s.model === model && s.problems === problems) || source || sources[0];
  $("source").value = String(sources.indexOf(next));
  chooseSource(next);
  const keep = id === undefined ? shown[at] : next.columns.id.indexOf(id);
  applyFilters(keep);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // an address that somebody typed
  }
}

function onKey(event) {
  if ($("searches").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const field = ["INPUT", "SELECT"].includes(event.target.tagName);
  if (field) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "j" || event.key === "ArrowRight") walk(1);
  else if (event.key === "k" || event.key === "ArrowLeft") walk(-1);
  else if (event.key === "/") $("find").focus();
  else return;
  event.preventDefault();
}

async function start() {
  sources = await unpack("index");
  if (!sources.length) {
    $("message").hidden = false;
    $("message").textContent = "This run has no searches yet. `stepjax search` and `stepjax eval --mode=search` make them.";
    document.querySelector(".viewer").hidden = true;
  }
  sources.forEach((s, i) => $("source").append(make("option", { value: String(i) }, `${s.model}, ${s.problems}`)));
  source = sources[0] || null;
  $("source").addEventListener("change", () => {
    chooseSource(sources[Number($("source").value)]);
    applyFilters(0);
  });
  for (const id of ["find", "low", "high"]) $(id).addEventListener("input", () => applyFilters(shown[at]));
  $("order").addEventListener("input", () => applyFilters(-1)); // to the first one
  $("list").addEventListener("scroll", drawList);
  window.addEventListener("resize", () => source && !$("searches").hidden && drawList());
  $("previous").addEventListener("click", () => walk(-1));
  $("next").addEventListener("click", () => walk(1));
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", open);
  open();
}

start().then(() => (document.body.dataset.ready = "yes"), (error) => { open(); fail(error); });
