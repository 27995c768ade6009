// Numbers and times in readable form.

/** Milliseconds, with three digits that mean something. */
export function duration(milliseconds) {
  if (!Number.isFinite(milliseconds)) return "–";
  if (milliseconds < 1) return `${Math.round(milliseconds * 1000)} µs`;
  if (milliseconds < 10) return `${milliseconds.toFixed(2)} ms`;
  if (milliseconds < 100) return `${milliseconds.toFixed(1)} ms`;
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 60_000) return `${(milliseconds / 1000).toFixed(2)} s`;
  return `${(milliseconds / 60_000).toFixed(1)} min`;
}

/** A number with as many digits as it needs. */
export function number(value) {
  if (!Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 3);
}

/** A value with the unit of its chart. */
export function measure(value, unit) {
  if (!Number.isFinite(value)) return "–";
  return unit === "s" ? duration(value * 1000) : `${number(value)}${unit}`;
}

const pad = (value, digits = 2) => String(value).padStart(digits, "0");

/** The time of day; `when` is anything that a Date is made of. */
export function clock(when, withMilliseconds = false) {
  const date = new Date(when);
  if (Number.isNaN(date.getTime())) return "";
  const time = `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
  return withMilliseconds ? `${time}.${pad(date.getMilliseconds(), 3)}` : time;
}

/** How long ago. */
export function ago(when) {
  const seconds = Math.max(0, Math.round((Date.now() - new Date(when)) / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** Bytes. */
export function bytes(size) {
  return size < 1024 * 1024 ? `${Math.round(size / 1024)} KiB` : `${(size / 1024 / 1024).toFixed(1)} MiB`;
}

/** How an answer is coloured. */
export const statusClass = (status) =>
  status >= 500 ? "bad" : status >= 400 ? "warn" : status ? "good" : "muted";

/** The end of a replica's id, which is where two of them differ. */
export const short = (id) => (id.length > 12 ? id.slice(-6) : id);
