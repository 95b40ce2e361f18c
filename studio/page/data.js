// The Data tab: check, preview, import, and the question editor.
import { ask, at, busy, h, option, placeField, picture, row } from "./base.js";
import { setUpEditor } from "./editor.js";

export function setUpData(section, shared) {
  const home = shared.choices.folders[0];
  const data = placeField("data-data", "Data folder", ["data"]);
  const found = h("div", { id: "data-found", "aria-live": "polite" });
  const split = h("select", { id: "data-split", "aria-label": "Split" }, ["train", "val", "test"].map((one) => option(one)));
  let seed = 0;

  const telling = (place) => (words) => place.replaceChildren(h("p", { class: "note" }, words));
  const needed = () => {
    if (!data.value) throw new Error("choose a data folder first, or import one below");
    return data.value;
  };
  const check = h("button", { type: "button", id: "data-check", onclick: () => busy(check, found, async () => showCheck(await ask("check", { data: needed() }, telling(found)))) }, "Check");
  const preview = h("button", { type: "button", id: "data-preview", onclick: () => busy(preview, found, async () => {
    const sheet = await picture("sheet", { data: needed(), split: split.value, seed: seed++ });
    found.replaceChildren(h("div", { class: "sheet", tabindex: 0 }, h("img", { id: "data-sheet", src: sheet, alt: `Items of ${split.value}: targets blue, ignored regions violet` })),
      h("p", { class: "note" }, "Targets blue, ignored regions violet. Press Preview again for other items."));
  }) }, "Preview");

  function showCheck(told) {
    const counts = Object.entries(told.splits).map(([name, values]) => row([name, Object.entries(values).map(([what, value]) => `${what.replaceAll("_", " ")} ${value}`).join(", ") || "no valid item"]));
    found.replaceChildren(
      h("p", {}, h("strong", { class: "verdict", id: "data-verdict" }, told.count ? `${told.count} findings` : "no findings")),
      h("table", {}, counts, told.sets.map((one) => row([one.name, `${one.pictures} pictures`]))),
      told.findings.length < told.count ? h("p", { class: "note" }, `The first ${told.findings.length} of them:`) : "",
      h("ul", {}, told.findings.map((one) => h("li", {}, one))),
      ...told.hints.map((one) => h("p", { class: "note" }, one)));
  }

  const train = h("button", { type: "button", onclick: () => { try { shared.train({ ...shared.wanted(), data: needed() }); shared.open("train"); } catch (error) { found.replaceChildren(h("p", { class: "error" }, error.message)); } } }, "Train on it");
  const imported = h("div", { id: "import-said", role: "status" }), made = h("div", { id: "make-said", role: "status" });
  const take = (told, place) => {
    data.set(told.data);
    place.replaceChildren(h("p", {}, `${told.data}: ${told.words}`), ...told.notes.map((one) => h("p", { class: "note" }, one)));
  };
  section.replaceChildren(
    h("h2", {}, "Look at data"),
    h("div", { class: "form" }, h("label", { for: "data-data" }, "Data"), data, h("label", { for: "data-split" }, "Split"), split,
      h("div", { class: "buttons" }, check, preview, train)),
    found, h("h2", {}, "Import annotations"),
    h("p", { class: "note" }, `A folder of LabelMe or YOLO, or a JSON file of COCO, Label Studio, CVAT (exported as COCO) or Sa2VA. The new data set goes into ${home}.`),
    importForm(imported), imported,
    h("h2", {}, "No data yet? Make a set to try with"), makeForm(made), made, h("h2", {}, "Ask a question about a picture, and outline its answer"));
  setUpEditor(section, shared);
  shared.data = (place) => data.set(place);

  function makeForm(said) {
    const start = h("button", { id: "make-start" }, "Make it");
    const number = (id, value) => h("input", { id, type: "number", min: 1, max: 10000, value });
    return h("form", { onsubmit: (event) => { event.preventDefault(); busy(start, said, async () => take(await ask("synthesise", {
      name: at("make-name").value.trim(), train: at("make-train").valueAsNumber, val: at("make-val").valueAsNumber,
    }), said)); } },
    h("label", { for: "make-train" }, "To train on"), number("make-train", 160), h("label", { for: "make-val" }, "To validate on"), number("make-val", 40),
    h("label", { for: "make-name" }, "Name"), h("input", { id: "make-name", required: true, maxlength: 64, value: "synthetic" }), h("div", { class: "buttons" }, start));
  }

  function importForm(said) {
    const source = placeField("import-source", "Annotations", ["folder", "notes", "data"]);
    const questions = placeField("import-questions", "File of questions", ["notes"]);
    const pictures = placeField("import-pictures", "Folder of the pictures", ["folder", "data"]);
    const start = h("button", { class: "main", id: "import-start" }, "Import");
    const number = (id, value) => h("input", { id, type: "number", min: 0, max: 0.9, step: 0.05, value });
    return h("form", { onsubmit: (event) => { event.preventDefault(); busy(start, said, async () => {
      if (!source.value) throw new Error("choose the annotations");
      const told = await ask("import", {
        source: source.value, name: at("import-name").value.trim(), questions: questions.value, pictures: pictures.value,
        val: at("import-val").valueAsNumber, test: at("import-test").valueAsNumber, skip_broken: at("import-skip").valueAsNumber || 0,
        encoding: at("import-encoding").value.trim() || null, frame: at("import-frame").value || null, iscrowd: at("import-iscrowd").value || null,
      }, telling(said));
      take(told, said);
    }); } },
    h("label", { for: "import-source" }, "Annotations"), source,
    h("label", { for: "import-questions" }, "Questions"), questions,
    h("label", { for: "import-pictures" }, "Pictures, if elsewhere"), pictures,
    h("label", { for: "import-name" }, "Name of the new data"), h("input", { id: "import-name", required: true, maxlength: 64 }),
    h("details", {}, h("summary", {}, "More"), h("div", { class: "form" },
      h("label", { for: "import-val" }, "Share to validate on"), number("import-val", 0.1),
      h("label", { for: "import-test" }, "Share for a test"), number("import-test", 0),
      h("label", { for: "import-skip" }, "Broken entries to skip"), h("input", { id: "import-skip", type: "number", min: 0, value: 0 }),
      h("label", { for: "import-encoding" }, "Encoding"), h("input", { id: "import-encoding", placeholder: "of files that are not UTF-8, such as gbk" }),
      h("label", { for: "import-frame" }, "Outlines on rotated pictures"), h("select", { id: "import-frame" }, option("", "as the file says"), option("stored"), option("upright")),
      h("label", { for: "import-iscrowd" }, "COCO's iscrowd 1"), h("select", { id: "import-iscrowd" }, option("", "as usual"), option("object"), option("crowd")))),
    h("div", { class: "buttons" }, start));
  }
}
