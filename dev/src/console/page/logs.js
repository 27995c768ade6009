// The live log: the newest lines that match the filter in the URL.
import { fetchJson, h, placeholder, query, replace } from "./dom.js";
import { clock } from "./format.js";

const FILTERS = ["level", "target", "text", "correlation_id", "trace_id"];
const LEVELS = [["", "all levels"], ["ERROR", "errors"], ["WARN", "warnings and errors"], ["INFO", "info and above"], ["DEBUG", "debug and above"]];

/** Maximum number of lines on the page. The console stores more lines, which a filter can select. */
const MAX_LINES = 500;

let root, list, count, filters, navigate, paused, busy, last, replicas;

export async function open(element, address, go) {
  root = element;
  navigate = go;
  paused = false;
  filters = Object.fromEntries(FILTERS.map((name) => [name, address.searchParams.get(name) ?? ""]));
  list = h("div", { class: "lines live", role: "log", "aria-live": "off" });
  count = h("p", { class: "count" });
  replace(root, form(), h("div", { class: "panel" }, count, list));
  await load();
}

export const update = (changed) => changed.has("logs") && !paused ? load(last) : undefined;

function change(name, value) {
  filters[name] = value.trim();
  navigate(`/logs${query(filters)}`, { instead: true, stay: true });
  load();
}

function form() {
  const text = (name, label, width) => h("label", {}, h("span", {}, label), h("input", {
    name, value: filters[name], size: width, autocomplete: "off", spellcheck: "false",
    oninput: (event) => change(name, event.target.value),
  }));
  const level = h("label", {}, h("span", {}, "Level"), h("select", { name: "level", onchange: (event) => change("level", event.target.value) },
    LEVELS.map(([value, name]) => h("option", { value, selected: value === filters.level }, name))));
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: ({ target }) => {
    paused = !paused;
    target.setAttribute("aria-pressed", String(paused));
    if (!paused) load();
  } }, "Pause");
  return h("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
    text("text", "Text", 24), level, text("target", "Target", 14), text("correlation_id", "Correlation id", 22), text("trace_id", "Trace id", 22), pause,
    h("a", { class: "button", href: "/logs" }, "Clear"));
}

/** The most important fields, which are displayed first. */
const FIRST_FIELDS = ["error", "status", "method", "path", "duration_ms", "seal_number"];
const LAST_FIELDS = ["user_id", "client_address", "audit_log"];
const rank = (name) => (FIRST_FIELDS.includes(name) ? FIRST_FIELDS.indexOf(name) : LAST_FIELDS.includes(name) ? 99 : 50);

/** Creates the element of a log line. The element has a link to the line's trace or, if `onspan` is given, a button that selects the line's span. A click on the line shows its fields. */
export function line(one, { chosen = false, onspan = null, replica = false } = {}) {
  const fields = Object.entries(one.fields).sort(([left], [right]) => rank(left) - rank(right));
  const where = onspan
    ? one.span_id && h("button", { type: "button", class: "link", onclick: () => onspan(one.span_id) }, "span")
    : one.trace_id && h("a", { href: `/traces/${one.trace_id}${query({ span: one.span_id })}` }, "trace");
  return h("details", { class: `line ${one.level.toLowerCase()}${chosen ? " chosen" : ""}` },
    h("summary", { "data-row": true },
      h("time", { datetime: one.timestamp }, clock(one.timestamp, true)),
      h("span", { class: "level" }, one.level || "·"),
      replica && h("span", { class: "muted" }, `#${one.replica}`),
      h("span", { class: "target muted" }, one.target.replace(/^app::/, "")),
      h("span", { class: "message" }, one.message, " ", h("span", { class: "inline" }, fields.filter(([name]) => name !== "audit_log").map(([name, value]) => [h("span", { class: "field" }, h("i", {}, `${name}=`), formatValue(value)), " "]))),
      h("span", { class: "where" }, where)),
    h("dl", { class: "attributes" },
      [["target", one.target], ["replica", one.replica], ["correlation_id", one.correlation_id], ["trace_id", one.trace_id], ["span_id", one.span_id], ...fields]
        .filter(([, value]) => value !== "").map(([name, value]) => [h("dt", {}, name), h("dd", {}, formatValue(value))])));
}

const formatValue = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

async function load(after) {
  if (busy) { busy.again = true; return; }
  busy = { again: false };
  const requestedList = list;
  try {
    const received = await fetchJson(`/api/logs${query({ ...filters, after })}`);
    if (requestedList === list) render(received, after !== undefined);
  } finally {
    const { again } = busy;
    busy = null;
    if (again) load();
  }
}

function render(received, append) {
  if (!append) { list.replaceChildren(); replicas = new Set(); last = undefined; }
  if (received.length > 0) last = received.at(-1).number;
  received.forEach((one) => replicas.add(one.replica));
  if (list.querySelector(".placeholder") && received.length > 0) list.replaceChildren();
  // New lines are added at the top. On a page that is scrolled down, the browser's scroll anchoring then keeps the lines being read in place.
  list.prepend(...received.reverse().map((one) => line(one, { replica: replicas.size > 1 })));
  while (list.childElementCount > MAX_LINES) list.lastElementChild.remove();
  if (list.childElementCount === 0) list.append(placeholder("No stored line matches."));
  const lines = list.querySelectorAll(".line").length;
  count.textContent = `The newest ${lines} line${lines === 1 ? "" : "s"}${Object.values(filters).some(Boolean) ? " that match" : ""}, newest first`;
}
