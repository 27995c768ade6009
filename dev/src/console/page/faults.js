// The view Faults: switches of faults and traffic, the standby, the result of the reconciliation, and past faults.
import { fetchJson, h, placeholder, replace } from "./dom.js";
import { ago, clock, number } from "./format.js";
import { RECONCILIATION, FAULTS as DOMAIN_FAULTS, TRAFFIC, numbers } from "./domain.js";
import * as standby from "./standby.js";

/** The faults: name, effect, and the views that show the effect. */
const FAULTS = {
  ...DOMAIN_FAULTS,
  "slow-database": ["Slow database", "A frequently used table is locked repeatedly for 1.5 seconds.",
    [["/now", "p95, the pool and the latency of the database"], ["/traces?min_ms=500", "waiting statements"]]],
  "login-attack": ["Login attack", "A client guesses passwords, five per second.",
    [["/audit", "failures in the audit log"], ["/traces?route=sessions&status=4xx", "rejected logins"], ["/alerts", "LoginAttack"]]],
};

/** Returns the display name of a fault. */
export const title = (fault) => (FAULTS[fault] ?? standby.CHANGES[fault])?.[0] ?? fault;

let root, state, database, timer, failed;

export async function open(element) {
  root = element;
  failed = "";
  replace(root, placeholder("Loading the switches…"));
  await load();
  // The server pushes no event when the lag of a standby changes, so the page polls the lag.
  if (database && root.classList.contains("view-faults")) timer = setInterval(load, 2000);
}

export const close = () => clearInterval(timer);

export const update = (changed) => (changed.has("faults") || changed.has("reconciliation") ? load() : undefined);

async function load() {
  try {
    const received = await Promise.all([fetchJson("/api/faults"), standby.read()]);
    if (root.classList.contains("view-faults")) { [state, database] = received; render(); }
  } catch (error) {
    replace(root, placeholder(error.message));
  }
}

async function set(path, body) {
  try {
    failed = "";
    await fetchJson(path, body);
  } catch (error) {
    failed = error.message;
  }
  await load();
}

function toggle(key, name, on, effect, watch, set) {
  return h("article", { class: `switch${on ? " on" : ""}`, "data-fault": key },
    h("h3", {}, name),
    h("button", { type: "button", role: "switch", "aria-checked": String(on), "aria-label": name, "data-row": true, "data-key": key, onclick: set },
      h("i", {}), h("span", {}, on ? "on" : "off")),
    h("p", {}, effect),
    h("p", { class: "watch" }, "Watch: ", watch.map(([href, text], at) => [at ? ", " : "", h("a", { href }, text)]), "."));
}

function reconciliationResult() {
  const { reconciliation } = state;
  if (!reconciliation) return placeholder("Waiting for the first reconciliation…");
  const { report } = reconciliation;
  return [
    h("p", { class: `result ${reconciliation.holds ? "good" : "bad"}`, id: "reconciliation" }, reconciliation.holds ? "All invariants hold" : report ? "Invariants are violated" : "Reconciliation failed"),
    report ? h("dl", { class: "numbers" }, numbers(report).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, number(value))))) : h("p", {}, reconciliation.summary),
    report?.violations.map((violation) => h("p", { class: "bad" }, violation.rule, ": ", violation.detail)),
    report?.unreported > 0 && h("p", { class: "bad" }, `and ${number(report.unreported)} more`),
    h("p", { class: "muted" }, `${RECONCILIATION[0]} at most every 30 seconds, last at ${clock(reconciliation.at)}: ${RECONCILIATION[1]}`),
  ];
}

function history() {
  const ended = state.periods.filter((period) => period.ended).reverse().slice(0, 12);
  return ended.length === 0 ? null : h("section", { class: "panel" }, h("h2", {}, "Past faults"), h("ul", { class: "history" },
    ended.map(({ fault, began, ended: end }) => h("li", {}, h("time", {}, `${clock(began)} to ${clock(end)}`), " ", title(fault)))));
}

function render() {
  const on = new Map(state.periods.filter((period) => !period.ended).map((period) => [period.fault, period.began]));
  const switches = state.faults.map((fault) => {
    const [name, effect, watch] = FAULTS[fault] ?? [fault, "", []];
    const since = on.has(fault) ? `${effect} On for ${ago(on.get(fault))}.` : effect;
    return toggle(fault, name, on.has(fault), since, watch, () => set(`/api/faults/${fault}`, { on: !on.has(fault) }));
  });
  const traffic = state.traffic === null ? null : toggle("traffic", "Traffic", state.traffic, TRAFFIC,
    [["/now", "charts"]], () => set("/api/traffic", { on: !state.traffic }));
  replace(root,
    failed && h("p", { class: "bad", role: "alert" }, failed),
    h("div", { class: "columns" },
      h("section", { class: "switches", "aria-label": "Switches" }, switches, traffic),
      h("div", {},
        database && standby.panel(database, set),
        h("section", { class: "panel" }, state.has_reconciliation && [h("h2", {}, "Reconciliation"), reconciliationResult()],
          h("button", { type: "button", class: "primary", id: "back-to-normal", "data-key": "normal", onclick: () => set("/api/normal", {}) }, "Back to normal")),
        history())));
}
