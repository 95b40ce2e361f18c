// The Runs tab: all runs, their curves side by side, their pictures, evaluation and export.
import { ask, at, busy, h, option, picture, placeField, problem } from "./base.js";
import { plot } from "./plot.js";

const shown3 = (value) => (value === null || value === undefined ? "" : value.toFixed(3));

export function setUpRuns(section, shared) {
  const table = h("table", { id: "runs-table" });
  const curves = h("div", { class: "plots", id: "runs-curves" });
  const apart = h("ul", { id: "runs-apart", "aria-label": "Differences between the compared runs" });
  const detail = h("div", { id: "runs-detail" });
  const chosen = new Set();
  let all = [], timer = null;
  section.replaceChildren(h("h2", {}, "Runs"), table, apart, curves, detail);
  shared.shown.runs = list;

  async function list() {
    clearTimeout(timer);
    try {
      all = (await ask("runs")).runs;
    } catch (error) {
      return table.replaceChildren(problem(error));
    }
    if (!chosen.size) all.slice(0, 2).forEach((one) => chosen.add(one.run));
    const heads = ["compare", "run", "model", "state", "gIoU before", "best", "scored, with its 95 % interval", ""];
    table.replaceChildren(h("tr", {}, heads.map((one) => h("th", {}, one))), ...all.map((run) => h("tr", {},
      h("td", {}, h("input", { type: "checkbox", "aria-label": `Compare ${run.name}`, checked: chosen.has(run.run), onchange: (event) => { chosen[event.target.checked ? "add" : "delete"](run.run); compare(); } })),
      h("td", {}, run.name), h("td", {}, run.model), h("td", {}, run.state), h("td", { class: "n" }, shown3(run.before)), h("td", { class: "n" }, shown3(run.best)),
      h("td", {}, run.scores.map((one) => h("div", {}, scored(one)))),
      h("td", { class: "buttons" }, h("button", { type: "button", "data-run": run.run, onclick: () => open(run.run) }, "Open"), h("button", { type: "button", onclick: () => shared.watch(run.run) }, "Watch")))));
    if (!all.length) table.replaceChildren(h("tr", {}, h("td", {}, "No run yet.")));
    compare();
    if (shared.now === "runs" && all.some((one) => one.works.some((work) => work.running))) timer = setTimeout(list, 2000);
    return undefined;
  }

  const scored = (one) => `${one.split}${one.data ? ` of ${one.data}` : ""}${one.answers === "generated" ? " (own answers)" : ""}: gIoU ${shown3(one.giou)}${one.giou_95 ? ` [${one.giou_95.map(shown3).join(", ")}]` : ""}, cIoU ${shown3(one.ciou)}, ${one.images} questions`;

  async function compare() {
    const compared = all.filter((one) => chosen.has(one.run)), runs = compared.slice(0, 6);
    const scoredOnes = runs.filter((one) => one.scores.length).map((one) => one.run);
    const { differences } = scoredOnes.length > 1 ? await ask("compare", { runs: scoredOnes }) : { differences: [] };
    if (compared.length > runs.length) differences.push("The first six are compared.");
    apart.replaceChildren(...differences.map((one) => h("li", {}, one)));
    const found = await Promise.all(runs.map((one) => whole(one.run)));
    const of = (name) => found.map((one, number) => ({ name: runs[number].name, points: one.steps.filter((row) => row[name] !== undefined).map((row) => [row.step, row[name]]) }));
    const judged = found.map((one, number) => ({ name: runs[number].name, points: one.evaluations.filter((row) => typeof row.giou === "number").map((row) => [row.step, row.giou]) }));
    curves.replaceChildren(plot("Loss", of("loss")), plot("gIoU on the validation questions", judged, { from: 0 }));
  }

  async function whole(run) {
    const seen = { steps: [], evaluations: [] };
    for (let start = 0; ;) {
      const told = await ask("run", { run, at: start });
      seen.steps.push(...told.steps);
      seen.evaluations.push(...told.evaluations);
      if (told.at === start) return { ...told, ...seen };
      start = told.at;
    }
  }

  async function open(run) {
    const told = await whole(run);
    const said = h("div", { role: "status", id: "runs-said" });
    const data = placeField("runs-data", "Data to score on", ["data"]);
    if (told.data) data.set(told.data);
    const split = h("select", { "aria-label": "Split" }, ["val", "test", "train"].map((one) => option(one)));
    const evaluate = h("button", { type: "button", id: "runs-evaluate", onclick: () => busy(evaluate, said, async () => {
      said.textContent = (await ask("evaluate", { run, data: data.value ?? "", split: split.value })).words;
      await list();
      follow(run);
    }) }, "Score");
    const merge = h("input", { type: "checkbox", id: "runs-merge" });
    const exported = h("button", { type: "button", id: "runs-export", onclick: () => busy(exported, said, async () => {
      said.textContent = (await ask("export", { run, name: at("runs-name").value.trim(), merge: merge.checked })).words;
      follow(run);
    }) }, "Export");
    detail.replaceChildren(h("h2", {}, told.name), h("p", {}, h("strong", { class: "verdict" }, told.state), ` ${told.words}`), h("p", {}, told.plan),
      ...told.happened.map((one) => h("p", { class: "error" }, one)),
      h("div", { class: "form" }, h("label", { for: "runs-data" }, "Score on"), data, h("label", {}, "Split"), split, h("div", { class: "buttons" }, evaluate),
        h("label", { for: "runs-name" }, "Export as"), h("input", { id: "runs-name", value: told.name, maxlength: 64 }),
        h("span", { class: "check" }, merge, "the whole model, merged"), h("div", { class: "buttons" }, exported)),
      said, h("ul", { id: "runs-works" }), h("div", { id: "runs-pictures" }));
    showWorks(told);
    await showPictures(told);
  }

  function showWorks(told) {
    at("runs-works").replaceChildren(...told.works.map((one) => h("li", {}, `${one.what}: ${one.running ? "at work … " : ""}${one.words}`)));
  }

  const titles = (place) => (place.endsWith("overlay.png") ? "Validation questions, predictions and truths" : `The worst and the best answers, ${place.split("/").at(-2).replace("evaluation-", "")}`);
  async function showPictures(told) {
    const sheets = await Promise.all(told.pictures.map(async (place) => h("figure", {}, h("figcaption", {}, titles(place)), h("div", { class: "sheet", tabindex: 0 }, h("img", { alt: titles(place), src: await picture("picture", { picture: place, most: 2400 }) })))));
    const legend = h("p", { class: "note" }, "Prediction red, truth blue; violet is ignored: no score counts it.");
    at("runs-pictures")?.replaceChildren(...sheets, sheets.length ? legend : "");
  }

  // Look again until what was started has ended.
  async function follow(run) {
    const told = await whole(run);
    showWorks(told);
    if (told.works.some((one) => one.running)) return setTimeout(() => at("runs-works")?.isConnected && follow(run), 1500);
    await list();
    return showPictures(told);
  }
}
