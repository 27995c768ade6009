// One trace: its spans as a waterfall, and its log lines.
import { fetchJson, h, placeholder, query, replace } from "./dom.js";
import { FIRST_TRACE } from "./domain.js";
import { clock, duration, short, statusClass } from "./format.js";
import { line } from "./logs.js";

let root, id, chosen, trace, lines, navigate;

export async function open(element, address, go) {
  root = element;
  navigate = go;
  id = address.pathname.split("/")[2];
  chosen = address.searchParams.get("span");
  trace = null;
  replace(root, placeholder(id === "first" ? FIRST_TRACE : "Loading the trace…"));
  await load();
}

/** Reloads the trace after changes while it is missing or its start is less than 15 seconds ago, because spans arrive in batches. */
export function update(changed) {
  const isRecent = !trace || Date.now() - trace.started < 15_000;
  return isRecent && (changed.has("traces") || changed.has("logs")) ? load() : undefined;
}

async function load() {
  if (id === "first") {
    const { trace_id: found } = await fetchJson("/api/first");
    if (!found || !root.classList.contains("view-waterfall")) return;
    id = found;
    navigate(`/traces/${found}`, { instead: true, stay: true });
  }
  const requestedId = id;
  try {
    const found = await fetchJson(`/api/traces/${requestedId}`);
    if (requestedId !== id || !root.classList.contains("view-waterfall")) return;
    if (trace && found.trace.spans === trace.spans && found.lines.length === lines.length) return;
    ({ trace, lines } = found);
    render();
  } catch (error) {
    if (!trace) replace(root, placeholder(`${error.message}. The trace may still be in progress: spans arrive up to one second after their end.`));
  }
}

function choose(span) {
  chosen = span === chosen ? null : span;
  navigate(`/traces/${id}${query({ span: chosen })}`, { instead: true, stay: true });
  render();
}

const system = (bar) => (bar.attributes["db.system.name"] ? "database" : bar.kind === "client" ? "outbound" : bar.kind);

/** Returns the host and the path of an outbound request, because the name of its span is only the HTTP method. */
function callTarget({ attributes: { "url.full": url } }) {
  if (!URL.canParse(url)) return "";
  const { host, pathname } = new URL(url);
  return ` ${host}${pathname}`;
}

function bar(span, total) {
  const left = (100 * span.offset_ms) / total;
  const width = Math.max(0.4, (100 * span.duration_ms) / total);
  const count = lines.filter((one) => one.span_id === span.span_id).length;
  return h("button", {
    type: "button", class: `span${span.error ? " error" : ""}`, "data-row": true, "data-key": span.span_id, "data-span": span.name,
    "aria-pressed": String(span.span_id === chosen), onclick: () => choose(span.span_id),
  },
  h("span", { class: "label", style: { "padding-left": `${span.depth * 14}px` } },
    h("i", { class: `kind ${system(span)}` }), span.name, system(span) === "outbound" && h("small", {}, callTarget(span)), count > 0 && h("small", {}, ` ${count} line${count === 1 ? "" : "s"}`)),
  h("span", { class: "lane" },
    h("span", { class: `time ${system(span)}`, style: { left: `${Math.min(left, 99.6)}%`, width: `${Math.min(width, 100 - left)}%` } }),
    span.events.map((event) => h("span", { class: "event", title: event.name, style: { left: `${Math.min(99, (100 * (event.at / 1e6 - trace.started)) / total)}%` } }))),
  h("span", { class: "n" }, duration(span.duration_ms)));
}

function attributes(values) {
  return h("dl", { class: "attributes" }, Object.entries(values).map(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
}

const traceLink = (link) => h("li", {}, h("a", { href: `/traces/${link.trace_id}${query({ span: link.span_id })}` }, link.trace_id));

function details(span) {
  if (!span) {
    return [h("h2", {}, "The service"), attributes(trace.resource),
      trace.linked_from.length > 0 && [h("h3", {}, "Linked from"), h("ul", {}, trace.linked_from.map(traceLink))]];
  }
  return [
    h("h2", {}, span.name),
    span.status_message && h("p", { class: "bad" }, span.status_message),
    attributes({ kind: span.kind, begins: `${duration(span.offset_ms)} after the start of the trace`, takes: duration(span.duration_ms), ...span.attributes }),
    span.events.length > 0 && [h("h3", {}, "Events"), span.events.map((event) => [h("p", {}, clock(event.at / 1e6, true), " ", event.name), attributes(event.attributes)])],
    span.links.length > 0 && [h("h3", {}, "Links to"), h("ul", {}, span.links.map(traceLink))],
    h("p", { class: "muted" }, "Span ", h("code", {}, span.span_id)),
  ];
}

function scale(total) {
  return h("div", { class: "scale", "aria-hidden": "true" }, [0, 0.25, 0.5, 0.75, 1].map((part) =>
    h("span", { style: { left: `${part * 100}%` } }, duration(total * part))));
}

function render() {
  const total = Math.max(trace.duration_ms, 0.001);
  const span = trace.waterfall.find((one) => one.span_id === chosen);
  const shownLines = span ? lines.filter((one) => one.span_id === chosen) : lines;
  const title = h("section", { class: "title" },
    h("h1", {}, trace.status !== null && h("span", { class: `status ${statusClass(trace.status)}` }, trace.status), " ", trace.name),
    h("p", { class: "muted" }, `${clock(trace.started, true)} · ${duration(trace.duration_ms)} · ${trace.spans} spans`,
      trace.errors > 0 && h("span", { class: "bad" }, ` · ${trace.errors} with an error`),
      trace.dropped_spans > 0 && ` · ${trace.dropped_spans} not stored`, " · replica ", h("span", { title: trace.instance }, short(trace.instance))),
    h("p", { class: "links" }, h("code", {}, trace.trace_id),
      trace.correlation_id && [" ", h("a", { href: `/traces${query({ correlation_id: trace.correlation_id })}` }, "traces of this correlation id")],
      " ", h("a", { href: `/logs${query({ trace_id: trace.trace_id })}` }, "in the logs")));
  const logs = h("section", { class: "panel trace-logs" },
    h("h2", {}, span ? "Log lines of this span" : "Log lines of the trace", " ", h("small", {}, String(shownLines.length))),
    shownLines.length === 0 ? placeholder(span ? "No log lines of this span. Select the span again to show the lines of the whole trace." : "No log lines.")
      : h("div", { class: "lines" }, shownLines.map((one) => line(one, { chosen: one.span_id === chosen, onspan: choose }))));
  replace(root, title, h("div", { class: "columns trace-columns" },
    h("section", { class: "panel waterfall" }, h("div", { class: "head" }, h("span", {}, "Span"), scale(total), h("span", {})), trace.waterfall.map((one) => bar(one, total))),
    h("div", {}, logs, h("section", { class: "panel details" }, details(span)))));
}
