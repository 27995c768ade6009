// The domain part of the console's page: tiles, and texts about faults, a restore, traffic, reconciliation, the first trace and the first steps.
import { number } from "./format.js";

const BREAKER = { 0: ["closed", "good"], 1: ["half-open", "warn"], 2: ["open", "bad"] };

/** Creates the domain's tiles, which follow the tiles that every service has. */
export function domainTiles(figures, tile) {
  const { processing = 0 } = figures;
  const [breaker, breakerTone] = BREAKER[figures.breaker] ?? ["–", ""];
  return [
    tile("Orders", number(figures.orders), "", "since the service started", "/traces?route=POST+%2Fv1%2Forders"),
    tile("Paid", number(figures.succeeded), "", `${number(figures.declined)} declined, ${number(figures.failed)} failed`, "/traces?route=payments"),
    tile("Processing", number(processing), processing > 0 ? "warn" : "", "outcome unknown", "/traces?route=recover"),
    tile("Breaker", breaker, breakerTone, "to the gateway", "/faults"),
  ];
}

/** The domain's faults: name, effect, and the views that show the effect. */
export const FAULTS = {
  "gateway-outage": ["Gateway outage", "The payment gateway responds with 503 to every request.",
    [["/now", "the breaker opens and payments are rejected immediately"], ["/traces?status=5xx", "traces of the rejections"], ["/alerts", "PaymentFailureRatioHigh"]]],
  "gateway-slow": ["Gateway slow", "Every response of the payment gateway takes 1.5 seconds longer.",
    [["/traces?route=payments&min_ms=1000", "the waterfall of a slow payment"], ["/now", "the latency of the gateway"]]],
  "lost-responses": ["Responses lost", "Half of the gateway's responses are lost after the charge.",
    [["/now", "payments without an outcome"], ["/traces?route=recover", "the recovery worker polls, and never charges twice"]]],
  "decline-storm": ["Decline storm", "Four of five payments are declined.",
    [["/now", "declined payments"], ["/alerts", "no outage alert, because a decline is a valid response"]]],
};

/** The domain's views that show the effect of a restore. */
export const RESTORE_VIEWS = [["/alerts", "PaymentDiscrepancyOpen, if the gateway has charges whose payments are lost"]];

/** Description of the traffic. */
export const TRAFFIC = "Customers who register, browse, order and pay, and send invalid requests.";

/** Description of the reconciliation and its invariants. */
export const RECONCILIATION = ["The service's tables are compared with the gateway's ledger", "every charge, even a declined one, has a payment that agrees with it, and every payment that succeeded or was declined has its charge."];

/** Returns the numbers of a reconciliation, each with its label. */
export const numbers = (report) => [["orders", report.orders], ["payments", report.payments], ["in flight", report.payments_in_flight], ["refunds", report.refunds], ["charges at the gateway", report.charges], ["without a record", report.orphans.length]];

/** The text that `/traces/first` shows until the console has the trace of the first paid order. */
export const FIRST_TRACE = "Waiting for the first paid order…";

/** The introduction for new users: texts, and links as pairs of an address and a text. The view *Now* appends a link to the audit log, so the last text ends with "then ". */
export const TOUR = ["Follow ", ["/traces/first", "the first paid order through its trace"], ", ",
  ["/faults", "stop the payment gateway"], " and watch the breaker open and payments recover here, then "];
