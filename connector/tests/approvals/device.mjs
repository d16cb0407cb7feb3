// A user's devices, played with WebCrypto: they enrol a user, ask for the user's key, approve one another,
// and decrypt an item with the key that they got.
//
// Use: node device.mjs COMMAND URL STATE …; STATE is a folder in which a device keeps what it knows.

import { readFileSync, writeFileSync } from "node:fs";

const { subtle } = globalThis.crypto;
const [command, url, state, ...rest] = process.argv.slice(2);
const base64 = (bytes) => Buffer.from(bytes).toString("base64");
const bytes = (text) => Buffer.from(text, "base64");
const remember = (name, value) => writeFileSync(`${state}/${name}.json`, JSON.stringify(value));
const recall = (name) => JSON.parse(readFileSync(`${state}/${name}.json`, "utf8"));
const random = (count) => globalThis.crypto.getRandomValues(new Uint8Array(count));

async function ask(method, path, { token, body, headers = {} } = {}) {
  if (token) headers.authorization = `Bearer ${token}`;
  if (body) headers["content-type"] = "application/json";
  const answer = await fetch(url + path, { method, headers, body: body && JSON.stringify(body) });
  const text = await answer.text();
  return { status: answer.status, body: text.startsWith("{") ? JSON.parse(text) : text };
}

// The first half encrypts (AES-256-CBC), the second authenticates (HMAC-SHA-256 over IV and ciphertext).
async function halves(userKey) {
  const encrypt = await subtle.importKey("raw", userKey.subarray(0, 32), "AES-CBC", false, ["encrypt", "decrypt"]);
  const mac = { name: "HMAC", hash: "SHA-256" };
  return [encrypt, await subtle.importKey("raw", userKey.subarray(32), mac, false, ["sign", "verify"])];
}

async function encrypted(userKey, text) {
  const [encrypt, mac] = await halves(userKey);
  const iv = random(16);
  const sealed = Buffer.from(await subtle.encrypt({ name: "AES-CBC", iv }, encrypt, Buffer.from(text)));
  const tag = await subtle.sign("HMAC", mac, Buffer.concat([iv, sealed]));
  return { iv: base64(iv), sealed: base64(sealed), tag: base64(tag) };
}

async function decrypted(userKey, item) {
  const [encrypt, mac] = await halves(userKey);
  const [iv, sealed] = [bytes(item.iv), bytes(item.sealed)];
  if (!(await subtle.verify("HMAC", mac, bytes(item.tag), Buffer.concat([iv, sealed])))) throw Error("not authentic");
  return Buffer.from(await subtle.decrypt({ name: "AES-CBC", iv }, encrypt, sealed)).toString();
}

async function wrapped(userKey, spki, hash) {
  const key = await subtle.importKey("spki", spki, { name: "RSA-OAEP", hash }, false, ["encrypt"]);
  return base64(await subtle.encrypt({ name: "RSA-OAEP" }, key, userKey));
}

async function phrase(email, spki) {
  const sha256 = async (data) => Buffer.from(await subtle.digest("SHA-256", data));
  const words = (await (await fetch(`${url}/approvals/words`)).text()).trim().split("\n");
  const hash = await sha256(
    Buffer.concat([Buffer.from("claviger-fingerprint-v1"), await sha256(Buffer.from(email)), await sha256(spki)]),
  );
  const bits = [...hash].map((byte) => byte.toString(2).padStart(8, "0")).join("");
  return [0, 1, 2, 3, 4, 5].map((i) => words[parseInt(bits.slice(11 * i, 11 * i + 11), 2)]).join("-");
}

const commands = {
  // enrol TOKEN TEXT: a new user key, and an item under it.
  async enrol(token, text) {
    const userKey = Buffer.from(random(64));
    const { body: organization } = await ask("GET", "/approvals/organization-key", { token });
    const hash = { "RSA-OAEP": "SHA-1", "RSA-OAEP-256": "SHA-256" }[organization.algorithm];
    const value = await wrapped(userKey, bytes(organization.publicKey), hash);
    remember("user-key", base64(userKey));
    remember("item", await encrypted(userKey, text));
    return (await ask("PUT", "/approvals/recovery", { token, body: { value } })).status;
  },

  // ask EMAIL KIND: a key pair for this once.
  async ask(email, kind) {
    const algorithm = { name: "RSA-OAEP", hash: "SHA-1", modulusLength: 2048, publicExponent: new Uint8Array([1, 0, 1]) };
    const pair = await subtle.generateKey(algorithm, true, ["encrypt", "decrypt"]);
    const spki = Buffer.from(await subtle.exportKey("spki", pair.publicKey));
    const accessCode = base64(random(18));
    const { status, body } = await ask("POST", "/auth-requests", {
      body: { email, publicKey: base64(spki), accessCode, kind },
    });
    if (status !== 201) return { status };
    if (body.fingerprint !== (await phrase(email, spki))) throw Error(`another phrase than ${body.fingerprint}`);
    remember("request", {
      id: body.id,
      accessCode,
      privateKey: base64(await subtle.exportKey("pkcs8", pair.privateKey)),
    });
    return { status, ...body, publicKey: base64(spki) };
  },

  // approve TOKEN ID: another device of the user, which has the key, encrypts it for the new one.
  async approve(token, id) {
    const { body } = await ask("GET", "/auth-requests", { token });
    const request = body.requests.find((request) => request.id === id);
    const value = await wrapped(bytes(recall("user-key")), bytes(request.publicKey), "SHA-1");
    return (await ask("POST", `/auth-requests/${id}/approve`, { token, body: { value } })).status;
  },

  // fetch FOLDER: the key, and with it the item of the device whose folder it is.
  async fetch(folder) {
    const { id, accessCode, privateKey } = recall("request");
    const { status, body } = await ask("GET", `/auth-requests/${id}`, { headers: { "x-access-code": accessCode } });
    if (status !== 200 || body.state !== "approved") return { status, state: body.state };
    const algorithm = { name: "RSA-OAEP", hash: "SHA-1" };
    const key = await subtle.importKey("pkcs8", bytes(privateKey), algorithm, false, ["decrypt"]);
    const userKey = Buffer.from(await subtle.decrypt({ name: "RSA-OAEP" }, key, bytes(body.value)));
    const item = JSON.parse(readFileSync(`${folder}/item.json`, "utf8"));
    return { status, state: body.state, item: await decrypted(userKey, item) };
  },
};

console.log(JSON.stringify(await commands[command](...rest)));
