// The domain part of the page: its figures, faults and reconciliation.
import { number } from "./format.js";

/** Returns the console's tiles of notes, in addition to the tiles of every service. */
export function domainTiles(figures, tile) {
  return [tile("Notes", number(figures.created), "", "created since the start", "/traces?route=POST+%2Fv1%2Fnotes")];
}

/** The faults in addition to those of every service. Each has a name, an effect, and the views that show the effect. */
export const FAULTS = {};

/** The views that show the effect of a restore, in addition to those of every service. */
export const RESTORE_VIEWS = [];

/** Description of the simulated traffic. */
export const TRAFFIC = "Customers who register, create and read notes, repeat requests, and send invalid requests.";

/** Texts about the reconciliation and its invariants: empty while no other service stores records to compare. */
export const RECONCILIATION = ["", ""];

/** Returns the figures that the page shows of a reconciliation: none. */
export const numbers = () => [];

/** The text that the page shows until the first trace exists. */
export const FIRST_TRACE = "Waiting for the first created note…";

/** The introduction for new users: texts, and links with their texts. */
export const TOUR = ["Follow ", ["/traces/first", "the first note through its trace"], ", ",
  ["/faults", "make the database slow"], " and watch the latency here, then "];
