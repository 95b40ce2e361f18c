// What every tab uses: elements, questions to the server, the choice of a place.

export const at = (id) => document.getElementById(id);
export const GIB = 2 ** 30;
export const gib = (bytes) => `${(bytes / GIB).toFixed(2)} GiB`;

// An element with attributes (on… are listeners) and children; text stays text.
export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// The server's answer to a question; what it refuses is thrown, in its words.
// `tell` gets words about how far it is, if that takes a while.
export const ask = async (action, question = {}, tell = () => {}) => read(await post(`api/${action}`, question), tell);

// A picture that the server draws, as a file and as an address.
export async function drawn(action, question) {
  const response = await post(`api/${action}`, question);
  return response.ok ? response.blob() : read(response);
}
export const picture = async (action, question) => URL.createObjectURL(await drawn(action, question));

const post = (address, question) => send(address, { headers: { "Content-Type": "application/json" }, body: JSON.stringify(question) });

export async function send(address, message) {
  try {
    return await fetch(address, { method: "POST", ...message });
  } catch {
    throw new Error("lisa-studio does not answer: is it still running in its terminal?");
  }
}

export async function read(response, tell) {
  const inLines = response.headers.get("content-type")?.startsWith("application/x-ndjson");
  const found = await (inLines ? lastLine(response, tell) : response.json().catch(() => ({})));
  if (response.ok && found.error === undefined) return found;
  throw new Error([found.error ?? `the server answered ${response.status}`, found.hint].filter(Boolean).join(": "));
}

async function lastLine(response, tell) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", found = { progress: "" };
  for (;;) {
    const { done, value } = await reader.read().catch(() => ({ done: true }));
    const lines = (rest + (value ?? "")).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      found = JSON.parse(line);
      if (found.progress) tell(found.progress);
    }
    if (done) return found.progress === undefined ? found : { error: "lisa-studio ended before it was done" };
  }
}

export const problem = (error) => h("p", { class: "error", role: "alert" }, error.message);

// Run `work`, its button off meanwhile; an error is shown in `place`.
export async function busy(button, place, work) {
  const text = button.textContent;
  button.disabled = true;
  button.textContent = `${text} …`;
  place.replaceChildren();
  try {
    return await work();
  } catch (error) {
    place.replaceChildren(problem(error));
    return undefined;
  } finally {
    button.disabled = false;
    button.textContent = text;
  }
}

// A field for a place below the page's folders; `kinds` are what may be chosen.
export function placeField(id, title, kinds) {
  const shown = h("output", { id, "aria-label": title }, "none chosen");
  const field = h("div", { class: "place" }, shown,
    h("button", { type: "button", id: `${id}-choose`, onclick: async () => {
      const found = await pick(title, kinds);
      if (found !== undefined) field.set(found);
    } }, "Choose …"));
  field.value = null;
  field.set = (place) => {
    field.value = place;
    shown.textContent = place ?? "none chosen";
    field.dispatchEvent(new Event("change"));
  };
  return field;
}

// The dialog: a place, null for none, undefined if it was closed.
export function pick(title, kinds) {
  const dialog = at("picker");
  at("picker-title").textContent = title;
  at("picker-list").replaceChildren();
  return new Promise((done) => {
    const end = (value) => { dialog.close(); done(value); };
    const show = async (place) => {
      const { entries, kind } = await ask("list", { place });
      at("picker-here").hidden = !kinds.includes(kind);
      at("picker-here").onclick = () => end(place);
      at("picker-way").textContent = place || "The folders that lisa-studio was started with";
      const up = place ? [{ name: "⬑ back", place: place.split("/").slice(0, -1).join("/"), kind: "up" }] : [];
      at("picker-list").replaceChildren(...[...up, ...entries].map((entry) => line(entry, kinds, show, end)));
    };
    at("picker-none").onclick = () => end(null);
    dialog.oncancel = () => done(undefined); // Escape
    show("").then(() => dialog.showModal());
  });
}

// An entry of the dialog: a folder is opened by its name and chosen by its button; a file is chosen.
function line(entry, kinds, show, end) {
  const { name, place, kind } = entry;
  const isFile = ["picture", "notes"].includes(kind), fits = kinds.includes(kind);
  return h("li", {},
    h("button", { type: "button", "data-place": place, disabled: isFile && !fits, onclick: () => (isFile ? end(place) : show(place)) },
      `${name}${["folder", "up", "picture", "notes"].includes(kind) ? "" : `  (${kind})`}`),
    fits && !isFile ? h("button", { type: "button", class: "choose", "data-choose": place, onclick: () => end(place) }, "Choose") : null);
}

export const option = (value, text = value) => h("option", { value }, text);
export const row = (cells, tag = "td") => h("tr", {}, cells.map((cell) => h(tag, {}, cell ?? "")));
