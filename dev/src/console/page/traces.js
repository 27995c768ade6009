// The newest traces that match the filter in the URL.
import { fetchJson, h, placeholder, query, replace } from "./dom.js";
import { clock, duration, short, statusClass } from "./format.js";

const FILTERS = ["route", "status", "min_ms", "correlation_id", "instance"];
const STATUSES = [["", "any status"], ["2xx", "2xx"], ["4xx", "4xx"], ["5xx", "5xx"], ["error", "with an error"]];

let root, list, filters, navigate, paused, busy, reloadPending;

export async function open(element, address, go) {
  root = element;
  navigate = go;
  paused = false;
  filters = Object.fromEntries(FILTERS.map((name) => [name, address.searchParams.get(name) ?? ""]));
  list = h("div", { class: "panel" }, placeholder("Waiting for the first trace…"));
  replace(root, form(), list);
  await load();
}

export const update = (changed) => changed.has("traces") && !paused ? load() : undefined;

function change(name, value) {
  filters[name] = value.trim();
  navigate(`/traces${query(filters)}`, { instead: true, stay: true });
  load();
}

function form() {
  const text = (name, label, width) => h("label", {}, h("span", {}, label), h("input", {
    name, value: filters[name], size: width, autocomplete: "off", spellcheck: "false", "data-key": name,
    oninput: (event) => change(name, event.target.value),
  }));
  const status = h("label", {}, h("span", {}, "Status"), h("select", { name: "status", onchange: (event) => change("status", event.target.value) },
    STATUSES.map(([value, name]) => h("option", { value, selected: value === filters.status }, name))));
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: ({ target }) => {
    paused = !paused;
    target.setAttribute("aria-pressed", String(paused));
    if (!paused) load();
  } }, "Pause");
  return h("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
    text("route", "Route or name", 26), status, text("min_ms", "At least ms", 6), text("correlation_id", "Correlation id", 30), pause,
    h("a", { class: "button", href: "/traces" }, "Clear"));
}

async function load() {
  // Only one request runs at a time. A change during the request causes another request.
  if (busy) { reloadPending = true; return; }
  busy = true;
  const requestedRoot = root;
  try {
    const found = await fetchJson(`/api/traces${query(filters)}`);
    if (requestedRoot.classList.contains("view-traces")) render(found);
  } finally {
    busy = false;
    if (reloadPending) { reloadPending = false; load(); }
  }
}

function row(trace, longest, instances) {
  const open = `/traces/${trace.trace_id}`;
  return h("a", { class: "row trace", href: open, "data-row": true, "data-key": trace.trace_id },
    h("time", {}, clock(trace.started, true)),
    h("span", { class: `status ${statusClass(trace.status)}` }, trace.status ?? "·"),
    h("span", { class: "name" }, trace.name, trace.in_progress && h("small", {}, " in progress")),
    h("span", { class: "meter" }, h("i", { class: trace.errors ? "bad" : "", style: { width: `${Math.max(1, (100 * trace.duration_ms) / longest)}%` } })),
    h("span", { class: "n" }, duration(trace.duration_ms)),
    h("span", { class: "n muted" }, `${trace.spans} span${trace.spans === 1 ? "" : "s"}`),
    h("span", { class: "muted instance", title: trace.instance }, instances > 1 ? short(trace.instance) : ""));
}

function render(found) {
  const instances = new Set(found.map((trace) => trace.instance)).size;
  const longest = Math.max(1, ...found.map((trace) => trace.duration_ms));
  const filtered = Object.values(filters).some(Boolean);
  replace(list, found.length === 0
    ? placeholder(filtered ? "No stored trace matches." : "No trace yet.")
    : [h("p", { class: "count" }, `The newest ${found.length}${filtered ? " that match" : ""}${instances > 1 ? `, of ${instances} replicas` : ""}; the longest took ${duration(longest)}`),
      h("div", { class: "rows" }, found.map((trace) => row(trace, longest, instances)))]);
}
