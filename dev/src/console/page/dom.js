// Creates elements. External data becomes text or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([property, of]) => element.style.setProperty(property, of));
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element; texts among the children become text nodes. */
export const h = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

/** The same for SVG. */
export const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

/** Puts these in the place of what an element has, and keeps the focus where it was if its `data-key` is still there. */
export function replace(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  element.replaceChildren(...children.flat(3).filter(Boolean));
  if (focused === undefined) return;
  const again = [...element.querySelectorAll("[data-key]")].find((candidate) => candidate.dataset.key === focused);
  again?.focus({ preventScroll: true });
}

/** Asks the console. A refusal is an error that has its reason. */
export async function ask(path, body) {
  const options = body === undefined
    ? {}
    : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  const text = await answer.text();
  const json = text ? JSON.parse(text) : null;
  if (!answer.ok) throw new Error(json?.error ?? answer.statusText);
  return json;
}

/** The parameters of an address, without those that are empty. */
export function query(parameters) {
  const set = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return set.length === 0 ? "" : `?${new URLSearchParams(set)}`;
}

/** What stands where there is nothing yet. */
export const nothing = (...why) => h("p", { class: "nothing" }, ...why);
