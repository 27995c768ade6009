// Helpers of all views: they create and replace elements, send requests, and build query strings. External data becomes text or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([property, text]) => element.style.setProperty(property, text));
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Creates an HTML element. Strings among the children become text nodes. */
export const h = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

/** Creates an SVG element. */
export const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

/** Replaces the children of an element. If the focused child has a `data-key`, the new child with this key gets the focus. */
export function replace(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  element.replaceChildren(...children.flat(3).filter(Boolean));
  if (focused === undefined) return;
  const successor = [...element.querySelectorAll("[data-key]")].find((candidate) => candidate.dataset.key === focused);
  successor?.focus({ preventScroll: true });
}

/** Sends a GET, or a POST if there is a `body`, and returns the JSON response. If the status is not 2xx, throws an error with the message in the response. */
export async function fetchJson(path, body) {
  const options = body === undefined
    ? {}
    : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const text = await response.text();
  const json = text ? JSON.parse(text) : null;
  if (!response.ok) throw new Error(json?.error ?? response.statusText);
  return json;
}

/** Returns the query string of a URL with these parameters. Empty parameters are left out. */
export function query(parameters) {
  const set = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return set.length === 0 ? "" : `?${new URLSearchParams(set)}`;
}

/** Creates the text that an empty view or panel shows. */
export const placeholder = (...content) => h("p", { class: "placeholder" }, ...content);
