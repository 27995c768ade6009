// Numbers, times and ids in readable form, and the colour of a status.

/** Formats a duration with a suitable unit, from microseconds to minutes. The argument is in milliseconds. */
export function duration(milliseconds) {
  if (!Number.isFinite(milliseconds)) return "–";
  if (milliseconds < 1) return `${Math.round(milliseconds * 1000)} µs`;
  if (milliseconds < 10) return `${milliseconds.toFixed(2)} ms`;
  if (milliseconds < 100) return `${milliseconds.toFixed(1)} ms`;
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 60_000) return `${(milliseconds / 1000).toFixed(2)} s`;
  return `${(milliseconds / 60_000).toFixed(1)} min`;
}

/** Formats a number. An integer has all digits. Any other number has at most three decimal places, and fewer if the number is larger. */
export function number(value) {
  if (!Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 3);
}

/** Formats a value with the unit of its chart. */
export function measure(value, unit) {
  if (!Number.isFinite(value)) return "–";
  return unit === "s" ? duration(value * 1000) : `${number(value)}${unit}`;
}

const pad = (value, digits = 2) => String(value).padStart(digits, "0");

/** Formats the time of day; `when` is any argument of `Date`. */
export function clock(when, withMilliseconds = false) {
  const date = new Date(when);
  if (Number.isNaN(date.getTime())) return "";
  const time = `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
  return withMilliseconds ? `${time}.${pad(date.getMilliseconds(), 3)}` : time;
}

/** Formats the time since a moment. */
export function ago(when) {
  const seconds = Math.max(0, Math.round((Date.now() - new Date(when)) / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/** Formats a number of bytes. */
export function bytes(size) {
  return size < 1024 * 1024 ? `${Math.round(size / 1024)} KiB` : `${(size / 1024 / 1024).toFixed(1)} MiB`;
}

/** Returns the colour class of a response. */
export const statusClass = (status) =>
  status >= 500 ? "bad" : status >= 400 ? "warn" : status ? "good" : "muted";

/** Returns the last six characters of an id with more than 12 characters. Returns any other id unchanged. */
export const short = (id) => (id.length > 12 ? id.slice(-6) : id);
