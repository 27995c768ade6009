// The view Now: figures, charts, routes, the health of the replicas, and the memory use of the console.
import { fetchJson, h, placeholder, query, replace } from "./dom.js";
import { ago, bytes, duration, number } from "./format.js";
import { chart } from "./chart.js";
import { TOUR, domainTiles } from "./domain.js";
import { title } from "./faults.js";

const SPANS = [["2", "2 min"], ["5", "5 min"], ["15", "15 min"]];

let root, state, periods, minutes;

export async function open(element, address, go) {
  root = element;
  minutes = address.searchParams.get("minutes") ?? "5";
  state = null;
  replace(root, placeholder("Waiting for the first scrape…"));
  const choose = (value) => {
    minutes = value;
    go(`/now${query({ minutes: value === "5" ? "" : value })}`, { instead: true, stay: true });
    render();
  };
  open.choose = choose;
  await load();
}

async function load() {
  const [fresh, faults] = await Promise.all([fetchJson("/api/now"), fetchJson("/api/faults").catch(() => ({ periods: [] }))]);
  state = fresh;
  periods = faults.periods;
  render();
}

export async function update(changed, point) {
  if (!state) return;
  if (changed.has("faults")) periods = (await fetchJson("/api/faults").catch(() => ({ periods: [] }))).periods;
  if (point) {
    const { points } = state;
    state = { ...(await fetchJson("/api/now?points=false")), points };
    const oldest = point.at - state.retention_seconds * 1000;
    state.points = [...points.filter(({ at }) => at >= oldest && at < point.at), point];
  }
  if ((point || changed.has("faults")) && root.isConnected && root.classList.contains("view-now")) render();
}

function tile(name, value, tone, detail, href) {
  const content = [h("span", { class: "name" }, name), h("b", { class: tone }, value), h("small", {}, detail)];
  return href ? h("a", { class: "tile", "data-tile": name, href }, content) : h("div", { class: "tile", "data-tile": name }, content);
}

function tiles(figures) {
  const replicas = Object.values(state.replicas);
  const ready = replicas.filter((replica) => replica.ready_status === 200);
  const degraded = ready.filter((replica) => Object.values(replica.ready?.checks ?? {}).some((check) => check !== "healthy"));
  const readiness = ready.length < replicas.length ? ["not ready", "bad"] : degraded.length ? ["degraded", "warn"] : ["ready", "good"];
  const uptime = Math.max(0, ...replicas.map((replica) => replica.health?.uptime_seconds ?? 0));
  const { requests = 0, errors = 0 } = figures;
  const share = requests > 0 ? (100 * errors) / requests : 0;
  return h("section", { class: "tiles", "aria-label": "Figures" },
    tile("Service", readiness[0], readiness[1], `${ready.length} of ${replicas.length}, up ${ago(Date.now() - uptime * 1000)}`),
    tile("Requests", `${number(requests)}/s`, "", `${number(figures.in_flight ?? 0)} in flight`, "/traces"),
    tile("Errors", `${number(share)} %`, share > 0.5 ? "bad" : "", `${number(errors)}/s with 5xx`, "/traces?status=5xx"),
    tile("p95", duration((figures.p95 ?? NaN) * 1000), "", "of all requests", "/traces?min_ms=50"),
    domainTiles(figures, tile));
}

function routes() {
  const rows = [...state.routes].sort((one, other) => (other.rate ?? 0) - (one.rate ?? 0)).map((route) => h("tr", {},
    h("td", {}, h("a", { href: `/traces${query({ route: `${route.method} ${route.path}` })}` }, h("span", { class: "method" }, route.method), " ", route.path)),
    h("td", { class: "n" }, number(route.rate)),
    h("td", { class: route.errors > 0 ? "n bad" : "n muted" }, route.errors > 0 ? number(route.errors) : "0"),
    h("td", { class: "n" }, duration(route.p50 * 1000)),
    h("td", { class: "n" }, duration(route.p95 * 1000))));
  const heads = ["Route", "per second", "5xx", "p50", "p95"].map((head, at) => h("th", { class: at ? "n" : "", scope: "col" }, head));
  return h("section", { class: "panel" }, h("h2", {}, "Routes"), rows.length === 0 ? placeholder("No request within the last 30 seconds.")
    : h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows))));
}

const TONES = { healthy: "good", degraded: "warn", unhealthy: "bad", closed: "good", half_open: "warn", open: "bad" };
const statusItem = (name, state, detail) => h("li", {}, h("i", { class: TONES[state] ?? "muted" }), h("span", {}, name), h("em", {}, detail ?? state));

function replicaPanels() {
  return Object.entries(state.replicas).map(([address, { ready, health, ready_status: status }]) => {
    const checks = Object.entries(ready?.checks ?? {}).map(([name, state]) => statusItem(name.replaceAll("_", " "), state));
    const breakers = Object.entries(health?.breakers ?? {}).map(([name, state]) => statusItem(`breaker ${name.replaceAll("_", " ")}`, state));
    const workers = (health?.workers ?? []).map((worker) => {
      const state = worker.consecutive_failures > 0 ? "unhealthy" : worker.last_success ? "healthy" : "degraded";
      return statusItem(worker.name.replaceAll("_", " "), state, worker.last_success ? `${ago(worker.last_success)} ago` : "not yet");
    });
    return h("section", { class: "panel" }, h("h2", {}, address, " ", h("small", {}, status ? `version ${health?.version ?? "?"}` : "unreachable")),
      h("ul", { class: "checks" }, checks, breakers, workers));
  });
}

/** Creates the links for new users. */
const tour = () => h("p", { class: "tour" }, "New here? ",
  TOUR.map((part) => typeof part === "string" ? part : h("a", { href: part[0] }, part[1])),
  h("a", { href: "/audit" }, "verify the audit chain"), ".");

/** Creates the legend of the shaded periods in the charts. */
function faultLegend(from) {
  const within = periods.filter(({ ended }) => !ended || new Date(ended).getTime() > from);
  return [...new Set(within.map(({ fault }) => title(fault)))].map((name) => [" ", h("span", { class: "shade" }, name)]);
}

function storagePanel() {
  const { storage: use } = state;
  return h("p", { class: "storage" }, `Stored in memory: ${number(use.traces)} of ${number(use.max_traces)} traces (${bytes(use.trace_bytes)} of ${bytes(use.max_trace_bytes)}), ` +
    `${number(use.lines)} of ${number(use.max_lines)} log lines (${bytes(use.line_bytes)} of ${bytes(use.max_line_bytes)}), ` +
    `${number(use.series)} series of the last ${state.retention_seconds / 60} minutes.`);
}

function render() {
  const last = state.points.at(-1);
  if (!last) return replace(root, placeholder("Waiting for the first scrape…"));
  const choices = SPANS.map(([value, text]) => h("button", {
    type: "button", "data-key": `span-${value}`, "aria-pressed": String(value === minutes), onclick: () => open.choose(value),
  }, text));
  replace(root, tiles(last.figures), tour(),
    h("div", { class: "bar" }, h("span", { class: "muted" }, "Rates and percentiles over 30 s, as Prometheus computes them", faultLegend(last.at - minutes * 60_000)), h("span", { class: "choices", role: "group", "aria-label": "Time" }, choices)),
    h("section", { class: "charts", "aria-label": "Charts" }, state.charts.map((panel) => chart(panel, state.points, periods, minutes * 60_000))),
    h("div", { class: "columns" }, routes(), h("div", {}, replicaPanels())), storagePanel());
}
