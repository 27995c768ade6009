// The frame of all views: selects the view from the URL, handles pushed events and keyboard shortcuts, and shows the banner of faults, the number of alerts and the theme.
import { fetchJson, h, replace } from "./dom.js";
import { ago } from "./format.js";
import * as alerts from "./alerts.js";
import * as audit from "./audit.js";
import * as faults from "./faults.js";
import * as logs from "./logs.js";
import * as now from "./now.js";
import * as traces from "./traces.js";
import * as waterfall from "./waterfall.js";

/** The views: `open(element, address, go)` builds a view. The optional `update(changed, point)` handles the changed kinds of data and the newest values of the charts. The optional `close()` ends the view. */
const VIEWS = { now, traces, waterfall, logs, alerts, faults, audit };
const ORDER = ["now", "traces", "logs", "alerts", "faults", "audit"];

const element = document.getElementById("view");
let current = null;
let knownCounters = null;

function viewOf(address) {
  const [name, part] = address.pathname.slice(1).split("/");
  return name === "traces" && part ? "waterfall" : name;
}

function show() {
  current?.close?.();
  const address = new URL(location.href);
  const name = viewOf(address);
  current = VIEWS[name] ?? now;
  const tab = name === "waterfall" ? "traces" : name;
  document.title = `${tab[0].toUpperCase()}${tab.slice(1)} · ${document.getElementById("service").textContent}`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === tab) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  element.className = `view-${name}`;
  replace(element);
  current.open(element, address, go);
}

/** Opens a URL of the console without reloading the page. `instead` replaces the history entry. `stay` changes only the address, and keeps the view. */
function go(address, { instead = false, stay = false } = {}) {
  history[instead ? "replaceState" : "pushState"](null, "", address);
  if (stay) return;
  show();
  scrollTo(0, 0);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
  if (link.target || link.origin !== location.origin || link.getAttribute("href").startsWith("#")) return;
  event.preventDefault();
  go(link.href);
});
addEventListener("popstate", show);

// Pushed events.

const connection = document.getElementById("connection");

function setConnected(isOn, title) {
  connection.classList.toggle("on", isOn);
  connection.title = title;
}

/** The stream of changes. A hidden tab closes its stream, because all tabs share the browser's six connections to a host. */
let stream = null;
function listen(isVisible) {
  if (isVisible === (stream !== null)) return;
  if (!isVisible) {
    stream.close();
    stream = null;
    return;
  }
  stream = new EventSource("/api/stream");
  stream.onopen = () => setConnected(true, "Live");
  stream.onerror = () => setConnected(false, "No connection to the console. Check that cargo dev is running.");
  stream.onmessage = onMessage;
}
document.addEventListener("visibilitychange", () => listen(document.visibilityState === "visible"));
addEventListener("pagehide", () => listen(false));
addEventListener("pageshow", () => listen(true));

function onMessage({ data }) {
  const { counters, now: point } = JSON.parse(data);
  const changed = new Set(Object.keys(counters).filter((kind) => !knownCounters || knownCounters[kind] !== counters[kind]));
  knownCounters = counters;
  if (changed.has("faults")) showBanner();
  if (changed.has("alerts")) countAlerts();
  current?.update?.(changed, point);
}

/** Ignores errors of requests without a response, because leaving the page or ending cargo dev causes such errors. */
addEventListener("unhandledrejection", (event) => {
  if (event.reason instanceof TypeError && event.reason.message.includes("fetch")) event.preventDefault();
});

/** The banner of all views. It shows the active faults and whether the traffic is paused, with a button that switches all faults off, and the traffic on. */
const banner = document.getElementById("banner");
async function showBanner() {
  const state = await fetchJson("/api/faults").catch(() => null);
  if (!state) return;
  const on = state.periods.filter((period) => !period.ended);
  const notices = on.map(({ fault, began }) => `${faults.title(fault)}, for ${ago(began)}`);
  if (state.traffic === false) notices.push("traffic is paused");
  banner.hidden = notices.length === 0;
  replace(banner, h("span", {}, h("b", {}, "Injected faults: "), notices.join(" · ")),
    h("button", { type: "button", id: "normal", onclick: backToNormal }, "Back to normal"));
}

async function backToNormal() {
  await fetchJson("/api/normal", {});
  showBanner();
}
setInterval(() => !banner.hidden && showBanner(), 5000);

async function countAlerts() {
  const { rules } = await fetchJson("/api/alerts").catch(() => ({ rules: [] }));
  const count = rules.filter(alerts.isActive).length;
  const badge = document.getElementById("alert-count");
  badge.hidden = count === 0;
  badge.textContent = count;
}

// Light and dark theme.

const THEMES = ["system", "light", "dark"];
const theme = document.getElementById("theme");
function setTheme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  theme.textContent = `Theme: ${name}`;
  localStorage.setItem("theme", name);
}
const nextTheme = () => setTheme(THEMES[(THEMES.indexOf(localStorage.getItem("theme") ?? "system") + 1) % THEMES.length]);
theme.addEventListener("click", nextTheme);
setTheme(THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "system");

// Keyboard shortcuts.

const keys = document.getElementById("keys");
document.getElementById("help").addEventListener("click", () => keys.showModal());

/** Moves the focus by this number of rows. */
function step(by) {
  const rows = [...element.querySelectorAll("[data-row]")].filter((row) => row.offsetParent !== null);
  const at = rows.indexOf(document.activeElement?.closest?.("[data-row]"));
  rows[Math.min(rows.length - 1, Math.max(0, at + by))]?.focus();
}

addEventListener("keydown", (event) => {
  if (event.target.matches?.("input, select, textarea") || event.metaKey || event.ctrlKey || event.altKey || keys.open) {
    if (event.key === "Escape") event.target.blur?.();
    return;
  }
  const view = ORDER[Number(event.key) - 1];
  if (view) go(`/${view}`);
  else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "t") nextTheme();
  else if (event.key === "n") backToNormal();
  else if (event.key === "?") keys.showModal();
  else if (event.key === "/" && element.querySelector("input")) element.querySelector("input").focus();
  else return;
  event.preventDefault();
});

const { service } = await fetchJson("/api/now?points=false");
document.getElementById("service").textContent = service;
show();
listen(document.visibilityState === "visible");
