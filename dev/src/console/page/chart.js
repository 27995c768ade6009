// A line chart of the last minutes. The background is shaded during the periods of faults.
import { h, svg } from "./dom.js";
import { clock, measure } from "./format.js";

const WIDTH = 320, HEIGHT = 120, LEFT = 44, RIGHT = 6, TOP = 8, BOTTOM = 16;

/** The colours of lines whose names denote a good or bad result, such as `failed`. */
const TONES = {
  "5xx": "bad", failed: "bad", error: "bad", server_error: "bad", timeout: "warn", connect_error: "bad",
  "4xx": "warn", declined: "warn", "needs review": "bad", succeeded: "good", success: "good",
};
/** Returns the colour class of a line: by the meaning of its name, or else by its position. */
const tone = (name, position) => TONES[name] ?? `line${position % 4}`;

/** Returns the top of the y axis: the smallest round number that is at least 99.9 % of the value, or 1 without a positive value. */
function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

/** Returns the lines of a chart as `[name, [[at, value]]]`. Lines in `order` come first, so that their colours are constant. */
function linesOf(points, id, order) {
  const lines = new Map();
  for (const point of points) {
    for (const [name, value] of Object.entries(point.charts[id] ?? {})) {
      if (!lines.has(name)) lines.set(name, []);
      lines.get(name).push([point.at, value]);
    }
  }
  const position = (name) => (order.includes(name) ? order.indexOf(name) : order.length);
  return [...lines].sort(([one], [other]) => position(one) - position(other) || one.localeCompare(other));
}

/** Returns an SVG path through the values, interrupted between values that are more than `gap` milliseconds apart. */
function path(values, x, y, gap) {
  let previous = -Infinity;
  return values.map(([at, value]) => {
    const command = at - previous > gap ? "M" : "L";
    previous = at;
    return `${command}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
  }).join("");
}

/** Creates the element of a chart. `periods` are the times during which faults were on, and `span` is the length of the time axis in milliseconds. */
export function chart({ id, title, unit, lines: order, expressions }, points, periods, span) {
  const lines = linesOf(points, id, order);
  const end = points.at(-1)?.at ?? Date.now();
  const begin = end - span;
  const shown = lines.map(([name, values]) => [name, values.filter(([at]) => at >= begin)]);
  const top = roundUp(Math.max(0, ...shown.flatMap(([, values]) => values.map(([, value]) => value))));
  const x = (at) => LEFT + ((at - begin) / span) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);

  const grid = [0, 0.5, 1].map((part) => [
    svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(top * part), y2: y(top * part) }),
    svg("text", { class: "tick", x: LEFT - 5, y: y(top * part) + 3, "text-anchor": "end" }, measure(top * part, unit)),
  ]);
  const times = [[begin, "start"], [end, "end"]].map(([at, anchor]) =>
    svg("text", { class: "tick", x: x(at), y: HEIGHT - 3, "text-anchor": anchor }, clock(at)));
  const bands = periods.map(({ began, ended, fault }) => {
    const from = Math.max(begin, new Date(began).getTime());
    const to = Math.min(end, ended ? new Date(ended).getTime() : end);
    if (to <= from) return null;
    return svg("rect", { class: "band", x: x(from), width: Math.max(1, x(to) - x(from)), y: TOP, height: HEIGHT - TOP - BOTTOM },
      svg("title", {}, fault));
  });
  const paths = shown.map(([name, values], position) =>
    svg("path", { class: `line ${tone(name, position)}`, d: path(values, x, y, 15_000) }));
  const legend = shown.map(([name, values], position) => {
    const last = values.at(-1);
    const current = last && end - last[0] < 15_000 ? measure(last[1], unit) : "–";
    return h("li", {}, h("i", { class: tone(name, position) }), name, " ", h("b", {}, current));
  });
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title }, bands, grid, times, paths);
  return h("figure", { class: "chart", "data-chart": id, title: expressions.join("\n") },
    h("figcaption", {}, title), drawing, h("ul", { class: "legend" }, legend));
}
