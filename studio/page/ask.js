// The Ask tab: a picture, questions, and the masks of the answers as layers.
import { ask, at, busy, drawn, h, option, placeField, problem, read, send } from "./base.js";

const COLOURS = ["#ff3c00", "#00c8ff", "#ffdc00", "#a03cff", "#00dc5a", "#ff6ec8", "#0046ff", "#965a1e"]; // as overlays.py has them

export function setUpAsk(section, shared) {
  const model = h("select", { id: "ask-model", onchange: () => choose() });
  const takes = h("p", { id: "ask-memory", class: "note", "aria-live": "polite" });
  const load = h("button", { type: "button", class: "main", id: "ask-load", disabled: true, onclick: () => busy(load, said, async () => { showDesk(await ask("load", { model: model.value })); }) }, "Load");
  const unload = h("button", { type: "button", id: "ask-unload", onclick: () => busy(unload, said, async () => { showDesk(await ask("unload")); }) }, "Unload");
  const loaded = h("span", { id: "ask-loaded", role: "status" });
  const said = h("div", { id: "ask-said" });
  const file = h("input", { type: "file", id: "ask-file", accept: "image/*", onchange: () => file.files[0] && take(file.files[0]) });
  const place = placeField("ask-place", "Picture", ["picture"]);
  const camera = h("button", { type: "button", id: "ask-camera", onclick: () => busy(camera, said, photograph) }, "Take one with the camera");
  const drop = h("div", { class: "drop", id: "ask-drop", tabindex: 0,
    ondragover: (event) => event.preventDefault(), ondrop: (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]); } },
  h("p", {}, "Drop a picture here, paste one (Ctrl+V), or choose:"), h("div", { class: "buttons" }, file, camera), place);
  const video = h("video", { class: "shown", hidden: true, autoplay: true, muted: true, playsinline: true });
  const image = h("img", { class: "shown", id: "ask-image", hidden: true, alt: "The picture with its answers" });
  const put = h("button", { class: "main", id: "ask-put", disabled: true }, "Ask");
  const form = h("form", { onsubmit: (event) => { event.preventDefault(); busy(put, said, answer); } },
    h("label", { for: "ask-questions" }, "Questions"), h("textarea", { id: "ask-questions", rows: 3, required: true, placeholder: "one a line" }),
    h("span", { class: "check" }, h("input", { type: "checkbox", id: "ask-phrase" }), "phrases, not whole sentences"),
    h("span", { class: "check" }, h("input", { type: "checkbox", id: "ask-explain" }), "ask for the reason, too"),
    h("div", { class: "buttons" }, put));
  const answers = h("div", { id: "ask-answers", "aria-live": "polite" });
  const opacity = h("input", { type: "range", id: "ask-opacity", min: 0, max: 1, step: 0.05, value: 0.35, oninput: () => draw() });
  section.replaceChildren(h("h2", {}, "Ask"),
    h("div", { class: "form" }, h("label", { for: "ask-model" }, "Model"), model, takes, h("div", { class: "buttons" }, load, unload, loaded)),
    said, drop, h("div", { class: "side" }, h("div", {}, video, image), h("div", {}, form, answers)));

  let shown = null, layers = [], rows = [], drawing = false, again = false;
  document.addEventListener("paste", (event) => {
    const pasted = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (pasted && shared.now === "ask") take(pasted);
  });
  place.addEventListener("change", async () => {
    if (!place.value) return;
    try {
      await take(await drawn("picture", { picture: place.value, most: 2400 }));
    } catch (error) { said.replaceChildren(problem(error)); }
  });

  async function list() {
    const [{ models }, desk] = await Promise.all([ask("models"), ask("desk")]);
    const before = model.value || desk.loaded;
    model.replaceChildren(...models.map((one) => option(one.model, `${one.model}: ${one.name}, ${one.kind}`)));
    if (models.some((one) => one.model === before)) model.value = before;
    load.disabled = !models.length;
    takes.textContent = models.length ? "" : "No trained model here yet: train one, or start lisa-studio with its folder.";
    showDesk(desk);
    if (models.length) await choose();
  }

  async function choose() {
    takes.textContent = "How much memory does it take? …";
    try {
      takes.textContent = (await ask("memory", { model: model.value })).words;
    } catch (error) { takes.textContent = error.message; }
  }

  function showDesk(desk) {
    loaded.textContent = desk.loaded ? `${desk.loaded} is loaded (${desk.facts.model} on ${desk.facts.device}${desk.facts.memory ? `; ${desk.facts.memory}` : ""}); it is unloaded after ten minutes without a question` : "no model is loaded";
    unload.disabled = !desk.loaded;
    put.disabled = !desk.loaded;
  }

  async function take(blob) {
    const bytes = new Uint8Array(await blob.arrayBuffer());
    let text = "";
    for (let start = 0; start < bytes.length; start += 32768) text += String.fromCharCode(...bytes.subarray(start, start + 32768));
    shown = { blob, base64: btoa(text) };
    layers = rows = [];
    answers.replaceChildren();
    await draw().catch((error) => said.replaceChildren(problem(error)));
  }

  async function photograph() {
    if (!navigator.mediaDevices) throw new Error("this browser gives pages no camera at this address");
    const stream = await navigator.mediaDevices.getUserMedia({ video: true }).catch((error) => { throw new Error(`no camera: ${error.message}`); });
    video.srcObject = stream;
    video.hidden = false;
    await video.play();
    await new Promise((done) => setTimeout(done, 800)); // it adjusts to the light
    const still = h("canvas", { width: video.videoWidth, height: video.videoHeight });
    still.getContext("2d").drawImage(video, 0, 0);
    stream.getTracks().forEach((one) => one.stop());
    video.hidden = true;
    await take(await new Promise((done) => still.toBlob(done, "image/png")));
  }

  async function answer() {
    if (!shown) throw new Error("choose a picture first");
    const asked = shown, body = new FormData();
    body.append("picture", asked.blob, "picture");
    const questions = at("ask-questions").value.split("\n").map((one) => one.trim()).filter(Boolean);
    questions.forEach((one) => body.append("question", one));
    body.append("kind", at("ask-explain").checked ? "explain" : at("ask-phrase").checked ? "phrase" : "sentence");
    const response = await send("segment", { body });
    if (response.status === 503) showDesk(await ask("desk")); // unloaded meanwhile, or its process has gone
    const told = await read(response);
    if (shown !== asked) return; // another picture was chosen meanwhile
    rows = told.answers;
    layers = rows.flatMap((row) => row.masks.map((mask) => ({ mask, question: row.question, on: true })));
    showAnswers(told);
    await draw();
  }

  function showAnswers(told) {
    const lines = rows.map((row) => h("p", {}, h("strong", {}, row.question), h("br"), row.answer || "(no words)",
      h("span", { class: "note" }, `  ${row.seconds.toFixed(1)}\u00a0s${row.masks.length ? "" : "; no mask in this answer"}${row.masks_left_out ? `; ${row.masks_left_out} masks left out` : ""}`)));
    const boxes = layers.map((layer, number) => {
      const key = h("span", { class: "key" });
      key.style.background = COLOURS[number % COLOURS.length];
      const share = (100 * layer.mask.area) / (told.height * told.width);
      return h("div", { class: "check" }, h("input", { type: "checkbox", id: `ask-layer-${number}`, checked: true, onchange: (event) => { layer.on = event.target.checked; draw(); } }),
        h("label", { for: `ask-layer-${number}` }, key, `${layer.question} (${share.toFixed(1)} % of the picture) `),
        h("button", { type: "button", id: `ask-mask-${number}`, onclick: () => saveMask(number) }, "PNG"));
    });
    answers.replaceChildren(...lines, ...boxes, ...(layers.length ? [
      h("p", { class: "note" }, `The masks have ${told.width} × ${told.height} pixels.`),
      h("label", { class: "check" }, "Opacity", opacity),
      h("div", { class: "buttons" }, h("button", { type: "button", id: "ask-overlay", onclick: saveOverlay }, "Picture with layers"),
        h("button", { type: "button", id: "ask-rle", onclick: saveRuns }, "Masks as COCO's RLE"))] : []));
  }

  const laid = async (more) => URL.createObjectURL(await drawn("draw", { picture: shown.base64, masks: layers.map((one) => one.mask), shown: layers.flatMap((one, number) => (one.on ? [number] : [])), opacity: opacity.valueAsNumber, ...more }));

  // One drawing at a time; what was asked for meanwhile is drawn once, as it is then.
  async function draw() {
    again = true;
    if (drawing) return;
    drawing = true;
    try {
      while (again) {
        again = false;
        const before = image.src;
        image.src = await laid({});
        URL.revokeObjectURL(before);
        image.hidden = false;
      }
    } finally { drawing = false; }
  }

  const saveMask = async (number) => give(await laid({ kind: "mask", shown: [number], most: 65535 }), `mask-${number + 1}.png`);
  const saveOverlay = async () => give(await laid({ most: 2400, caption: rows.map((row) => row.question).join(" / ") }), "overlay.png");
  const saveRuns = () => give(URL.createObjectURL(new Blob([JSON.stringify(rows, null, 2)], { type: "application/json" })), "answers.json");
  const give = (address, name) => h("a", { href: address, download: name }).click();

  shared.shown.ask = () => list().catch((error) => said.replaceChildren(problem(error)));
}
