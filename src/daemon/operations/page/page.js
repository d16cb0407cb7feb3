// The page of the operations listener: shows what `events` tells, and keeps it up to date.

import { showAttention } from "./attention.js";
import { callers, keys, wrongReplicas } from "./lists.js";
import { ORDER, SOON, ago, byId, code, count, date, daysOrLess, duration, el, ends, now, setClock, severity, stateOf, tick } from "./words.js";

/** After a refusal the page asks again so much later, in milliseconds. */
const AGAIN = 10000;

const state = { head: null, keys: new Map(), callers: new Map() };

const printed = new Map();

/** Replaces the children of an element if what they are made of has changed. */
function replace(id, made, children) {
  const print = typeof made === "string" ? made : JSON.stringify(made);
  if (printed.get(id) === print) return;
  printed.set(id, print);
  byId(id).replaceChildren(...children());
}

function tile(term, value, small) {
  return el("div", {}, el("dt", {}, term), el("dd", {}, value, small ? el("small", {}, small) : null));
}

function certificateTile(tls) {
  if (!tls) return tile("Certificate", "none", "only Unix sockets");
  const left = tls.certificate_not_after - now();
  const text = left < 0 ? "ended" : `${daysOrLess(left)} left`;
  const value = left < 0 ? stateOf(text, "bad") : left < SOON ? stateOf(text, "warn") : text;
  return tile("Certificate", value, `${left < 0 ? "on" : "ends"} ${date(tls.certificate_not_after)}`);
}

function showSummary() {
  const { head } = state;
  const counts = { ok: 0, bad: 0, warn: 0, waiting: 0, off: 0 };
  for (const key of state.keys.values()) counts[severity(key.reason)] += 1;
  const wrong = counts.bad + counts.warn;
  const total = state.keys.size;
  const [keysSaid, keysMore] = wrong
    ? [`${wrong.toLocaleString("en")} not ok`, `of ${count(total, "key")}`]
    : counts.waiting ? [`${counts.waiting.toLocaleString("en")} opening`, `of ${count(total, "key")}`]
      : ["ok", count(total, "key")];
  const kind = counts.bad ? "bad" : counts.warn ? "warn" : counts.waiting ? "waiting" : "ok";
  const audit = head.audit;
  const [auditWord, auditKind] = !audit ? ["off", "warn"] : audit.failing ? ["failing", "bad"] : audit.in_reserve ? ["in reserve", "bad"] : ["ok", "ok"];
  byId("summary").replaceChildren(
    tile("Daemon", stateOf(head.ready ? head.phase : head.phase === "ready" ? "not ready" : head.phase, head.ready ? "ok" : "warn"), `up ${duration(head.uptime_s)}`),
    tile("Keys", stateOf(keysSaid, kind), keysMore),
    tile("Calls in flight", head.calls_in_flight.toLocaleString("en"), count(head.connections, "connection")),
    tile("Audit log", stateOf(auditWord, auditKind), audit ? count(audit.records, "line") : "nothing is recorded"),
    certificateTile(head.tls),
    tile("Configuration", el("span", { className: "hash", title: head.config_sha256 }, head.config_sha256.slice(0, 12)), head.reload_refused ? stateOf("last reload refused", "bad") : "in force"),
  );
  byId("version").textContent = head.program_version;
}

function providerOf(provider) {
  const names = (inForce) => provider.measures.filter((measure) => measure.in_force === inForce).map((measure) => measure.name).join(", ");
  const [confined, missing] = [names(true), names(false)];
  const confinement = [confined && `confined by ${confined}`, missing && `not by ${missing}`].filter(Boolean).join("; ");
  return el("li", {}, el("div", { className: "row" },
    el("span", { className: "name" }, provider.provider),
    el("span", {}, provider.drained ? stateOf("drained", "warn") : stateOf("in service", "ok")),
    el("span", {}, provider.kind),
    el("span", { className: "muted" }, provider.hardware ? "keys in hardware" : "keys not in hardware", confinement && `; ${confinement}`),
  ));
}

/** Lines of what happened, the newest first. */
function happened(lines, unknown) {
  if (lines.length === 0) return [el("li", { className: "empty" }, "None since the start.")];
  return lines.map(({ at, count: times, what, of, identity, about, text }) => el("li", {}, el("div", { className: "row" },
    el("span", {}, el("strong", {}, what), ` ${of ?? identity ?? unknown}`),
    el("span", { className: "muted" }, ago(at)),
    el("span", { className: "muted" }, [about, times > 1 && `${times.toLocaleString("en")} times`, text].filter(Boolean).join(", ")),
  )));
}

function fact(term, ...value) {
  return [el("dt", {}, term), el("dd", {}, ...value)];
}

