// As much of Bitwarden's identity server and vault API as its command line program asks for when a user
// signs in by SSO or API key and a Key Connector has the key. It stores what the program sends, and has
// no key with which any of it could be read.
//
// Use: node server.mjs CERTIFICATE PRIVATE_KEY CONNECTOR_URL; prints its URL when it listens.

import { createHash, createSign, generateKeyPairSync, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";

const [certificate, privateKey, connector] = process.argv.slice(2);
const signing = generateKeyPairSync("rsa", { modulusLength: 2048 });
const users = new Map(); // by e-mail address
const codes = new Map(); // what was asked for by the browser, until the program brings the code

const server = createServer({ cert: readFileSync(certificate), key: readFileSync(privateKey) }, answer);
server.listen(0, "localhost", () => console.log(url("")));

function url(path) {
  return `https://localhost:${server.address().port}${path}`;
}

// METHOD PATH: what is answered, with status 200 unless it says otherwise.
const routes = {
  "GET /identity/.well-known/openid-configuration": () => ({
    issuer: url("/identity"),
    jwks_uri: url("/identity/jwks"),
  }),
  "GET /identity/jwks": () => ({
    keys: [{ ...signing.publicKey.export({ format: "jwk" }), kid: "k1", use: "sig", alg: "RS256" }],
  }),
  "GET /identity/connect/authorize": authorize,
  "POST /identity/connect/token": token,
  "GET /api/config": () => ({
    object: "config",
    version: "2026.9.0",
    environment: { vault: url(""), api: url("/api"), identity: url("/identity") },
    featureStates: {},
  }),
  "GET /api/accounts/revision-date": () => Date.now(),
  "GET /api/sync": (user) => ({ ...EMPTY_VAULT, object: "sync", profile: profile(user), ciphers: user.ciphers }),
  "POST /api/accounts/set-key-connector-key": setKey,
  "POST /api/accounts/key-management/user-key-id": () => undefined,
  "POST /api/ciphers": addCipher,
};

async function answer(request, response) {
  const { pathname, searchParams } = new URL(request.url, url(""));
  const route = routes[`${request.method} ${pathname}`];
  const send = (status, body, headers = {}) => {
    response.writeHead(status, { "content-type": "application/json", ...headers });
    response.end(body === undefined ? "" : JSON.stringify(body));
  };
  let body = "";
  for await (const part of request) body += part;
  if (!route) {
    console.error(`${request.method} ${request.url} is not there`);
    return send(404, {});
  }
  try {
    if (!pathname.startsWith("/api/") || pathname === "/api/config") {
      const parameters = request.method === "POST" ? new URLSearchParams(body) : searchParams;
      return send(200, route(parameters, send));
    }
    const user = ofToken(request.headers.authorization);
    return user ? send(200, route(user, body && JSON.parse(body))) : send(401, {});
  } catch (error) {
    if (error.redirect) return send(302, undefined, { location: error.redirect });
    console.error(`${request.method} ${request.url}: ${error.message}`);
    return send(400, { message: error.message, error: error.message });
  }
}

// The end of a sign-in in the browser: back to the program with a code.
function authorize(parameters) {
  const code = randomUUID();
  codes.set(code, { email: parameters.get("login_hint"), challenge: parameters.get("code_challenge") });
  const back = new URL(parameters.get("redirect_uri"));
  back.searchParams.set("code", code);
  back.searchParams.set("state", parameters.get("state"));
  throw Object.assign(new Error("redirect"), { redirect: back.href });
}

function token(parameters) {
  const [user, method] = signedIn(parameters);
  const access_token = sign(user, method);
  return {
    access_token,
    expires_in: 3600,
    token_type: "Bearer",
    refresh_token: `${user.email} ${method}`,
    scope: "api offline_access",
    Key: user.key,
    PrivateKey: user.keys?.encryptedPrivateKey,
    AccountKeys: accountKeys(user),
    Kdf: 0,
    KdfIterations: 600000,
    ResetMasterPassword: false,
    ForcePasswordReset: false,
    ApiUseKeyConnector: true,
    KeyConnectorUrl: connector,
    UserDecryptionOptions: {
      HasMasterPassword: false,
      KeyConnectorOption: { KeyConnectorUrl: connector },
      Object: "userDecryptionOptions",
    },
  };
}

// The user, and what `amr` says.
function signedIn(parameters) {
  switch (parameters.get("grant_type")) {
    case "authorization_code": {
      const { email, challenge } = codes.get(parameters.get("code")) ?? {};
      codes.delete(parameters.get("code"));
      const verifier = createHash("sha256").update(parameters.get("code_verifier"));
      if (!email || verifier.digest("base64url") !== challenge) throw new Error("invalid_grant");
      if (!users.has(email)) users.set(email, { id: randomUUID(), email, ciphers: [], refusals: 0 });
      return [users.get(email), "external"];
    }
    case "client_credentials": {
      const id = parameters.get("client_id").replace(/^user\./, "");
      const user = [...users.values()].find((user) => user.id === id);
      if (!user) throw new Error("invalid_client");
      return [user, "Application"];
    }
    case "refresh_token": {
      const [email, method] = parameters.get("refresh_token").split(" ");
      return [users.get(email), method];
    }
    default:
      throw new Error("unsupported_grant_type");
  }
}

function sign(user, method) {
  const now = Math.floor(Date.now() / 1000);
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const claims = {
    iss: url("/identity"), sub: user.id, email: user.email, nbf: now, iat: now, exp: now + 3600,
    scope: ["api", "offline_access"], amr: [method], sstamp: user.id, premium: true, email_verified: true,
  };
  const signed = `${part({ alg: "RS256", kid: "k1", typ: "at+jwt" })}.${part(claims)}`;
  return `${signed}.${createSign("RSA-SHA256").update(signed).sign(signing.privateKey, "base64url")}`;
}

// Only its own tokens come back, so that the subject is enough.
function ofToken(authorization) {
  const claims = JSON.parse(Buffer.from(authorization?.split(".")[1] ?? "bnVsbA", "base64url"));
  return [...users.values()].find((user) => user.id === claims?.sub);
}

// The end of an enrolment. For addresses that begin with "half-way" it fails the first time.
function setKey(user, { key, keys }) {
  if (user.email.startsWith("half-way") && user.refusals++ === 0) throw new Error("the server refuses the first time");
  if (user.key) throw new Error("the user is enrolled");
  Object.assign(user, { key, keys });
}

function addCipher(user, cipher) {
  const now = new Date().toISOString();
  const stored = {
    ...cipher, id: randomUUID(), object: "cipherDetails", creationDate: now, revisionDate: now,
    deletedDate: null, edit: true, viewPassword: true, organizationUseTotp: false, collectionIds: [],
    permissions: { delete: true, restore: true }, attachments: null,
  };
  user.ciphers.push(stored);
  return stored;
}

function profile(user) {
  return {
    object: "profile", id: user.id, email: user.email, name: user.email, emailVerified: true, premium: true,
    key: user.key, privateKey: user.keys?.encryptedPrivateKey, accountKeys: accountKeys(user),
    usesKeyConnector: true, securityStamp: user.id, culture: "en-US", twoFactorEnabled: false,
    forcePasswordReset: false, organizations: [], providers: [], providerOrganizations: [],
  };
}

function accountKeys({ keys }) {
  return keys && {
    publicKeyEncryptionKeyPair: {
      publicKey: keys.publicKey, wrappedPrivateKey: keys.encryptedPrivateKey, signedPublicKey: null,
    },
    signatureKeyPair: null,
    securityState: null,
  };
}

const EMPTY_VAULT = {
  folders: [], collections: [], policies: [], sends: [],
  domains: { equivalentDomains: [], globalEquivalentDomains: [] },
};
