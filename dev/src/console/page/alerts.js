// The view Alerts: the project's alerting rules with their states, and the received notifications.
import { fetchJson, h, placeholder, replace } from "./dom.js";
import { ago, clock, number } from "./format.js";

let root, state;

/** Returns whether a rule is firing or pending, or its condition is true. Excludes the Watchdog alert, which always fires. */
export const isActive = ({ name, evaluation }) => name !== "Watchdog" && ["firing", "pending", "true"].includes(evaluation.state);

export async function open(element) {
  root = element;
  replace(root, placeholder("Loading the rules…"));
  await load();
}

export const update = (changed) => (changed.has("alerts") ? load() : undefined);

async function load() {
  const found = await fetchJson("/api/alerts");
  if (!root.classList.contains("view-alerts")) return;
  state = found;
  // Keeps opened details open, so that a refresh does not interrupt reading an expression.
  const opened = new Set([...root.querySelectorAll("details[open]")].map((one) => one.dataset.rule));
  render(opened);
}

const RANK = { firing: 0, true: 1, pending: 2, unknown: 4 };
const rank = (rule) => (rule.name === "Watchdog" ? 5 : RANK[rule.evaluation.state] ?? 3);
const TONE = { firing: "bad", true: "bad", pending: "warn", inactive: "good", false: "good" };
const LABEL = { true: "true now", false: "not firing", inactive: "not firing", unknown: "not computed" };

function rule(one, opened) {
  const { evaluation } = one;
  const value = evaluation.value === null ? "" : number(evaluation.value);
  return h("details", { class: "rule", "data-rule": one.name, open: opened.has(one.name) },
    h("summary", { "data-row": true, "data-key": one.name },
      h("span", { class: `status ${TONE[evaluation.state] ?? "muted"}` }, LABEL[evaluation.state] ?? evaluation.state),
      h("span", { class: "name" }, h("b", {}, one.name), " ", h("small", { class: "muted" }, one.summary)),
      h("span", { class: "n" }, value, evaluation.limit && h("small", { class: "muted" }, ` alert if ${evaluation.limit}`)),
      h("span", { class: `severity ${one.severity}` }, one.severity)),
    h("pre", {}, one.expression),
    evaluation.since && h("p", {}, `Since ${clock(evaluation.since)}, ${ago(evaluation.since)} ago${one.hold_time ? `; the alert fires after ${one.hold_time}` : ""}.`),
    evaluation.notes.map((note) => h("p", { class: "note" }, note)),
    h("p", {}, h("a", { href: `${state.inbox}runbooks/${one.runbook}`, target: "_blank", rel: "noopener" }, "Runbook")));
}

function received(alert) {
  return h("li", { class: alert.status }, h("time", {}, clock(alert.received_at)),
    h("b", {}, alert.name), " ", alert.source === "alertmanager" && [h("span", { class: `status ${alert.status === "firing" ? "bad" : "good"}` }, alert.status), " "],
    h("span", { class: "muted" }, `from ${alert.source === "service" ? "the service" : "Alertmanager"}`), h("p", {}, alert.description || alert.summary));
}

function render(opened) {
  const rules = [...state.rules].sort((one, other) => rank(one) - rank(other) || one.name.localeCompare(other.name));
  const by = state.prometheus
    ? h("p", { class: "by", id: "evaluator" }, "Evaluated by ", h("b", {}, "Prometheus and Alertmanager"), " on this machine: ",
      h("a", { href: state.prometheus, target: "_blank", rel: "noopener" }, "Prometheus"), " · ", h("a", { href: state.alertmanager, target: "_blank", rel: "noopener" }, "Alertmanager"))
    : h("p", { class: "by", id: "evaluator" }, "Evaluated by ", h("b", {}, "the console itself"), " over its own scrapes: current conditions only, without hold times, grouping and inhibition. ",
      "If prometheus and alertmanager are on the PATH, cargo dev runs them.");
  replace(root, by, h("div", { class: "columns" },
    h("section", { class: "panel" }, h("h2", {}, "Rules ", h("small", {}, String(rules.length))), rules.length === 0 ? placeholder("Waiting for the first evaluation…") : rules.map((one) => rule(one, opened))),
    h("section", { class: "panel" }, h("h2", {}, "Received alerts ", h("small", {}, String(state.received.length))),
      state.received.length === 0 ? placeholder("No alerts received.") : h("ul", { class: "received" }, state.received.slice(0, 50).map(received)))));
}
