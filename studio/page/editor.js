// The question editor: outlines drawn on a picture, its question and answer, saved as ReasonSeg.
import { ask, at, busy, h, option, picture, placeField } from "./base.js";

const NEAR = 9, LEAST = 680; // pixels of the screen: to a corner that is grabbed; of a picture

export function setUpEditor(section) {
  const place = placeField("edit-picture", "Picture", ["picture"]);
  const said = h("div", { id: "edit-said", role: "status" });
  const canvas = h("canvas", { id: "edit-canvas", tabindex: 0, "aria-label": "Picture to outline: click sets corners, Enter closes an outline, Delete removes the last corner" });
  const list = h("ul", { id: "edit-outlines" });
  const next = h("button", { type: "button", id: "edit-next", onclick: () => busy(next, said, another) }, "Next picture");
  const save = h("button", { class: "main", id: "edit-save" }, "Save the question");
  const label = h("select", { id: "edit-label" }, option("target", "what the answer is"), option("ignore", "to be ignored"));
  const work = h("div", { hidden: true, class: "side" },
    h("div", {}, canvas, h("p", { class: "note" }, "Click the corners; click the first one again, or press Enter, to close. Drag a corner to move it. Delete takes the last corner back.")),
    h("form", { style: null, onsubmit: (event) => { event.preventDefault(); keep(); } },
      h("label", { for: "edit-label" }, "Next outline"), label, list,
      h("label", { for: "edit-question" }, "Question"), h("textarea", { id: "edit-question", rows: 3, required: true, maxlength: 2000 }),
      h("span", { class: "check" }, h("input", { type: "checkbox", id: "edit-sentence", checked: true }), "a whole sentence, not a phrase"),
      h("label", { for: "edit-answer" }, "Answer in words"), h("textarea", { id: "edit-answer", rows: 2, maxlength: 2000, placeholder: "optional" }),
      h("label", { for: "edit-data" }, "Into data set"), h("input", { id: "edit-data", required: true, maxlength: 64, value: "my-questions" }),
      h("label", { for: "edit-split" }, "Split"), h("select", { id: "edit-split" }, ["train", "val", "test"].map((one) => option(one))),
      h("div", { class: "buttons" }, save, next)));
  section.append(h("div", { class: "form" }, h("label", { for: "edit-picture" }, "Picture"), place), work, said);

  let shown = null, size = { width: 1, height: 1 }, outlines = [], open = [], grabbed = null;
  place.addEventListener("change", () => place.value && busy(place.querySelector("button"), said, load));

  // The picture after this one in its folder; the first one after the last.
  async function another() {
    const { entries } = await ask("list", { place: place.value.split("/").slice(0, -1).join("/") });
    const pictures = entries.filter((one) => one.kind === "picture").map((one) => one.place);
    place.set(pictures[(pictures.indexOf(place.value) + 1) % pictures.length]);
  }

  async function load() {
    const told = await ask("question", { picture: place.value });
    const image = new Image();
    image.src = await picture("picture", { picture: place.value, most: 1200 });
    await image.decode();
    shown = image;
    size = told;
    outlines = told.outlines;
    open = [];
    at("edit-question").value = told.question;
    at("edit-answer").value = told.answer;
    at("edit-sentence").checked = told.is_sentence;
    const way = place.value.split("/");
    const splits = ["train", "val", "test"];
    if (splits.includes(way.at(-2)) && way.length > 2) { // an item of a data set: it is changed in place
      at("edit-split").value = way.at(-2);
      at("edit-data").value = way[way.at(-3) === "ReasonSeg" ? way.length - 4 : way.length - 3];
    }
    const zoom = Math.max(1, LEAST / Math.max(image.naturalWidth, image.naturalHeight)); // small ones are hard to click
    canvas.width = image.naturalWidth * zoom;
    canvas.height = image.naturalHeight * zoom;
    work.hidden = false;
    draw();
  }

  const scale = () => canvas.width / size.width; // of the picture's pixels to the canvas's
  const toPicture = (event) => {
    const box = canvas.getBoundingClientRect();
    const clip = (value, most) => Math.min(most, Math.max(0, value));
    return [clip(((event.clientX - box.left) / box.width) * size.width, size.width - 1), clip(((event.clientY - box.top) / box.height) * size.height, size.height - 1)];
  };
  const distance = ([a, b], [c, d]) => Math.hypot(a - c, b - d) * (canvas.getBoundingClientRect().width / size.width);

  canvas.addEventListener("pointerdown", (event) => {
    const point = toPicture(event);
    const corners = [...outlines.flatMap((one) => one.points.map((_, number) => [one.points, number])), ...open.map((_, number) => [open, number])];
    const near = corners.find(([points, number]) => distance(points[number], point) < NEAR);
    if (near && near[0] === open && near[1] === 0 && open.length > 2) return close();
    if (near) { grabbed = near; canvas.setPointerCapture(event.pointerId); return undefined; }
    open.push(point);
    return draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!grabbed) return;
    grabbed[0][grabbed[1]] = toPicture(event);
    draw();
  });
  canvas.addEventListener("pointerup", () => { grabbed = null; });
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && open.length > 2) close();
    else if (["Delete", "Backspace"].includes(event.key) && open.length) open.pop();
    else return;
    event.preventDefault();
    draw();
  });

  function close() {
    outlines.push({ label: label.value, points: open });
    open = [];
    draw();
  }

  function draw() {
    const brush = canvas.getContext("2d");
    brush.drawImage(shown, 0, 0, canvas.width, canvas.height);
    const trace = (points, closed) => {
      brush.beginPath();
      points.forEach(([x, y], number) => brush[number ? "lineTo" : "moveTo"]((x + 0.5) * scale(), (y + 0.5) * scale()));
      if (closed) brush.closePath();
    };
    for (const { label: kind, points, closed } of [...outlines.map((one) => ({ ...one, closed: true })), { label: label.value, points: open, closed: false }]) {
      const colour = kind === "target" ? "0, 200, 255" : "255, 220, 0";
      trace(points, closed);
      if (closed) { brush.fillStyle = `rgba(${colour}, 0.25)`; brush.fill(); }
      brush.lineWidth = 4; brush.strokeStyle = "black"; brush.stroke(); // dark outside, light inside: seen on any ground
      brush.lineWidth = 2; brush.strokeStyle = `rgb(${colour})`; brush.stroke();
      const half = points.length > 30 ? 1.5 : 3.5;
      brush.fillStyle = "white";
      for (const [x, y] of points) brush.fillRect((x + 0.5) * scale() - half, (y + 0.5) * scale() - half, 2 * half, 2 * half);
    }
    list.replaceChildren(...outlines.map((one, number) => h("li", {}, `${one.label}, ${one.points.length} corners `,
      h("button", { type: "button", onclick: () => { outlines.splice(number, 1); draw(); } }, "Remove"))));
  }

  const keep = () => busy(save, said, async () => {
    if (open.length > 2) close();
    const told = await ask("save-question", {
      picture: place.value, data: at("edit-data").value.trim(), split: at("edit-split").value, question: at("edit-question").value,
      is_sentence: at("edit-sentence").checked, answer: at("edit-answer").value, outlines,
    });
    place.set(told.picture); // loads it as it was saved
    said.replaceChildren(`${told.picture}: ${told.words}`);
  });
}
