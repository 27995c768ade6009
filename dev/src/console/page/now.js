// The overview: health, figures, charts, routes.
import { ask, h, nothing, query, replace } from "./dom.js";
import { ago, bytes, duration, number } from "./format.js";
import { chart } from "./chart.js";
import { TOUR, ownTiles } from "./domain.js";
import { title } from "./faults.js";

const SPANS = [["2", "2 min"], ["5", "5 min"], ["15", "15 min"]];

let root, state, periods, minutes;

export async function open(element, address, go) {
  root = element;
  minutes = address.searchParams.get("minutes") ?? "5";
  state = null;
  replace(root, nothing("Waiting for the first scrape…"));
  const choose = (value) => {
    minutes = value;
    go(`/now${query({ minutes: value === "5" ? "" : value })}`, { instead: true, stay: true });
    render();
  };
  open.choose = choose;
  await load();
}

async function load() {
  const [fresh, faults] = await Promise.all([ask("/api/now"), ask("/api/faults").catch(() => ({ periods: [] }))]);
  state = fresh;
  periods = faults.periods;
  render();
}

export async function update(changed, point) {
  if (!state) return;
  if (changed.has("faults")) periods = (await ask("/api/faults").catch(() => ({ periods: [] }))).periods;
  if (point) {
    const { points } = state;
    state = { ...(await ask("/api/now?points=false")), points };
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
    tile("Errors", `${number(share)} %`, share > 0.5 ? "bad" : "", `${number(errors)}/s answered 5xx`, "/traces?status=5xx"),
    tile("p95", duration((figures.p95 ?? NaN) * 1000), "", "of all requests", "/traces?min_ms=50"),
    ownTiles(figures, tile));
}

function routes() {
  const rows = [...state.routes].sort((one, other) => (other.rate ?? 0) - (one.rate ?? 0)).map((route) => h("tr", {},
    h("td", {}, h("a", { href: `/traces${query({ route: `${route.method} ${route.path}` })}` }, h("span", { class: "method" }, route.method), " ", route.path)),
    h("td", { class: "n" }, number(route.rate)),
    h("td", { class: route.errors > 0 ? "n bad" : "n muted" }, route.errors > 0 ? number(route.errors) : "0"),
    h("td", { class: "n" }, duration(route.p50 * 1000)),
    h("td", { class: "n" }, duration(route.p95 * 1000))));
  const heads = ["Route", "per second", "5xx", "p50", "p95"].map((head, at) => h("th", { class: at ? "n" : "", scope: "col" }, head));
  return h("section", { class: "panel" }, h("h2", {}, "Routes"), rows.length === 0 ? nothing("No request within the last 30 seconds.")
    : h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows))));
}

const LAMP = { healthy: "good", degraded: "warn", unhealthy: "bad", closed: "good", half_open: "warn", open: "bad" };
const lamp = (name, says, detail) => h("li", {}, h("i", { class: LAMP[says] ?? "muted" }), h("span", {}, name), h("em", {}, detail ?? says));

function conditions() {
  return Object.entries(state.replicas).map(([address, { ready, health, ready_status: status }]) => {
    const checks = Object.entries(ready?.checks ?? {}).map(([name, says]) => lamp(name.replaceAll("_", " "), says));
    const breakers = Object.entries(health?.breakers ?? {}).map(([name, says]) => lamp(`breaker ${name.replaceAll("_", " ")}`, says));
    const workers = (health?.workers ?? []).map((worker) => {
      const says = worker.consecutive_failures > 0 ? "unhealthy" : worker.last_success ? "healthy" : "degraded";
      return lamp(worker.name.replaceAll("_", " "), says, worker.last_success ? `${ago(worker.last_success)} ago` : "not yet");
    });
    return h("section", { class: "panel" }, h("h2", {}, address, " ", h("small", {}, status ? `version ${health?.version ?? "?"}` : "unreachable")),
      h("ul", { class: "lamps" }, checks, breakers, workers));
  });
}

/** Creates the introduction for new users. */
const tour = () => h("p", { class: "tour" }, "New here? ",
  TOUR.map((part) => typeof part === "string" ? part : h("a", { href: part[0] }, part[1])),
  h("a", { href: "/audit" }, "verify the audit chain"), ".");

/** Creates the legend of the shaded periods in the charts. */
function shades(from) {
  const within = periods.filter(({ ended }) => !ended || new Date(ended).getTime() > from);
  return [...new Set(within.map(({ fault }) => title(fault)))].map((name) => [" ", h("span", { class: "shade" }, name)]);
}

function kept() {
  const { kept: k } = state;
  return h("p", { class: "kept" }, `Stored in memory: ${number(k.traces)} of ${number(k.most_traces)} traces (${bytes(k.trace_bytes)} of ${bytes(k.most_trace_bytes)}), ` +
    `${number(k.lines)} of ${number(k.most_lines)} log lines (${bytes(k.line_bytes)} of ${bytes(k.most_line_bytes)}), ` +
    `${number(k.series)} series of the last ${state.retention_seconds / 60} minutes.`);
}

function render() {
  const last = state.points.at(-1);
  if (!last) return replace(root, nothing("Waiting for the first scrape…"));
  const choices = SPANS.map(([value, text]) => h("button", {
    type: "button", "data-key": `span-${value}`, "aria-pressed": String(value === minutes), onclick: () => open.choose(value),
  }, text));
  replace(root, tiles(last.figures), tour(),
    h("div", { class: "bar" }, h("span", { class: "muted" }, "Rates and percentiles over 30 s, as Prometheus computes them", shades(last.at - minutes * 60_000)), h("span", { class: "choices", role: "group", "aria-label": "Time" }, choices)),
    h("section", { class: "charts", "aria-label": "Charts" }, state.charts.map((panel) => chart(panel, state.points, periods, minutes * 60_000))),
    h("div", { class: "columns" }, routes(), h("div", {}, conditions())), kept());
}
