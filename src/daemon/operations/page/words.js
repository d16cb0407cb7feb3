// Elements, and the words, numbers and times that they show.

const SVG = "http://www.w3.org/2000/svg";
/** A certificate that ends sooner is warned of, in seconds. */
export const SOON = 30 * 86400;
/** Seconds by which the daemon's clock is ahead of this one. */
let ahead = 0;

/** Takes over the daemon's clock. */
export function setClock(at) {
  ahead = at - Date.now() / 1000;
}

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; strings become text. */
export function el(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name.includes("-") || name === "role" || name === "datetime") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const hidden = (text) => el("span", { className: "hidden" }, text);
export const code = (text) => el("code", {}, text);

/** How bad a reason is: a class of the style sheet. */
export function severity(reason) {
  if (reason === "ok") return "ok";
  if (reason === "opening") return "waiting";
  if (reason === "disabled") return "off";
  if (reason === "drained" || reason === "throttled") return "warn";
  return "bad";
}

export const ORDER = { bad: 0, warn: 1, waiting: 2, ok: 3, off: 3 };

export function stateOf(word, kind = severity(word)) {
  return el("span", { className: `state ${kind}` }, word);
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

export function duration(seconds) {
  const [minutes, hours, days] = [60, 3600, 86400].map((unit) => Math.floor(seconds / unit));
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  if (minutes < 60) return `${minutes} min`;
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${days} d ${hours % 24} h`;
}

export function latency(us) {
  if (us < 1000) return `${us} µs`;
  if (us < 100000) return `${(us / 1000).toFixed(1)} ms`;
  return us < 1000000 ? `${Math.round(us / 1000)} ms` : `${(us / 1e6).toFixed(1)} s`;
}

export const now = () => Date.now() / 1000 + ahead;
export const date = (at) => new Date(at * 1000).toISOString().slice(0, 10);

/** `4 s ago`, kept up to date by [`tick`]. */
export function ago(at) {
  const element = el("time", { datetime: new Date(at * 1000).toISOString(), "data-at": String(at) });
  element.title = new Date(at * 1000).toLocaleString();
  element.textContent = `${duration(now() - at)} ago`;
  return element;
}

export function tick() {
  for (const element of document.querySelectorAll("time[data-at]")) {
    const text = `${duration(now() - Number(element.dataset.at))} ago`;
    if (element.textContent !== text) element.textContent = text;
  }
}

/** `71 days`, or `23 h 5 min` where it is less than two. */
export function daysOrLess(seconds) {
  return seconds < 2 * 86400 ? duration(seconds) : count(Math.floor(seconds / 86400), "day");
}

/** When a certificate ends, with a mark where that is soon. */
export function ends(at) {
  const left = at - now();
  if (left < 0) return stateOf(`ended ${date(at)}`, "bad");
  if (left < SOON) return stateOf(`ends ${date(at)}, in ${daysOrLess(left)}`, "warn");
  return el("span", { className: "whole" }, `ends ${date(at)}`);
}

/** The last canaries as a line from 0 to the slowest of them. */
export function spark(canaries) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", "0 0 96 20");
  if (canaries.length === 0) {
    svg.setAttribute("aria-hidden", "true");
    return svg;
  }
  svg.setAttribute("role", "img");
  const [least, most] = [Math.min(...canaries), Math.max(...canaries)];
  const label = canaries.length === 1
    ? `one canary, which took ${latency(most)}`
    : `the last ${canaries.length} canaries took ${latency(least)} to ${latency(most)}`;
  svg.setAttribute("aria-label", label);
  const title = document.createElementNS(SVG, "title");
  title.textContent = label;
  const step = canaries.length > 1 ? 92 / (canaries.length - 1) : 0;
  const points = canaries.map((us, at) => [2 + at * step, 18 - (16 * us) / most]);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join(""));
  const end = document.createElementNS(SVG, "circle");
  const [x, y] = points[points.length - 1];
  end.setAttribute("cx", x.toFixed(1));
  end.setAttribute("cy", y.toFixed(1));
  end.setAttribute("r", "2");
  svg.append(title, path, end);
  return svg;
}

export function lastCanary(canaries) {
  const text = canaries.length ? latency(canaries[canaries.length - 1]) : "";
  return el("span", { className: "number" }, text && hidden("last canary "), text);
}
