// The Train tab: starts a training, and shows any run live. The training is a process of its own.
import { ask, at, busy, gib, h, option, placeField, problem } from "./base.js";
import { plot } from "./plot.js";

const GIB = 2 ** 30;

export function setUpTrain(section, shared) {
  const data = placeField("train-data", "Data to train on", ["data"]);
  const saved = placeField("train-plan", "Plan", ["notes"]);
  const said = h("div", { id: "train-said", role: "status" });
  const advised = h("p", { id: "train-advised" });
  const start = h("button", { class: "main", id: "train-start" }, "Start");
  const form = h("form", { onsubmit: (event) => { event.preventDefault(); begin(); } },
    h("label", { for: "train-data" }, "Data"), data,
    h("label", {}, "Plan"), advised,
    h("label", { for: "train-plan" }, "or a saved plan"), saved,
    h("label", { for: "train-epochs" }, "Epochs"), h("input", { id: "train-epochs", type: "number", min: 1, max: 10000, placeholder: "as planned" }),
    h("label", { for: "train-name" }, "Name of the run"), h("input", { id: "train-name", required: true, maxlength: 64 }),
    h("div", { class: "buttons" }, start));
  const chooser = h("select", { id: "train-run", "aria-label": "Run to watch", onchange: () => watch(chooser.value) });
  const live = h("div", { id: "train-live" });
  section.replaceChildren(h("h2", {}, "Train"), form, said, h("h2", {}, "Watch a run"), chooser, live);

  let wanted = {}, watched = null, seen = null, timer = null;
  shared.train = (given) => {
    wanted = given;
    if (given.data) data.set(given.data);
    saved.set(null);
    tellPlan();
  };
  const tellPlan = () => {
    advised.textContent = `the advisor's for this machine: ${wanted.model ?? "a model that fits"}`
      + [...(wanted.settings ?? [])].map((one) => `, ${one}`).join("");
    at("train-name").value ||= `${wanted.model ?? "run"}-${new Date().toISOString().slice(5, 16).replace(/[T:]/g, "-")}`;
  };
  saved.addEventListener("change", () => { advised.classList.toggle("note", saved.value !== null); });

  const begin = () => busy(start, said, async () => {
    if (!data.value) throw new Error("choose the data to train on");
    const { run } = await ask("train", {
      name: at("train-name").value.trim(), data: data.value, plan: saved.value,
      wanted: { ...wanted, card: "here", data: null }, epochs: at("train-epochs").valueAsNumber || null,
    });
    at("train-name").value = "";
    await list(run);
  });

  const named = (one) => `${one.name}: ${one.model || "no plan yet"}, ${one.state}`;

  // The runs to choose from; the one that trains is shown if none was chosen.
  async function list(chosen = watched) {
    const { runs } = await ask("runs");
    const busyOne = runs.find((one) => ["training", "starting"].includes(one.state));
    const now = runs.find((one) => one.run === chosen) ?? busyOne ?? runs[0];
    chooser.replaceChildren(...runs.map((one) => option(one.run, named(one))));
    chooser.hidden = !runs.length;
    if (!now) return live.replaceChildren(h("p", { class: "note" }, "No run yet."));
    chooser.value = now.run;
    watch(now.run);
  }

  function watch(run) {
    watched = run;
    seen = { at: 0, steps: [], evaluations: [] };
    clearTimeout(timer);
    look();
  }

  async function look() {
    const run = watched;
    try {
      const found = await ask("run", { run, at: seen.at });
      if (run !== watched) return;
      if (found.anew) { seen.steps = []; seen.evaluations = []; }
      seen.steps.push(...found.steps);
      seen.evaluations.push(...found.evaluations);
      seen.at = found.at;
      show(found);
      const active = ["training", "starting"].includes(found.state);
      if (shared.now === "train") timer = setTimeout(look, active ? 1000 : 4000);
    } catch (error) {
      live.prepend(problem(error));
      timer = setTimeout(() => { live.querySelectorAll(".error").forEach((one) => one.remove()); look(); }, 4000);
    }
  }

  const forecasts = {}; // made on the page, by the plan: of runs that were started without advice
  let buttons = null, opened = false;
  function show(found) {
    found.forecast ??= forecasts[found.hash];
    const trains = found.state === "training" || found.state === "starting";
    if (!buttons?.isConnected) {
      const answer = h("span", { role: "status", id: "train-answer" });
      const act = (id, action, text, take = () => {}) => {
        const button = h("button", { type: "button", id, onclick: () => busy(button, answer, async () => {
          const told = await ask(action, { run: watched });
          answer.textContent = told.words ?? "";
          take(told);
          look();
        }) }, text);
        return button;
      };
      buttons = h("div", { class: "buttons" }, act("train-stop", "stop", "Stop (it saves first)"), act("train-resume", "resume", "Resume"),
        act("train-forecast", "forecast", "Forecast its memory", (told) => { forecasts[told.plan] = told; }), answer);
      live.replaceChildren(h("div", { id: "train-shown" }), buttons, h("div", { id: "train-plots", class: "plots" }), h("div", { id: "train-more" }));
    }
    const listed = [...chooser.options].find((one) => one.value === found.run);
    if (listed) listed.textContent = named(found);
    at("train-stop").hidden = !trains;
    at("train-resume").hidden = trains || found.state === "complete";
    at("train-forecast").hidden = !found.on_card || Boolean(found.forecast);
    at("train-shown").replaceChildren(
      h("p", {}, h("strong", { class: "verdict", id: "train-state" }, found.state), ` ${found.words}`),
      h("p", {}, progress(found)),
      ...found.happened.map((one) => h("p", { class: "error" }, one)));
    at("train-plots").replaceChildren(...curves(found));
    at("train-more").querySelectorAll("details").forEach((one) => { opened = one.open; });
    at("train-more").replaceChildren(found.log.length ? h("details", { open: opened }, h("summary", {}, "What lisa-train prints"), h("pre", { id: "train-log" }, found.log.join("\n"))) : "");
  }

  function progress(found) {
    const step = seen.steps.at(-1);
    const words = [found.plan, step ? `epoch ${step.epoch} of ${found.epochs}, step ${step.step}` : ""];
    const left = /run ([\d:]+(?: days?, [\d:]+)?) left/.exec(found.left);
    if (found.state === "training" && left) words.push(`${left[1]} left`);
    return h("span", { id: "train-progress", "data-step": step?.step ?? 0 }, words.filter(Boolean).join("; "));
  }

  function curves(found) {
    const of = (name) => seen.steps.filter((one) => one[name] !== undefined).map((one) => [one.step, one[name]]);
    const judged = (name) => seen.evaluations.filter((one) => typeof one[name] === "number").map((one) => [one.step, one[name]]);
    const forecast = found.forecast;
    const levels = forecast?.needs ? [{ name: "forecast, at most", y: forecast.needs, style: "axis dashed" }] : [];
    if (forecast?.usable) levels.push({ name: "usable", y: forecast.usable });
    const none = found.on_card ? " (its plan came without a forecast)" : " (nothing is forecast on a CPU)";
    const measured = of("memory_bytes");
    return [
      plot("Loss", [{ name: "loss", points: of("loss") }], { none: "no step yet" }),
      plot("gIoU and cIoU on the validation questions", [{ name: "gIoU", points: judged("giou") }, { name: "cIoU", points: judged("ciou") }], { from: 0, none: "no evaluation yet" }),
      plot(`Memory, GiB${levels.length ? "" : none}`, [{ name: "measured", points: measured }], { unit: GIB, levels, from: 0, none: levels.length ? `forecast: ${gib(forecast.needs)} at most; nothing measured yet` : "nothing measured yet" }),
    ];
  }

  tellPlan();
  shared.shown.train = () => list().catch((error) => live.replaceChildren(problem(error)));
  shared.watch = (run) => { watched = run; shared.open("train"); };
}
