// What is not as it should be, the worst first.

import { firstWrong, keys, wrongReplicas } from "./lists.js";
import { ORDER, SOON, byId, count, date, el, ends, hidden, now, severity, stateOf } from "./words.js";

/** `[severity, what, said, key]` of everything that is not as it should be, the worst first. */
function attention(state) {
  const { head } = state;
  const found = [];
  const say = (kind, what, said, key) => found.push([kind, what, said, key]);
  if (head.phase !== "ready") say("warn", "daemon", `It is ${head.phase}.`);
  else if (!head.ready) say("bad", "daemon", "/readyz says down: the audit log cannot be written.");
  if (head.reload_refused) say("bad", "configuration", "The last reload was refused: the file says something else than what is in force.");
  if (head.pins === null) say("bad", "PIN latches", "They cannot be read, so no login is tried.");
  for (const pin of head.pins ?? []) {
    if (pin.latched) say("bad", `token ${pin.token}`, `Logins are blocked until an operator acts (serial ${pin.serial}).`);
  }
  const { audit } = head;
  if (audit === null) say("warn", "audit log", "It is off: nothing is recorded.");
  if (audit?.failing) say("bad", "audit log", "It cannot be written: calls fail.");
  else if (audit?.in_reserve) say("bad", "audit log", "Its disk is full: only unwrap, rewrap and sign are answered.");
  if (audit?.checkpoint_error) say("warn", "checkpoints", audit.checkpoint_error);
  if (head.tls) {
    const left = head.tls.certificate_not_after - now();
    if (left < SOON) say(left < 0 ? "bad" : "warn", "server certificate", ends(head.tls.certificate_not_after));
    if (head.tls.stale) say("bad", "certificate files", "They cannot be used as they are: older ones are in force.");
    for (const crl of head.tls.crls) {
      if (crl.next_update < now()) say("bad", "revocation list", `${crl.file} promised its successor by ${date(crl.next_update)}.`);
    }
  }
  for (const provider of head.providers) {
    if (provider.drained) say("warn", provider.provider, "Drained: `claviger undrain` takes it into service again.");
    const missing = provider.measures.filter((measure) => !measure.in_force).map((measure) => measure.name);
    if (missing.length) say("warn", provider.provider, `Its process is not confined by ${missing.join(", ")}.`);
  }
  // An HSM that is away is one thing, however many keys it has.
  const alike = new Map();
  for (const [name, key] of state.keys) {
    const of = severity(key.reason);
    const kind = of === "ok" && wrongReplicas(key) ? "warn" : of;
    if (kind !== "bad" && kind !== "warn") continue;
    const wrong = firstWrong(key);
    const what = `${kind} ${wrong?.provider} ${wrong?.reason ?? key.reason}`;
    const said = wrong?.error ? `${wrong.provider}: ${wrong.error}` : `${key.reason}.`;
    if (!alike.has(what)) alike.set(what, [kind, said, []]);
    alike.get(what)[2].push(name);
  }
  for (const [kind, said, names] of alike.values()) {
    const [first] = names;
    say(kind, names.length === 1 ? first : `${first} and ${count(names.length - 1, "more key")}`, said, first);
  }
  for (const [name, caller] of state.callers) {
    const left = caller.certificate_not_after === null ? Infinity : caller.certificate_not_after - now();
    if (left < SOON) say(left < 0 ? "bad" : "warn", `caller ${name}`, el("span", {}, "Its certificate ", ends(caller.certificate_not_after)));
    for (const { key, failed, limit } of caller.budgets) {
      if (limit !== null && failed >= 0.8 * limit) say(failed >= limit ? "bad" : "warn", `caller ${name}`, `${failed} of ${limit} failed unwraps on ${key} are spent.`);
    }
  }
  return found.sort((a, b) => ORDER[a[0]] - ORDER[b[0]]);
}

/** Lines of the list of what needs attention. */
const MOST = 8;

/** Shows it, by `replace` where it has changed. */
export function showAttention(state, replace) {
  const found = attention(state);
  const said = found.length ? `${count(found.length, "thing needs", "things need")} attention.` : "Nothing needs attention.";
  if (byId("attention-count").textContent !== said) byId("attention-count").textContent = said;
  const lines = found.slice(0, MOST).map(([kind, what, text, key]) => {
    const name = key === undefined ? what : el("button", { type: "button", className: "link", onclick: () => keys.reveal(key) }, what);
    return el("li", { className: kind }, el("span", {}, stateOf("", kind), hidden(kind === "bad" ? "wrong: " : "warning: "), " ", name), el("span", { className: "what" }, text));
  });
  if (found.length > MOST) lines.push(el("li", { className: found[MOST][0] }, el("span", {}, `and ${found.length - MOST} more`)));
  // What has not changed is left alone: a reader of the screen, and the focus, are there.
  const print = found.map(([kind, what, text]) => `${kind} ${what} ${text.textContent ?? text}`).join("\n");
  replace("attention", print, () => lines);
  const worst = found[0]?.[0];
  document.title = `${worst === "bad" ? "✕ " : worst === "warn" ? "▲ " : ""}${found.length ? `${found.length} · ` : ""}Claviger`;
}