function auditFacts(audit) {
  if (!audit) return fact("State", "off: nothing is recorded");
  return [
    fact("File", code(audit.file)),
    fact("Lines", audit.records.toLocaleString("en")),
    fact("Chain head", code(audit.head)),
    audit.free_bytes === null ? [] : fact("Room left", `${Math.floor(audit.free_bytes / 1048576).toLocaleString("en")} MiB`),
    audit.checkpoint_at === null ? fact("Checkpoint", audit.checkpoint_error ?? "none yet") : fact("Checkpoint", `over ${count(audit.checkpoint_records, "line")}, `, ago(audit.checkpoint_at)),
    audit.checkpoint_at !== null && audit.checkpoint_error ? fact("Last attempt", stateOf(audit.checkpoint_error, "warn")) : [],
  ].flat();
}

function certificateFacts(tls) {
  if (!tls) return fact("Server", "only Unix sockets listen");
  return [
    fact("Server", ends(tls.certificate_not_after), tls.stale ? stateOf(" its files cannot be used: older ones are in force", "bad") : ""),
    tls.crls.map((crl) => fact("Revocation list", code(crl.file), ` next by ${date(crl.next_update)} `, crl.next_update < now() ? stateOf("overdue", "bad") : "")).flat(),
  ].flat();
}

/** What a list needs of each: the words that a filter looks at, its place in the order, and its data. */
function entries(all, words, rank, before) {
  const entriesOf = new Map();
  for (const [name, data] of all) {
    const old = before?.get(name);
    entriesOf.set(name, old?.data === data ? old : { data, words: words(name, data).toLowerCase(), rank: rank(data) });
  }
  return entriesOf;
}

function keyWords(name, key) {
  const places = key.versions.flatMap((version) => [version.state, version.reason, ...version.replicas.flatMap((replica) => [replica.provider, replica.locator, replica.reason, replica.state])]);
  return [name, key.reason, ...places].join(" ");
}

function keyRank(key) {
  const kind = severity(key.reason);
  return kind === "ok" && wrongReplicas(key) ? ORDER.warn : ORDER[kind];
}

function callerWords(name, caller) {
  return [name, caller.identity ?? "", ...caller.budgets.map((budget) => budget.key)].join(" ");
}

/** Callers that were seen last come first. */
const callerRank = (caller) => (caller.seen_at === null ? 1 : 0);

function show() {
  const { head } = state;
  showSummary();
  showAttention(state, replace);
  keys.update(entries(state.keys, keyWords, keyRank, keys.all), "key", "keys");
  callers.update(entries(state.callers, callerWords, callerRank, callers.all), "caller", "callers");
  replace("providers", head.providers, () => head.providers.map(providerOf));
  replace("refusals", head.refusals, () => happened(head.refusals, "an unknown peer"));
  replace("events", head.events, () => happened(head.events, ""));
  replace("audit", head.audit ?? "off", () => auditFacts(head.audit));
  replace("certificates", head.tls ?? "none", () => certificateFacts(head.tls));
}

let source = null;
let heard = null;

function live(word, kind) {
  const element = byId("live");
  document.body.classList.toggle("stale", kind !== "ok" && state.head !== null);
  if (element.textContent !== word) element.replaceChildren(stateOf(word, kind));
}

function received(event, isAll) {
  const { at, head, keys: changedKeys, callers: changedCallers, gone } = JSON.parse(event.data);
  setClock(at);
  heard = new Date();
  if (isAll) { state.keys.clear(); state.callers.clear(); }
  state.head = head;
  for (const [map, changed, left] of [[state.keys, changedKeys, gone?.keys], [state.callers, changedCallers, gone?.callers]]) {
    for (const name of left ?? []) map.delete(name);
    for (const [name, data] of Object.entries(changed)) map.set(name, data);
  }
  live("live", "ok");
  show();
}

function connect() {
  source?.close();
  source = new EventSource("events");
  source.addEventListener("all", (event) => received(event, true));
  source.addEventListener("change", (event) => received(event, false));
  source.onerror = async () => {
    const since = heard ? `: last heard at ${heard.toLocaleTimeString()}` : "";
    live(`not live${since}`, "bad");
    // A refusal ends a stream for good, a lost connection does not.
    if (source.readyState !== EventSource.CLOSED) return;
    const why = await refusal();
    if (why) live(`not live: ${why}`, "bad");
    setTimeout(connect, AGAIN);
  };
}

/** Why the stream is refused; nothing where it is not. */
async function refusal() {
  try {
    const answer = await fetch("events");
    if (!answer.ok) return (await answer.text()).trim();
    await answer.body.cancel();
  } catch {
    // There is no answer at all.
  }
  return "";
}

setInterval(tick, 1000);
connect();
