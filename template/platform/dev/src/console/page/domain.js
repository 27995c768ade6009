// What the page says of what the service is for: its figures, its faults, its books.
import { number } from "./format.js";

/** The tiles beside those that every service has. */
export function ownTiles(figures, tile) {
  return [tile("{{resource_plural}}", number(figures.created), "", "created since the start", "/traces?route=POST+%2Fv1%2F{{resource_plural}}")];
}

/** Each fault: its name, what it does, and where to watch what. */
export const FAULTS = {
  "slow-database": ["Slow database", "The {{resource_plural}} are locked for a second and a half, again and again.",
    [["/now", "Watch p95, the pool and the latency of the database"], ["/traces?min_ms=500", "the statements that wait"]]],
  "login-attack": ["Login attack", "Someone guesses passwords, five times a second.",
    [["/audit", "Watch the failures in the audit trail"], ["/traces?route=sessions&status=4xx", "the refusals"], ["/alerts", "LoginAttack"]]],
};

/** Who comes, when there is traffic. */
export const TRAFFIC = "Customers who register, create, read, repeat themselves and make mistakes.";

/** What is compared, and what has to hold: nothing, until the service keeps books with somebody else. */
export const BOOKS = ["", ""];

/** A verdict on the books, in numbers. */
export const numbers = () => [];

/** What is waited for at the first trace. */
export const FIRST = "Waiting for the first {{resource}} that is created…";

/** Where somebody begins who sees this for the first time: texts, and links with theirs. */
export const TOUR = ["Follow ", ["/traces", "a request through its trace"], ", ",
  ["/faults", "make the database slow"], " and watch the latency here, then "];
