// The domain part of the page: its figures, faults and reconciliation.
import { number } from "./format.js";

const BREAKER = { 0: ["closed", "good"], 1: ["half-open", "warn"], 2: ["open", "bad"] };

/** The tiles in addition to those of every service. */
export function ownTiles(figures, tile) {
  const { processing = 0 } = figures;
  const [breaker, breakerTone] = BREAKER[figures.breaker] ?? ["–", ""];
  return [
    tile("Orders", number(figures.orders), "", "since the start", "/traces?route=POST+%2Fv1%2Forders"),
    tile("Paid", number(figures.succeeded), "", `${number(figures.declined)} declined, ${number(figures.failed)} failed`, "/traces?route=payments"),
    tile("Processing", number(processing), processing > 0 ? "warn" : "", "no outcome yet", "/traces?route=recover"),
    tile("Breaker", breaker, breakerTone, "to the gateway", "/faults"),
  ];
}

/** The faults in addition to those of every service: name, effect, and the views that show the effect. */
export const FAULTS = {
  "gateway-outage": ["Gateway outage", "The payment gateway answers 503 to everything.",
    [["/now", "Watch the breaker open and payments be refused at once"], ["/traces?status=5xx", "the refusals as traces"], ["/alerts", "PaymentFailureRatioHigh"]]],
  "gateway-slow": ["Gateway slow", "Every answer of the payment gateway takes a second and a half longer.",
    [["/traces?route=payments&min_ms=1000", "Watch where the time of a payment goes in its waterfall"], ["/now", "the latency of the gateway"]]],
  "lost-answers": ["Answers lost", "Half of the gateway's answers are lost after the charge was made.",
    [["/now", "Watch payments wait without an outcome"], ["/traces?route=recover", "the recovery worker ask, and never charge twice"]]],
  "decline-storm": ["Decline storm", "Four of five payments are declined.",
    [["/now", "Watch the declined payments"], ["/alerts", "how no alarm of an outage sounds: a declined card is an answer"]]],
};

/** Description of the traffic. */
export const TRAFFIC = "Customers who register, browse, order, pay and make mistakes.";

/** Description of the reconciliation and its invariants. */
export const BOOKS = ["Our tables against the gateway's ledger, to the cent", "every charge has exactly one settled payment, every settled payment exactly one charge."];

/** Formats the numbers of a reconciliation. */
export const numbers = (found) => [["orders", found.orders], ["payments", found.payments], ["in flight", found.payments_in_flight], ["refunds", found.refunds], ["charges at the gateway", found.charges]];

/** Description of the event that the first trace waits for. */
export const FIRST = "Waiting for the first order that is paid…";

/** The introduction for new users: texts, and links with their texts. */
export const TOUR = ["Follow ", ["/traces/first", "the first paid order through its trace"], ", ",
  ["/faults", "take the payment gateway away"], " and watch the breaker open and payments heal here, then "];
