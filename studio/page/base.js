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
export async function ask(action, question = {}) {
  return read(await fetch(`api/${action}`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question),
  }));
}

export async function read(response) {
  const found = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Error(found.error ?? `the server answered ${response.status}`);
  return found;
}

export const problem = (error) => h("p", { class: "error", role: "alert" },
  error instanceof TypeError ? "lisa-studio does not answer: is it still running in its terminal?" : error.message);

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
  return new Promise((done) => {
    const end = (value) => { dialog.close(); done(value); };
    const show = async (place) => {
      const { entries } = await ask("list", { place });
      at("picker-way").textContent = place || "The folders that lisa-studio was started with";
      at("picker-here").hidden = !place || !kinds.includes("folder");
      at("picker-here").onclick = () => end(place);
      const up = place ? [{ name: "⬑ back", place: place.split("/").slice(0, -1).join("/"), kind: "folder" }] : [];
      at("picker-list").replaceChildren(...[...up, ...entries].map((entry) => h("li", {},
        h("button", { type: "button", "data-place": entry.place,
          onclick: () => (entry.kind !== "folder" && kinds.includes(entry.kind) ? end(entry.place) : show(entry.place)),
          disabled: ["picture", "notes"].includes(entry.kind) && !kinds.includes(entry.kind),
        }, `${entry.name}${entry.kind === "folder" ? "" : `  (${entry.kind})`}`))));
    };
    at("picker-none").onclick = () => end(null);
    dialog.onclose = () => done(undefined);
    show("").then(() => dialog.showModal());
  });
}

export const option = (value, text = value) => h("option", { value }, text);
export const row = (cells, tag = "td") => h("tr", {}, cells.map((cell) => h(tag, {}, cell ?? "")));
