// Looks the advice up in data.js and shows it. It computes no advice: only sums, units and sorting. A time is the
// sum of its parts for as many pictures and epochs as are asked for; the plan is the same.
"use strict";

const GIB = 2 ** 30;
const NAMES = ["card", "model", "text", "prefer"];
const CHOICES = {
  card: Object.fromEntries(Object.entries(WHATIF.cards).map(([key, card]) => [key, card.title])),
  model: WHATIF.models,
  text: WHATIF.texts,
  prefer: { usual: "as usual", speed: "speed", precision: "precision", headroom: "free memory" },
};
const KEYS = Object.fromEntries(NAMES.map((name) =>
  [name, name === "prefer" ? WHATIF.prefers : Object.keys(CHOICES[name])]));
const MOST = { pictures: 1e6, validated: 1e6, epochs: 1e4 };
const START = { card: "rtx-3060-12gb", model: KEYS.model[0], text: "512", prefer: "usual", ...WHATIF.usual };
const COLUMNS = [
  ["card", "card", (row) => row.title],
  ["memory, GB", "size", (row) => String(row.size)],
  ["verdict", "verdict", (row) => row.verdict],
  ["needs, GiB", "needs", (row) => gib(row.needs)],
  ["usable, GiB", "usable", (row) => gib(row.usable)],
  ["questions/s", "speed", (row) => row.speed === undefined ? "" : speedText(row.speed)],
  ["time", "time", (row) => row.time === undefined ? "" : timeText(row.time)],
  ["plan", "plan", (row) => row.plan ?? row.why ?? ""],
];
const TEXTS = ["verdict", "command", "why", "plan", "hash", "basis", "error"]; // numbers of words
const ORDER = ["FITS", "TIGHT", "SPILLS", "OOM", "UNKNOWN"];
let sorted = { column: "size", down: false };

const at = (id) => document.getElementById(id);
const gib = (bytes) => bytes === undefined || bytes === null ? "" : (bytes / GIB).toFixed(2);
const speedText = (speed) => String(Number(speed.toPrecision(2)));

const counted = (number, one) => `${number} ${one}${number === 1 ? "" : "s"}`;

