// Curves as SVG: lines of points, and level lines such as a forecast.
import { h, svg } from "./base.js";

const WIDTH = 460, HEIGHT = 240, LEFT = 58, RIGHT = 12, TOP = 10, BOTTOM = 34;

// A figure. curves: [{name, points: [[x, y], …]}], levels: [{name, y}]; `unit` divides and names y.
export function plot(title, curves, { levels = [], unit = 1, digits = 3, across = "step", none = "nothing yet", from = null } = {}) {
  const drawn = curves.map((curve) => ({ ...curve, points: thinned(curve.points.map(([x, y]) => [x, y / unit])) }));
  const points = drawn.flatMap((curve) => curve.points);
  const caption = h("figcaption", {}, title);
  if (!points.length) return h("figure", {}, caption, h("p", { class: "note" }, none));
  const lines = levels.map((level) => ({ ...level, y: level.y / unit }));
  const x = scale(points.map(([value]) => value), LEFT, WIDTH - RIGHT, null);
  const y = scale([...points.map(([, value]) => value), ...lines.map((line) => line.y)], HEIGHT - BOTTOM, TOP, from);
  const picture = svg("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${spoken(drawn, lines, digits)}` });
  for (const tick of y.ticks) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }),
      svg("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, Number(tick.toPrecision(digits)).toString()));
  }
  for (const tick of x.ticks.filter((one) => Number.isInteger(one))) picture.append(svg("text", { x: x(tick), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, String(tick)));
  picture.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
    svg("line", { class: "axis", x1: LEFT, x2: LEFT, y1: TOP, y2: HEIGHT - BOTTOM }),
    svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, across));
  for (const line of lines) picture.append(svg("line", { class: line.style ?? "limit", x1: LEFT, x2: WIDTH - RIGHT, y1: y(line.y), y2: y(line.y) }));
  drawn.forEach((curve, number) => {
    picture.append(svg("path", { class: `c${number % 6}`, d: curve.points.map(([a, b], place) => `${place ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("") }));
    if (curve.points.length < 40) for (const [a, b] of curve.points) picture.append(svg("circle", { class: `f${number % 6}`, cx: x(a), cy: y(b), r: 3 }));
  });
  const keys = [...drawn.map((curve, number) => [`f${number % 6}`, curve.name, curve.points.at(-1)?.[1]]),
    ...lines.map((line) => ["", `${line.name} (line)`, line.y])];
  return h("figure", {}, caption, picture, h("p", { class: "note" }, keys.map(([style, name, last]) => h("span", {},
    style ? h("span", { class: `key ${style}` }) : null, `${name}${last === undefined ? "" : ` ${Number(last.toPrecision(digits))}`}   `))));
}

function spoken(curves, lines, digits) {
  const told = curves.filter((curve) => curve.points.length).map((curve) => `${curve.name} is ${curve.points.at(-1)[1].toPrecision(digits)} at last`);
  return [...told, ...lines.map((line) => `${line.name} ${line.y.toPrecision(digits)}`)].join(", ");
}

// At most 600 points: of every stretch its lowest and its highest.
function thinned(points) {
  if (points.length <= 600) return points;
  const length = Math.ceil(points.length / 300), kept = [];
  for (let start = 0; start < points.length; start += length) {
    const part = points.slice(start, start + length).sort((a, b) => a[1] - b[1]);
    kept.push(...[part[0], part.at(-1)].sort((a, b) => a[0] - b[0]));
  }
  return kept;
}

function scale(values, start, end, from) {
  let low = from ?? Math.min(...values), high = Math.max(...values);
  if (high <= low) { high = low + Math.max(1e-9, Math.abs(low) || 1); }
  const step = nice((high - low) / 4);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) ticks.push(Math.abs(tick) < step * 1e-6 ? 0 : tick);
  const found = (value) => start + ((value - low) / (high - low)) * (end - start);
  found.ticks = ticks;
  return found;
}

function nice(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return power * [1, 2, 5, 10].find((one) => one * power >= step);
}
