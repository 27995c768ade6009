// What the page says of what the service is for: its figures, its faults, its books.
import { number } from "./format.js";

/** The tiles beside those that every service has. */
export function ownTiles(figures, tile) {
  return [tile("Notes", number(figures.created), "", "created since the start", "/traces?route=POST+%2Fv1%2Fnotes")];
}

/** The faults beside those that every service has: the name of each, what it does, and where to watch what. */
export const FAULTS = {};

/** Who comes, when there is traffic. */
export const TRAFFIC = "Customers who register, create, read, repeat themselves and make mistakes.";

/** What is compared, and what has to hold: nothing, as long as no other service has records of ours. */
export const BOOKS = ["", ""];

/** A verdict on the books, in numbers. */
export const numbers = () => [];

/** What is waited for at the first trace. */
export const FIRST = "Waiting for the first note that is created…";

/** Where somebody begins who sees this for the first time: texts, and links with theirs. */
export const TOUR = ["Follow ", ["/traces/first", "the first note through its trace"], ", ",
  ["/faults", "make the database slow"], " and watch the latency here, then "];
