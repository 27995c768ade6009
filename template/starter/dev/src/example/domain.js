// The domain part of the console's page: a tile, and texts about faults, a restore, traffic, reconciliation, the first trace and the first steps.
import { number } from "./format.js";

/** Creates the tile of notes, which follows the tiles that every service has. */
export function domainTiles(figures, tile) {
  return [tile("Notes", number(figures.created), "", "created since the service started", "/traces?route=POST+%2Fv1%2Fnotes")];
}

/** The domain's faults: none. A fault would have a name, an effect, and the views that show the effect. */
export const FAULTS = {};

/** The domain's views that show the effect of a restore: none. */
export const RESTORE_VIEWS = [];

/** Description of the simulated traffic. */
export const TRAFFIC = "Customers who register, create and read notes, repeat requests, and send invalid requests.";

/** What the reconciliation compares, and which rules must hold: empty while no other service stores records to compare. */
export const RECONCILIATION = ["", ""];

/** Returns the numbers of a reconciliation, each with its label: none. */
export const numbers = () => [];

/** The text that `/traces/first` shows until the console has the trace of the first note. */
export const FIRST_TRACE = "Waiting for the first created note…";

/** The introduction for new users: texts, and links as pairs of an address and a text. The view *Now* appends a link to the audit log, so the last text ends with "then ". */
export const TOUR = ["Follow ", ["/traces/first", "the first note through its trace"], ", ",
  ["/faults", "make the database slow"], " and watch the latency here, then "];
