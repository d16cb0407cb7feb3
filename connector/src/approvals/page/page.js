// Open requests with their fingerprint phrase, approve, deny, history. An approval is a sign-in whose nonce is
// the hash of this value, this public key and this expiry; the daemon checks it.

import { base64url, claims, comeBack, discovered, leave, sha256 } from "./sign_in.js";

const REFRESH = 10_000;
const WORDS = 6;
const encoder = new TextEncoder();
const at = (id) => document.getElementById(id);
const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const say = (text, bad = false) => {
  at("status").textContent = text;
  at("status").className = bad ? "bad" : "";
};

let settings, discovery, words;

function joined(...parts) {
  const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    all.set(part, offset);
    offset += part.length;
  }
  return all;
}

/** Computed here, from the key that is approved: see docs/connector-approvals.md. */
async function phrase(request) {
  const prefix = encoder.encode("claviger-fingerprint-v1");
  const [email, key] = [await sha256(encoder.encode(request.email)), await sha256(bytes(request.publicKey))];
  const hash = await sha256(joined(prefix, email, key));
  const bits = [...hash].map((byte) => byte.toString(2).padStart(8, "0")).join("");
  return Array.from({ length: WORDS }, (_, i) => words[parseInt(bits.slice(11 * i, 11 * i + 11), 2)]).join("-");
}

/** See docs/approvals.md. */
async function nonce(request, expires) {
  const time = new Uint8Array(8);
  new DataView(time.buffer).setBigUint64(0, BigInt(expires));
  const key = await sha256(bytes(request.publicKey));
  const prefix = encoder.encode("claviger-approval-v1");
  return base64url(await sha256(joined(prefix, bytes(request.wrappedSha256), key, time)));
}

async function ask(method, path, body) {
  const headers = { authorization: `Bearer ${sessionStorage.getItem("token")}` };
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  if (answer.status === 401) {
    signedOut();
    throw Error("your sign-in has ended; sign in again");
  }
  const text = await answer.text();
  if (!answer.ok) throw Error(answer.status === 403 && !text ? "you are no approver here" : text || failures[answer.status] || `the connector answers ${answer.status}`);
  return text && JSON.parse(text);
}

const failures = { 404: "it is no longer open", 429: "too many requests; wait a minute" };

function signedOut() {
  sessionStorage.removeItem("token");
  at("who").textContent = "";
  at("sign").hidden = false;
  at("open").hidden = at("past").hidden = true;
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function age(seconds) {
  const passed = Math.max(0, Math.floor(Date.now() / 1000) - seconds);
  if (passed < 90) return `${passed} seconds ago`;
  if (passed < 5400) return `${Math.round(passed / 60)} minutes ago`;
  return passed < 129_600 ? `${Math.round(passed / 3600)} hours ago` : `${Math.round(passed / 86_400)} days ago`;
}

async function card(request) {
  const shown = element("li");
  const computed = await phrase(request);
  shown.append(element("h3", "", request.email), element("p", "phrase", computed));
  shown.append(element("p", "muted", `asked ${age(request.created)}, until ${new Date(1000 * request.expires).toLocaleString()}`));
  if (computed !== request.fingerprint) {
    shown.append(element("p", "bad", "The connector shows another phrase for this key. Do not approve; tell an operator."));
    return shown;
  }
  const choice = element("div", "choice");
  const approve = element("button", "first", "Approve");
  const deny = element("button", "", "Deny");
  for (const [button, act] of [[approve, () => approving(request)], [deny, () => denying(request)]]) {
    button.type = "button";
    button.setAttribute("aria-label", `${button.textContent} the device of ${request.email}`);
    button.addEventListener("click", () => {
      approve.disabled = deny.disabled = true;
      act().catch((error) => {
        approve.disabled = deny.disabled = false;
        say(error.message, true);
      });
    });
    choice.append(button);
  }
  shown.append(choice);
  return shown;
}

async function approving(request) {
  const expires = Math.floor(Date.now() / 1000) + Math.min(settings.maxAge, 600);
  say("Signing you in for this approval …");
  await leave(settings, discovery, await nonce(request, expires), { id: request.id, email: request.email, expires });
}

async function denying(request) {
  await ask("POST", `/auth-requests/${request.id}/deny`, {});
  say(`The device of ${request.email} was denied.`);
  await show();
}

function past(request) {
  const shown = element("li");
  const state = { fetched: "approved", approved: "approved" }[request.state] ?? request.state;
  const by = request.by ? ` by ${request.by}` : "";
  const told = element("span");
  told.append(element("span", "", request.email), element("br"));
  told.append(element("span", "muted", `${age(request.decided ?? request.created)}${by}${request.state === "approved" ? ", not fetched yet" : ""}`));
  shown.append(element("span", "state", state), told);
  return shown;
}

async function show() {
  const { requests } = await ask("GET", "/auth-requests");
  const { requests: decided } = await ask("GET", "/auth-requests/history");
  const cards = await Promise.all(requests.map(card));
  const list = JSON.stringify(requests.map((request) => request.id));
  if (at("requests").dataset.shown !== list) {
    at("requests").replaceChildren(...(cards.length > 0 ? cards : [element("li", "empty", "No device waits.")]));
    at("requests").dataset.shown = list;
  }
  at("history").replaceChildren(...(decided.length > 0 ? decided.map(past) : [element("li", "empty", "Nothing yet.")]));
  at("open").hidden = at("past").hidden = false;
  at("sign").hidden = true;
}

async function start() {
  [settings, words] = await Promise.all([
    fetch("settings").then((answer) => (answer.ok ? answer.json() : Promise.reject(Error("the issuer cannot be reached by the connector; try again")))),
    fetch("words").then((answer) => answer.text()).then((text) => text.trim().split("\n")),
  ]);
  discovery = await discovered(settings);
  at("sign").addEventListener("click", () => leave(settings, discovery, undefined, null).catch((error) => say(error.message, true)));
  const back = await comeBack(settings, discovery);
  if (back !== null) sessionStorage.setItem("token", back.idToken);
  const token = sessionStorage.getItem("token");
  if (token === null) {
    signedOut();
    say("Sign in to see who asks.");
    return;
  }
  const { email, preferred_username: name, sub } = claims(token);
  at("who").textContent = email ?? name ?? sub;
  say("");
  if (back?.purpose) {
    const { id, email: device, expires } = back.purpose;
    await ask("POST", `/auth-requests/${id}/approve`, { idToken: back.idToken, expires });
    say(`The device of ${device} was approved.`);
  }
  await show();
}

start().catch(async (error) => {
  say(error.message, true);
  if (sessionStorage.getItem("token") === null) at("sign").hidden = discovery === undefined;
  else await show().catch(() => {});
});
setInterval(() => {
  if (!document.hidden && sessionStorage.getItem("token") !== null && discovery) show().catch((error) => say(error.message, true));
}, REFRESH);
