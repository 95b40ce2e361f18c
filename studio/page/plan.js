// The Plan tab: asks for advice and shows it. It computes none.
import { ask, at, busy, gib, h, option, placeField, row, svg } from "./base.js";

export function setUpPlan(section, shared) {
  const { models, cards, prefers } = shared.choices;
  const data = placeField("plan-data", "Data to plan for", ["data"]);
  const weights = placeField("plan-weights", "Folder of converted weights", ["model"]);
  const answer = h("div", { id: "plan-answer", "aria-live": "polite" });
  const form = h("form", { onsubmit: (event) => { event.preventDefault(); plan(); } },
    h("label", { for: "plan-model" }, "Model"),
    h("select", { id: "plan-model" }, option("", "one that fits"), Object.entries(models).map(([name, title]) => option(name, `${name}: ${title}`))),
    h("label", { for: "plan-card" }, "Card"),
    h("input", { id: "plan-card", list: "plan-cards", placeholder: "this machine's; or a name or a size, such as 8GiB", autocomplete: "off" }),
    h("datalist", { id: "plan-cards" }, Object.entries(cards).map(([key, title]) => option(key, title))),
    h("label", { for: "plan-data" }, "Data"), data,
    h("label", { for: "plan-prefer" }, "Prefer"),
    h("select", { id: "plan-prefer" }, prefers.map((name) => option(name, { usual: "as usual", speed: "speed", precision: "precision", headroom: "free memory" }[name] ?? name))),
    h("details", {}, h("summary", {}, "More"),
      h("div", { class: "form" },
        h("label", { for: "plan-weights" }, "Weights"), weights,
        h("label", { for: "plan-windows" }, "System"),
        h("span", { class: "check" }, h("input", { type: "checkbox", id: "plan-windows" }), "the named card is in a Windows machine"),
        h("label", { for: "plan-hours" }, "Hours that you have"),
        h("input", { id: "plan-hours", type: "number", min: 0.1, max: 100000, step: "any", placeholder: "how many epochs fit into them?" }),
        h("label", { for: "plan-settings" }, "Settings"),
        h("textarea", { id: "plan-settings", rows: 3, placeholder: "one a line, such as lora.rank=16", spellcheck: "false" }))),
    h("div", { class: "buttons" }, h("button", { class: "main", id: "plan-ask" }, "Plan")));
  section.replaceChildren(h("h2", {}, "What can I train, and with which settings?"), form, answer);

  shared.wanted = () => ({
    model: at("plan-model").value || null,
    card: at("plan-card").value.trim() || "here",
    windows: at("plan-windows").checked,
    prefer: at("plan-prefer").value,
    data: data.value,
    weights: weights.value,
    hours: at("plan-hours").valueAsNumber || null,
    settings: at("plan-settings").value.split("\n").map((line) => line.trim()).filter(Boolean),
  });

  const plan = () => busy(at("plan-ask"), answer, async () => {
    const wanted = shared.wanted();
    show(await ask("plan", wanted), wanted);
  });

  function show(found, wanted) {
    const list = (title, lines) => lines.length ? [h("h3", {}, title), h("table", {}, lines.map((line) => row(line)))] : [];
    answer.replaceChildren(
      h("p", {}, h("strong", { class: "verdict", id: "plan-verdict" }, found.verdict), ` ${found.summary}`),
      ...(found.bar ? [bar(found.bar), h("p", { class: "note" }, keys(found.bar), found.legend)] : []),
      h("p", { id: "plan-line" }, found.plan ? `Plan ${found.hash}: ${found.plan}` : ""),
      next(found, wanted),
      ...list("What it takes", found.costs), ...list("Other plans", found.alternatives),
      ...(found.findings.length ? [h("h3", {}, "Notes"), h("ul", {}, found.findings.map((one) => h("li", {}, one)))] : []),
      h("details", {}, h("summary", {}, "All settings, and why"), h("table", {}, found.lines.map((line) => row(line))),
        h("table", {}, found.reasons.map((line) => row(line)))),
      ...(found.commands.length ? [h("h3", {}, "The same in a terminal"), ...found.commands.map((one) => h("code", { class: "command" }, one))] : []));
  }

  function next(found, wanted) {
    if (!found.trains) return "";
    const said = h("span", { role: "status" });
    const name = h("input", { id: "plan-name", "aria-label": "Name of the plan", placeholder: "name", size: 16, style: null });
    const save = h("button", { type: "button", id: "plan-save", onclick: () => busy(save, said, async () => {
      const { place } = await ask("save-plan", { wanted, name: name.value.trim() });
      said.replaceChildren(`saved as ${place}`);
    }) }, "Save the plan as");
    const train = h("button", { type: "button", class: "main", id: "plan-train", disabled: wanted.card !== "here",
      onclick: () => { shared.train(wanted); shared.open("train"); } }, "Train this");
    const elsewhere = wanted.card === "here" ? "" : "A plan for another card: save it, and take it to that machine.";
    return h("div", { class: "buttons" }, train, save, h("span", {}, name), said, h("span", { class: "note" }, elsewhere));
  }

  // What fills the card, up to the red limit of what a run may take.
  function bar(found) {
    const x = (bytes) => (1000 * bytes) / found.whole;
    const picture = svg("svg", { class: "bar", viewBox: "0 0 1000 60", preserveAspectRatio: "none", role: "img", "aria-label": found.words });
    let start = 0;
    for (const [name, bytes] of Object.entries(found.parts)) {
      picture.append(svg("rect", { class: name, x: x(start), y: 0, width: x(bytes), height: 60 }));
      start += bytes;
    }
    picture.append(svg("line", { class: "limit", x1: x(found.usable), x2: x(found.usable), y1: 0, y2: 60 }));
    return picture;
  }

  const keys = (found) => [...Object.entries(found.parts).map(([name, bytes]) => h("span", {}, h("span", { class: `key ${name}` }), `${name} ${gib(bytes)}  `)),
    h("br"), "red line: the most that a run may take; "];
}