// As profiles/text.py has it.
function timeText(seconds) {
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(0)} min`;
  const hours = seconds / 3600;
  return hours < 48 ? `${Number(hours.toPrecision(2))} h` : `${Number((hours / 24).toPrecision(2))} days`;
}

// Seconds of a training; its parts are those of tools/write_whatif.py.
function timeOf([start, features, validation, step, rest], { pictures, validated, epochs }) {
  const epoch = Math.ceil(pictures / WHATIF.batch) * step + rest;
  return start + (pictures + validated) * features + validated * validation * (1 + epochs) + epochs * epoch;
}

// The answer to a state; the order of the states is that of tools/write_whatif.py.
function answerTo(state) {
  const place = NAMES.reduce((sum, name) => sum * KEYS[name].length + KEYS[name].indexOf(state[name]), 0);
  const [number, speed, parts, ...texts] = WHATIF.states[place];
  const [source, timeError] = texts.map((text) => WHATIF.words[text]);
  const card = WHATIF.cards[state.card];
  const answer = Object.fromEntries(Object.entries(WHATIF.answers[number]).map(([name, value]) =>
    [name, TEXTS.includes(name) && value !== null ? WHATIF.words[value] : value]));
  const more = state.epochs === WHATIF.usual.epochs ? "" : ` --epochs ${state.epochs}`;
  const command = answer.command && answer.command.replace("{card}", () => card.options) + more;
  const times = WHATIF.times[parts];
  const time = times && timeOf(times, state);
  const [low, high] = times ? times.slice(-2).map((share) => share * time) : [];
  return { ...card, ...answer, card: state.card, command, speed, source, timeError, time, low, high, hostUsable: card.host, host: answer.host };
}

// A whole number that there can be; else the usual one.
function asked(name, text) {
  const number = Number(text);
  return Number.isInteger(number) && number >= 1 && number <= MOST[name] ? number : START[name];
}

function stateOfAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const chosen = NAMES.map((name) => [name, KEYS[name].includes(given.get(name)) ? given.get(name) : START[name]]);
  const typed = Object.keys(MOST).map((name) => [name, asked(name, given.get(name))]);
  return Object.fromEntries([...chosen, ...typed]);
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function showAnswer(state) {
  const found = answerTo(state);
  at("verdict").textContent = found.verdict;
  at("headline").textContent = found.needs === undefined ? found.why
    : `${state.model} on ${found.title}: needs ${gib(found.needs)} GiB of ${gib(found.usable)} GiB usable${found.why ? `; ${found.why}` : ""}`;
  at("first").textContent = found.first ? `For this card ${found.first}.` : "";
  at("plan").textContent = found.plan ? `Plan ${found.hash}: ${found.plan}` : "";
  at("command").textContent = found.command ?? "";
  at("command-box").hidden = !found.command;
  at("copied").textContent = "";
  showBar(found);
  showNumbers(found, state);
}

function showBar(found) {
  const bar = at("bar");
  bar.querySelectorAll("rect, line").forEach((old) => old.remove());
  bar.toggleAttribute("hidden", found.needs === undefined);
  if (found.needs === undefined) return;
  const whole = Math.max(found.capacity, found.needs);
  const x = (bytes) => (1000 * bytes) / whole;
  const draw = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    bar.append(made);
  };
  let filled = 0;
  for (const [name, bytes] of Object.entries(found.parts)) {
    draw("rect", { class: name, x: x(filled), y: 5, width: x(bytes), height: 50, stroke: "#111" });
    filled += bytes;
  }
  if (!filled) draw("rect", { class: "weights", x: 0, y: 5, width: x(found.needs), height: 50 });
  draw("line", { class: "limit", x1: x(found.usable), x2: x(found.usable), y1: 0, y2: 60 });
  draw("line", { class: "capacity", x1: x(found.capacity), x2: x(found.capacity), y1: 0, y2: 60 });
  at("bar-title").textContent = `The plan fills ${gib(found.needs)} of ${gib(found.capacity)} GiB; `
    + `the limit is at ${gib(found.usable)} GiB. The table below has the parts.`;
}

function showNumbers(found, { pictures, validated, epochs }) {
  const body = at("numbers").tBodies[0];
  const row = (name, value, error, part) => {
    const line = document.createElement("tr");
    const head = element("th", "", { scope: "row" });
    if (part) {
      const key = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      key.setAttribute("class", "key");
      key.setAttribute("aria-hidden", "true");
      key.innerHTML = `<rect width="100%" height="100%" class="${part}"/>`;
      head.append(key);
    }
    head.append(name);
    line.append(head, element("td", value, { class: "n" }), element("td", error));
    body.append(line);
  };
  body.replaceChildren();
  if (found.needs !== undefined) {
    for (const [name, bytes] of Object.entries(found.parts)) {
      row(name, `${gib(bytes)} GiB`, "a part of what is needed", name);
    }
    row("plan needs", `${gib(found.needs)} GiB`, `${found.basis}: ${found.error}`);
    row("host memory", `${gib(found.host)} GiB of ${gib(found.hostUsable)}`, "a machine of 16 GiB is assumed, half of it free");
    row("disk", `${gib(found.disk)} GiB`, "downloads, converted model, ReasonSeg's features, checkpoints");
    row("questions a second", speedText(found.speed), `with as many a picture as the plan says; ${found.source}`);
    const [about, low, high] = [found.time, found.low, found.high].map(timeText);
    row(`time, ${counted(epochs, "epoch")} of ${counted(pictures, "picture")}`, `${about} (${low} to ${high})`,
      `one question a picture, ${validated} more to validate; ${found.timeError}`);
  }
  row("usable (thick line)", `${gib(found.usable)} GiB`, found.margin);
  row("capacity (dashed line)", `${gib(found.capacity)} GiB`, "free memory less the CUDA context, no margin kept");
}

function showAll(state) {
  const rows = KEYS.card.map((card) => answerTo({ ...state, card }));
  const value = (row) => sorted.column === "card" ? row.title
    : sorted.column === "verdict" ? ORDER.indexOf(row.verdict)
      : row[sorted.column];
  rows.sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    if (left === undefined || right === undefined) return (left === undefined) - (right === undefined);
    const sign = typeof left === "string" ? left.localeCompare(right, "en", { numeric: true }) : left - right;
    return sorted.down ? -sign : sign;
  });
  at("all-what").textContent = `With ${state.model}, ${CHOICES.text[state.text]}, preferring ${CHOICES.prefer[state.prefer]}.`;
  at("all").tHead.rows[0].replaceChildren(...COLUMNS.map(([title, column]) => {
    const order = sorted.column !== column ? "none" : sorted.down ? "descending" : "ascending";
    const head = element("th", "", { scope: "col", "aria-sort": order });
    head.append(element("button", title, { type: "button", "data-column": column }));
    return head;
  }));
  at("all").tBodies[0].replaceChildren(...rows.map((row) => {
    const line = element("tr", "", row.card === state.card ? { "aria-current": "true" } : {});
    for (const [, column, text] of COLUMNS) {
      const cell = element(column === "card" ? "th" : "td", column === "card" ? "" : text(row), column === "card" ? { scope: "row" } : {});
      if (column === "card") cell.append(element("button", row.title, { type: "button", "data-card": row.card }));
      if (["size", "needs", "usable", "speed", "time"].includes(column)) cell.className = "n";
      line.append(cell);
    }
    return line;
  }));
}

function show() {
  const state = stateOfAddress();
  for (const name of [...NAMES, ...Object.keys(MOST)]) at(name).value = state[name];
  showAnswer(state);
  showAll(state);
}

function choose(change) {
  const state = { ...stateOfAddress(), ...change };
  history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  show();
}

async function copy() {
  const text = at("command").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // an older browser, or one that asks for more rights
    getSelection().selectAllChildren(at("command"));
    document.execCommand("copy");
  }
  at("copied").textContent = "Copied.";
}

function start() {
  for (const name of NAMES) {
    at(name).append(...KEYS[name].map((key) => element("option", CHOICES[name][key], { value: key })));
    at(name).addEventListener("change", () => choose({ [name]: at(name).value }));
  }
  for (const [name, most] of Object.entries(MOST)) {
    Object.assign(at(name), { min: 1, max: most });
    at(name).addEventListener("change", () => choose({ [name]: asked(name, at(name).value) }));
  }
  at("choice").addEventListener("submit", (event) => event.preventDefault());
  at("copy").addEventListener("click", copy);
  at("all").addEventListener("click", (event) => {
    const { column, card } = event.target.dataset;
    if (column) {
      sorted = { column, down: sorted.column === column && !sorted.down };
      showAll(stateOfAddress());
      at("all").querySelector(`[data-column="${column}"]`).focus();
    } else if (card) {
      choose({ card });
      at("verdict").scrollIntoView({ block: "center" });
      at("card").focus();
    }
  });
  addEventListener("hashchange", show);
  show();
}

start();
