// The browser of a sign-in by SSO: goes where the web vault would, and back to the program that waits.
// SSO_USER is the e-mail address of the user who signs in.

const { origin, hash } = new URL(process.argv[2]);
const asked = new URLSearchParams(hash.slice(hash.indexOf("?") + 1));
const authorize = new URL("/identity/connect/authorize", origin);
authorize.search = new URLSearchParams({
  client_id: asked.get("clientId"),
  redirect_uri: asked.get("redirectUri"),
  response_type: "code",
  scope: "api offline_access",
  state: `${asked.get("state")}_identifier=${asked.get("identifier")}`,
  code_challenge: asked.get("codeChallenge"),
  code_challenge_method: "S256",
  login_hint: process.env.SSO_USER,
});
const { status } = await fetch(authorize);
console.log(`back with ${status}`);
