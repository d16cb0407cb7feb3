// Signing in at the issuer: OpenID Connect by an authorization code with PKCE (RFC 7636), in this tab. What is
// under way, and the ID token, are kept in sessionStorage: they end with the tab.

const encoder = new TextEncoder();

export async function sha256(bytes) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
}

export function base64url(bytes) {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

const random = () => base64url(crypto.getRandomValues(new Uint8Array(32)));
const redirect = () => location.origin + location.pathname;

/** Where to sign in; fetched once. */
export async function discovered(settings) {
  const answer = await fetch(`${settings.issuer.replace(/\/$/, "")}/.well-known/openid-configuration`);
  if (!answer.ok) throw Error(`the issuer's discovery document answers ${answer.status}`);
  return answer.json();
}

/** Leaves for the issuer; it comes back with a code. `purpose` is what the ID token is for. */
export async function leave(settings, discovery, nonce, purpose) {
  const pending = { state: random(), verifier: random(), nonce: nonce ?? random(), purpose };
  sessionStorage.setItem("pending", JSON.stringify(pending));
  const query = new URLSearchParams({
    response_type: "code",
    client_id: settings.clientId,
    redirect_uri: redirect(),
    scope: settings.scope,
    state: pending.state,
    nonce: pending.nonce,
    code_challenge: base64url(await sha256(encoder.encode(pending.verifier))),
    code_challenge_method: "S256",
  });
  location.assign(`${discovery.authorization_endpoint}?${query}`);
}

/** What came back from the issuer: the ID token and what it is for; none: nothing was under way. */
export async function comeBack(settings, discovery) {
  const query = new URLSearchParams(location.search);
  const pending = JSON.parse(sessionStorage.getItem("pending") ?? "null");
  sessionStorage.removeItem("pending");
  if (!query.has("state")) return null;
  // The code is of use once, and belongs in no history.
  history.replaceState(null, "", redirect());
  if (pending === null || query.get("state") !== pending.state) throw Error("another sign-in came back; sign in again");
  if (query.has("error")) throw Error(`the issuer says ${query.get("error_description") ?? query.get("error")}`);
  const answer = await fetch(discovery.token_endpoint, {
    method: "POST",
    headers: { "content-type": "application/x-www-form-urlencoded" },
    body: new URLSearchParams({
      grant_type: "authorization_code",
      client_id: settings.clientId,
      redirect_uri: redirect(),
      code: query.get("code"),
      code_verifier: pending.verifier,
    }),
  });
  const granted = await answer.json();
  if (!answer.ok) throw Error(`the issuer says ${granted.error_description ?? granted.error ?? answer.status}`);
  if (claims(granted.id_token).nonce !== pending.nonce) throw Error("the ID token is for another sign-in");
  return { idToken: granted.id_token, purpose: pending.purpose };
}

/** What a token says. It is verified by the connector and the daemon. */
export function claims(token) {
  const text = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
  return JSON.parse(new TextDecoder().decode(Uint8Array.from(text, (c) => c.charCodeAt(0))));
}
