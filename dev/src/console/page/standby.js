// The primary and its standby, and the buttons that replace the primary.
import { fetchJson, h } from "./dom.js";
import { bytes, clock, duration } from "./format.js";
import { RESTORE_VIEWS } from "./domain.js";

/** The changes of the primary: name, label of the button, effect, effect for customers, and the views that show the effect. */
export const CHANGES = {
  failover: ["Failover", "Fail over", "Kills the primary and promotes the standby. A new standby then replaces the old primary.",
    "For some seconds, customers get 503 with Retry-After. A retry with the same idempotency key succeeds, and no confirmed change is lost.",
    [["/now", "responses with 5xx, and the number of database connections"], ["/logs?level=WARN", "the warning that the service closes its connections to the old primary"], ["/alerts", "DatabaseDown, if at least three waits for a connection timed out after 2 s"]]],
  restore: ["Restore", "Restore to 30 s ago", "Stops both servers, recovers the database to its state 30 seconds ago, and runs after-restore.",
    "For some seconds, customers get 503. Every session ends, so customers get 401 and log in again. Changes of the last 30 seconds are lost. The traffic generator then gets responses such as 404 for lost orders, and counts them as unexpected.",
    [["/audit", "the event restore, and the lost seals that the verification accepts because of this event"], ["/alerts", "DatabaseDown and the alerts of its symptoms, but not DatabaseRestored, because after-restore has run"], ...RESTORE_VIEWS]],
};

/** Reads the states of the database servers and the changes of the primary. Returns null if the database has no standby. */
export const read = () => fetchJson("/api/database");

function node({ address, role, standby }) {
  const lag = standby && [standby.state, standby.sync_state, `lag ${bytes(standby.lag_bytes ?? 0)}, ${duration((standby.lag_seconds ?? 0) * 1000)}`].join(" · ");
  const detail = role === "primary" ? lag ?? "no standby is connected" : "";
  return h("li", { "data-role": role }, h("i", { class: role === "unreachable" ? "bad" : role === "primary" && !lag ? "warn" : "good" }),
    h("code", {}, address), h("b", {}, role), h("em", {}, detail));
}

/** Creates the panel of the primary and its standby, for the view Faults. `request(path, body)` requests a change of the primary. */
export function panel({ nodes, changes }, request) {
  const last = changes.at(-1);
  const running = last && !last.ended;
  const buttons = Object.entries(CHANGES).map(([change, [name, label, effect, customers, watch]]) => [
    h("h3", {}, name),
    h("p", {}, effect, " ", customers),
    h("p", { class: "watch" }, "Watch: ", watch.map(([href, text], at) => [at ? "; " : "", h("a", { href }, text)]), "."),
    h("button", { type: "button", class: "primary", id: change, "data-row": true, "data-key": change, disabled: Boolean(running), onclick: () => request(`/api/database/${change}`, {}) }, label)]);
  return h("section", { class: "panel standby", id: "database", "aria-label": "Primary and standby" },
    h("h2", {}, "Primary and standby"), h("ul", {}, nodes.map(node)), buttons,
    last && [h("p", { class: running ? "muted" : last.failed ? "bad" : "good", id: "change", role: "status" },
      `${CHANGES[last.change][0]} at ${clock(last.began)}: ${running ? "in progress" : last.failed ? "failed" : "done"}`), h("pre", {}, last.text)]);
}
