// The view Audit: events, their seals, and the verification of the chain of seals.
import { fetchJson, h, placeholder, replace } from "./dom.js";
import { clock } from "./format.js";

let root, state, verification, running, timer;

export async function open(element) {
  root = element;
  verification = null;
  running = false;
  replace(root, placeholder("Loading the audit log…"));
  timer = setInterval(load, 4000);
  await load();
}

export const close = () => clearInterval(timer);

async function load() {
  try {
    const found = await fetchJson("/api/audit");
    if (root.classList.contains("view-audit")) { state = found; render(); }
  } catch (error) {
    replace(root, placeholder(error.message));
  }
}

async function verify() {
  running = true;
  render();
  try {
    verification = await fetchJson("/api/audit/verification", {});
  } catch (error) {
    verification = { is_intact: false, output: error.message, command: "", seconds: 0 };
  }
  running = false;
  render();
}

const RESULT = { success: "good", failure: "warn", denied: "bad" };

function event(one) {
  const metadata = Object.entries(one.metadata).map(([name, value]) => `${name}=${typeof value === "object" ? JSON.stringify(value) : value}`).join(" ");
  return h("tr", {},
    h("td", {}, h("time", {}, clock(one.recorded_at))),
    h("td", {}, one.event_type.replaceAll("_", " ")),
    h("td", {}, h("b", {}, one.action), " ", one.resource),
    h("td", {}, h("span", { class: RESULT[one.result] ?? "" }, one.result)),
    h("td", { title: one.user_id }, one.role ?? h("span", { class: "muted" }, "unauthenticated")),
    h("td", { class: "metadata" }, metadata),
    h("td", {}, one.trace_id && h("a", { href: `/traces/${one.trace_id}` }, "trace")));
}

function seal(one, next) {
  const isLinked = next === undefined || next.hash === one.previous_hash;
  return h("li", { class: isLinked ? "" : "bad" },
    h("b", {}, `#${one.number}`), h("code", { title: one.hash }, one.hash.slice(0, 12)), h("span", { class: "muted" }, `${one.event_count} event${one.event_count === 1 ? "" : "s"}`),
    h("time", {}, clock(one.sealed_at)));
}

function verificationPanel() {
  return [
    h("button", { type: "button", class: "primary", id: "verify", "data-key": "verify", disabled: running, onclick: verify }, running ? "Verifying…" : "Verify the chain"),
    verification && [
      h("p", { id: "verification", class: `result ${verification.is_intact ? "good" : "bad"}` }, verification.is_intact ? "The chain is intact" : "The verification failed"),
      h("pre", {}, verification.output),
      h("p", { class: "muted" }, `${verification.seconds.toFixed(2)} s, by `, h("code", {}, verification.command))],
    !verification && h("p", { class: "muted" }, "Runs the service's audit verify command. It compares every sealed event with its seal, and every seal with the previous seal. If the service's log contains hashes of seals, the command compares these too."),
  ];
}

function render() {
  const heads = ["Recorded", "Type", "Action", "Result", "Role", "Details", ""].map((head) => h("th", { scope: "col" }, head));
  replace(root, h("div", { class: "columns" },
    h("section", { class: "panel" }, h("h2", {}, "Newest events"), state.events.length === 0 ? placeholder("No events yet.")
      : h("div", { class: "scroll" }, h("table", { class: "events" }, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, state.events.map(event))))),
    h("div", {}, h("section", { class: "panel" }, h("h2", {}, "Verification"), verificationPanel()),
      h("section", { class: "panel" }, h("h2", {}, "Seals"), state.seals.length === 0 ? placeholder("Waiting for the first seal…")
        : h("ol", { class: "seals" }, state.seals.slice(0, 25).map((one, at) => seal(one, state.seals[at + 1])))))));
}
