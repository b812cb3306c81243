"use strict";
// The table of questions: filters, rows in portions, details on demand. All text is shown through textContent only.

const { models, pairs, contexts, questions } = JSON.parse(document.getElementById("answers").textContent);
const form = document.getElementById("filters");
const table = document.getElementById("table");
const body = table.tBodies[0];
const more = document.getElementById("more");
const PORTION = 50; // rows drawn at a time
const VERDICTS = { correct: ["✓", "right"], wrong: ["✗", "wrong"], unclear: ["?", "unclear"] };
const KEYWORDS = new Set(("select from where group by having order limit offset distinct as on and or not in is null like glob between exists " +
  "join inner left right full outer cross natural using union all except intersect with recursive case when then else end asc desc cast over partition").split(" "));
const TOKEN = /--[^\n]*|'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\w+(?:\.\d+)?|\s+|[<>!=]=|<>|\|\||./gsu;
let matching = [];
let drawn = 0;

questions.forEach((question, index) => {
  question.number = index + 1;
  question.searchable = [question.id, question.question, contexts[question.context], question.gold,
    ...question.answers.map((answer) => answer.sql ?? answer.completion)].join("\n").toLowerCase();
});

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// Python has written hidden characters out as ⟨U+202E⟩; here they get a ground that tells them from ordinary text.
function written(text) {
  return text.split(/(⟨U\+[0-9A-F]{4,6}⟩)/u).map((part, index) => (index % 2 ? make("span", "hidden-character", part) : part));
}

