// The tabs. What one tab hands to another goes through `shared`.
import { ask, at, h, problem } from "./base.js";
import { setUpAsk } from "./ask.js";
import { setUpData } from "./data.js";
import { setUpPlan } from "./plan.js";
import { setUpRuns } from "./runs.js";
import { setUpTrain } from "./train.js";

const TABS = ["plan", "data", "train", "ask", "runs"];
const shared = { open, shown: {} };

function open(name) {
  for (const tab of TABS) {
    const chosen = tab === name;
    at(tab).hidden = !chosen;
    at(`tab-${tab}`).setAttribute("aria-selected", chosen);
    at(`tab-${tab}`).tabIndex = chosen ? 0 : -1;
  }
  history.replaceState(null, "", `#${name}`);
  shared.now = name;
  shared.shown[name]?.();
}

for (const tab of TABS) at(`tab-${tab}`).addEventListener("click", () => open(tab));
document.querySelector("nav").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = TABS[(TABS.indexOf(shared.now) + step + TABS.length) % TABS.length];
  open(next);
  at(`tab-${next}`).focus();
});

try {
  shared.choices = await ask("choices");
  setUpPlan(at("plan"), shared);
  setUpTrain(at("train"), shared);
  setUpData(at("data"), shared);
  setUpAsk(at("ask"), shared);
  setUpRuns(at("runs"), shared);
  const named = location.hash.slice(1);
  open(TABS.includes(named) ? named : "plan");
} catch (error) {
  at("plan").hidden = false;
  at("plan").replaceChildren(h("h2", {}, "The page could not be set up"), problem(error));
}