const tokens = (sql) => sql.match(TOKEN) ?? [];
const comparable = (token) => (/^['"`]/.test(token) ? token.slice(1, -1) : token.toLowerCase());

// What a longest common subsequence with gold leaves over: `added` holds the positions of tokens that gold lacks, `missing`
// maps the position before which tokens of gold are missing to those tokens. A replaced token counts as added only.
function differing(parts, gold) {
  const words = parts.map((part, at) => [comparable(part), at]).filter(([word]) => word.trim() && word !== ";");
  const wanted = tokens(gold).map(comparable).filter((word) => word.trim() && word !== ";");
  const added = new Set(), missing = new Map();
  if (words.length * wanted.length > 250000) return { added, missing };
  const width = wanted.length + 1;
  const lengths = new Uint16Array((words.length + 1) * width);
  for (let i = words.length - 1; i >= 0; i--)
    for (let j = wanted.length - 1; j >= 0; j--)
      lengths[i * width + j] = words[i][0] === wanted[j] ? lengths[(i + 1) * width + j + 1] + 1
        : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
  let i = 0, j = 0;
  while (i < words.length || j < wanted.length) {
    if (i < words.length && j < wanted.length && words[i][0] === wanted[j]) { i++; j++; continue; }
    const [firstAdded, firstMissing] = [i, j];
    while (i < words.length || j < wanted.length) {
      if (i < words.length && j < wanted.length && words[i][0] === wanted[j]) break;
      if (j < wanted.length && (i === words.length || lengths[i * width + j + 1] >= lengths[(i + 1) * width + j])) j++;
      else added.add(words[i++][1]);
    }
    if (i === firstAdded) missing.set(i < words.length ? words[i][1] : parts.length, wanted.slice(firstMissing, j).join(" "));
  }
  return { added, missing };
}

function sqlBlock(sql, gold) {
  const block = make("pre", "sql");
  const parts = tokens(sql);
  const { added, missing } = gold === undefined || !form.elements.differences.checked
    ? { added: new Set(), missing: new Map() } : differing(parts, gold);
  const gap = (at) => {
    const sign = make("span", "missing");
    sign.title = "missing here: " + missing.get(at);
    return sign;
  };
  parts.forEach((part, at) => {
    if (missing.has(at)) block.append(gap(at));
    const names = [KEYWORDS.has(part.toLowerCase()) ? "keyword" : /^'|^\d/.test(part) ? "literal" : "", added.has(at) ? "different" : ""];
    const className = names.filter(Boolean).join(" ");
    block.append(...(className ? [make("span", className, ...written(part))] : written(part)));
  });
  if (missing.has(parts.length)) block.append(gap(parts.length));
  return block;
}

function verdictLine(answer, before) {
  const [sign, word] = VERDICTS[answer.verdict];
  const mark = make("span", "mark", sign);
  mark.setAttribute("aria-hidden", "true");
  const line = make("p", "verdict " + answer.verdict, mark, make("span", "", word));
  if (answer.reason) line.append(make("span", "reason", ...written(String(answer.reason))));
  const isRight = answer.verdict === "correct";
  if (before !== undefined && (before.verdict === "correct") !== isRight)
    line.append(make("span", "change " + (isRight ? "gained" : "lost"), isRight ? "gained" : "lost"));
  return line;
}

function answerSql(answer, gold) {
  if (answer.sql !== null) return sqlBlock(answer.sql, answer.verdict === "correct" ? undefined : gold);
  return make("p", "none", answer.completion ? "no SQL in the answer" : "empty answer");
}

function cell(className, label, ...children) {
  const node = make("td", className, ...children);
  node.setAttribute("role", "cell");
  if (label) node.dataset.label = label;
  return node;
}

function drawRow(question) {
  const row = make("tr", "row");
  row.setAttribute("role", "row");
  const open = make("button", "open", String(question.number));
  open.type = "button";
  open.setAttribute("aria-expanded", "false");
  open.setAttribute("aria-label", "Details of question " + question.number);
  open.addEventListener("click", () => toggle(row, open, question));
  row.append(
    cell("toggle", "", open),
    cell("question-cell", "", make("div", "question", ...written(question.question)), make("p", "kinds", ...written(question.kind.join(", ")))),
    cell("context", "Context", make("pre", "", ...written(contexts[question.context]))),
    cell("", "Gold", sqlBlock(question.gold ?? "")),
    ...question.answers.map((answer, index) =>
      cell("", models[index], verdictLine(answer, question.answers[index - 1]), answerSql(answer, question.gold ?? ""))));
  return row;
}

function toggle(row, open, question) {
  const isOpen = open.getAttribute("aria-expanded") === "true";
  open.setAttribute("aria-expanded", String(!isOpen));
  if (isOpen) { row.nextElementSibling.remove(); return; }
  const details = make("tr", "details");
  details.setAttribute("role", "row");
  details.id = "details-" + question.number;
  open.setAttribute("aria-controls", details.id);
  const schema = make("section", "", make("h4", "", "Context"), make("pre", "", ...written(contexts[question.context])),
    make("h5", "", "Example id"), make("pre", "", ...written(question.id)));
  const answers = question.answers.map((answer, index) => {
    const part = make("section", "", make("h4", "", models[index]), verdictLine(answer, question.answers[index - 1]),
      make("p", "muted", answer.tokens + " tokens, " + (answer.eos ? "ends with EOS" : "cut off before EOS")));
    if (answer.trace !== null && answer.trace !== undefined)
      part.append(make("h5", "", "What the databases said"), make("div", "trace", shown(answer.trace)));
    if (answer.completion) part.append(make("h5", "", "Whole completion"), make("pre", "", ...written(answer.completion)));
    return part;
  });
  const whole = cell("", "", make("div", "answers", schema, ...answers));
  whole.colSpan = 4 + models.length;
  details.append(whole);
  row.after(details);
}

// A trace as its shape suggests: rows as a table, other lists in a line, objects as terms.
function shown(value) {
  if (value === null) return make("span", "none", "NULL");
  if (Array.isArray(value)) {
    if (!value.length) return make("span", "none", "no rows");
    const rows = value.map((row) => make("tr", "", ...(Array.isArray(row) ? row : [row]).map((item) => make("td", "", shown(item)))));
    return value.some(Array.isArray) ? make("table", "", make("tbody", "", ...rows)) : make("table", "", make("tbody", "",
      make("tr", "", ...value.map((item) => make("td", "", shown(item))))));
  }
  if (typeof value === "object")
    return make("dl", "", ...Object.entries(value).map(([name, item]) =>
      make("div", item !== null && typeof item === "object" ? "tall" : "", make("dt", "", ...written(name.replaceAll("_", " "))), make("dd", "", shown(item)))));
  return make("span", "", ...written(String(value)));
}

function changed(question, choice) {
  const at = choice.lastIndexOf("/");
  const pair = pairs[choice.slice(0, at)];
  const [before, after] = pair.map((index) => question.answers[index]);
  const [was, is] = [before.verdict === "correct", after.verdict === "correct"];
  return { gained: !was && is, lost: was && !is, any: was !== is, sql: before.sql !== after.sql }[choice.slice(at + 1)];
}

function answered(answer, choice) {
  const [verdict, ...reason] = choice.split("/");
  return answer.verdict === verdict && (!reason.length || String(answer.reason) === reason.join("/"));
}

function filter() {
  const value = (name) => form.elements.namedItem(name)?.value ?? "";
  const words = value("search").toLowerCase().split(/\s+/).filter(Boolean);
  const verdicts = models.map((_, index) => value("verdict-" + index));
  matching = questions.filter((question) =>
    words.every((word) => question.searchable.includes(word)) &&
    (!value("change") || changed(question, value("change"))) &&
    (!value("kind") || question.kind.includes(value("kind"))) &&
    verdicts.every((choice, index) => !choice || answered(question.answers[index], choice)));
  for (const control of form.querySelectorAll("select, input[type=search]")) control.classList.toggle("set", control.value !== "");
  document.getElementById("count").textContent =
    matching.length === questions.length ? `${questions.length.toLocaleString("en")} questions`
      : matching.length ? `${matching.length.toLocaleString("en")} of ${questions.length.toLocaleString("en")} questions`
        : "No question fits these filters. Clear one of them.";
  drawn = 0;
  body.replaceChildren();
  drawMore();
}

function drawMore() {
  body.append(...matching.slice(drawn, drawn + PORTION).map(drawRow));
  drawn = Math.min(drawn + PORTION, matching.length);
  more.hidden = drawn === matching.length;
  more.textContent = `Show more (${(matching.length - drawn).toLocaleString("en")} left)`;
}

// The filters stand in the address, so that a link or a bookmark opens the same questions.
function remember() {
  const set = [...new FormData(form)].filter(([name, value]) => value && name !== "differences");
  history.replaceState(null, "", "#" + (new URLSearchParams(set).toString() || "questions"));
}

function recall() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const known = [...wanted.keys()].filter((name) => name !== "differences" && form.elements.namedItem(name));
  if (!known.length) return;
  form.reset();
  for (const name of known) form.elements.namedItem(name).value = wanted.get(name);
  for (const select of form.querySelectorAll("select")) if (select.selectedIndex < 0) select.value = "";
  filter();
  document.getElementById("questions").scrollIntoView();
}

let waiting;
form.addEventListener("input", (event) => {
  clearTimeout(waiting);
  waiting = setTimeout(() => { filter(); remember(); }, event.target.type === "search" ? 150 : 0);
});
form.addEventListener("reset", () => setTimeout(() => { filter(); remember(); }));
form.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", drawMore);
new IntersectionObserver((entries) => { if (entries[0].isIntersecting && !more.hidden) drawMore(); }, { rootMargin: "600px" }).observe(more);
window.addEventListener("hashchange", recall);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
    event.preventDefault();
    form.elements.search.focus();
  }
});

form.hidden = table.hidden = false;
filter();
recall();
