// Lists that are filtered and grow on demand: keys with their versions and replicas, and callers.

import { ORDER, ago, byId, code, count, el, ends, hidden, lastCanary, severity, spark, stateOf } from "./words.js";

/** Rows of a list that are shown at once; a button shows more. */
const ROWS = 100;

/** A list of rows by name. A row is made once and updated in place, so that focus and what is open stay. */
class List {
  constructor(prefix, row) {
    this.row = row;
    this.rows = new Map();
    this.shown = ROWS;
    this.list = byId(`${prefix}-list`);
    this.text = byId(`${prefix}-text`);
    this.wrong = byId(`${prefix}-wrong`);
    this.more = byId(`${prefix}-more`);
    this.told = byId(`${prefix}-count`);
    byId(`${prefix}-filter`).addEventListener("submit", (event) => event.preventDefault());
    for (const input of [this.text, this.wrong]) {
      input?.addEventListener("input", () => { this.shown = ROWS; this.show(); });
    }
    this.more.addEventListener("click", () => { this.shown += 5 * ROWS; this.show(); });
    this.sorted = [];
  }

  /** Takes what is known of each by its name: `{ words, rank, data }`. */
  update(all, one, many) {
    this.all = all;
    [this.one, this.many] = [one, many];
    const order = (a, b) => all.get(a).rank - all.get(b).rank || a.localeCompare(b, "en");
    this.sorted = [...all.keys()].sort(order);
    this.show();
  }

  show() {
    const wanted = this.text.value.trim().toLowerCase();
    const matches = this.sorted.filter((name) => {
      const { words, rank } = this.all.get(name);
      return (!this.wrong?.checked || rank < ORDER.ok) && words.includes(wanted);
    });
    const names = matches.slice(0, this.shown);
    const kept = new Set(names);
    for (const [name, row] of this.rows) {
      if (!kept.has(name)) { row.item.remove(); this.rows.delete(name); }
    }
    this.empty?.remove();
    let place = this.list.firstElementChild;
    for (const name of names) {
      const { data } = this.all.get(name);
      let row = this.rows.get(name);
      if (!row) { row = this.row(name, data, this.sorted.length); this.rows.set(name, row); }
      else if (row.data !== data) row.update(data);
      row.data = data;
      if (row.item === place) place = place.nextElementSibling;
      else this.list.insertBefore(row.item, place);
    }
    if (names.length === 0 && this.all) {
      this.empty = el("li", { className: "empty" }, this.sorted.length ? "None matches." : `No ${this.many}.`);
      this.list.append(this.empty);
    }
    const left = matches.length - names.length;
    this.more.hidden = left === 0;
    this.more.textContent = `Show ${Math.min(left, 5 * ROWS).toLocaleString("en")} more of ${left.toLocaleString("en")}`;
    const told = matches.length === this.sorted.length
      ? count(this.sorted.length, this.one, this.many)
      : `${matches.length.toLocaleString("en")} of ${count(this.sorted.length, this.one, this.many)}`;
    if (this.told.textContent !== told) this.told.textContent = told;
  }

  /** Shows one row whatever is filtered, opens it and goes there. */
  reveal(name) {
    if (!this.rows.has(name)) {
      this.text.value = name.toLowerCase();
      if (this.wrong) this.wrong.checked = false;
      this.show();
    }
    const item = this.rows.get(name)?.item;
    const details = item?.querySelector("details");
    if (details) details.open = true;
    const target = details?.querySelector("summary") ?? item;
    target?.focus();
    target?.scrollIntoView({ block: "center" });
  }
}

const used = (key) => key.versions.filter((version) => version.state !== "disabled").flatMap((version) => version.replicas);
const isWrong = (replica) => replica.state === "fails" || replica.state === "diverges";

/** Whether a replica of a version that may be used does not serve. */
export const wrongReplicas = (key) => used(key).some(isWrong);

/** The first such replica. */
export const firstWrong = (key) => used(key).find(isWrong);

function keyRow(name, data, many) {
  const summary = el("summary");
  const body = el("div", { className: "body" });
  const details = el("details", { open: many <= 3 }, summary, body);
  const row = {
    item: el("li", {}, details),
    update(key) {
      const newest = key.versions.find((version) => version.state === "active") ?? key.versions[0];
      const replicas = key.versions.flatMap((version) => version.replicas);
      const serving = replicas.filter((replica) => replica.state === "serves").length;
      const serve = `${serving} of ${count(replicas.length, "replica")} ${serving === 1 ? "serves" : "serve"}`;
      const canaries = newest?.replicas.find((replica) => replica.recent_canaries_us.length)?.recent_canaries_us ?? [];
      summary.replaceChildren(
        stateOf(key.reason),
        el("span", { className: "name" }, name),
        el("span", { className: "extra" }, count(key.versions.length, "version")),
        el("span", { className: "extra" }, severity(key.reason) === "ok" && wrongReplicas(key) ? stateOf(serve, "warn") : serve),
        spark(canaries),
        lastCanary(canaries),
      );
      if (details.open) body.replaceChildren(...key.versions.flatMap(versionOf));
    },
  };
  details.addEventListener("toggle", () => {
    if (details.open) body.replaceChildren(...row.data.versions.flatMap(versionOf));
    else body.replaceChildren();
  });
  row.data = data;
  row.update(data);
  return row;
}

function versionOf(version) {
  const heading = el("h3", {}, `Version ${version.version}, ${version.state} `, version.state === "disabled" ? null : stateOf(version.reason));
  return [heading, ...version.replicas.map(replicaOf)];
}

function replicaOf(replica) {
  // Its state, and the reason where that says more.
  const kind = severity(replica.reason);
  const word = replica.reason === "ok" || replica.reason === replica.state ? replica.state : `${replica.state}: ${replica.reason}`;
  const facts = [];
  if (replica.proven_at !== null && replica.state !== "drained") facts.push(el("span", {}, "proven ", ago(replica.proven_at)));
  if (replica.unanswered > 0) facts.push(el("span", {}, `${facts.length ? ", " : ""}${replica.unanswered} in flight`));
  if (replica.repairs > 0) facts.push(el("span", {}, `${facts.length ? ", " : ""}${count(replica.repairs, "repair")}`));
  return el("div", { className: "replica" },
    stateOf(word, kind),
    el("span", { className: "place" }, replica.provider, " ", code(replica.locator)),
    el("span", { className: "proven muted" }, facts),
    spark(replica.recent_canaries_us),
    lastCanary(replica.recent_canaries_us),
    replica.error ? el("p", { className: "error" }, replica.error) : null,
  );
}

function callerRow(name, data) {
  const line = el("div", { className: "row" });
  const row = {
    item: el("li", { tabIndex: -1 }, line),
    update(caller) {
      const seen = caller.seen_at === null
        ? el("span", { className: "muted" }, "not seen")
        : el("span", {}, hidden("seen "), ago(caller.seen_at));
      line.replaceChildren(
        el("span", { className: "name" }, name),
        seen,
        el("span", {}, caller.identity ? code(caller.identity) : ""),
        el("span", {}, caller.certificate_not_after === null ? "" : ["certificate ", ends(caller.certificate_not_after)]),
        el("span", {},
          caller.calls_in_flight > 0 ? `${count(caller.calls_in_flight, "call")} in flight` : null,
          caller.budgets.map(budgetOf)),
      );
    },
  };
  row.update(data);
  return row;
}

function budgetOf({ key, failed, limit }) {
  const text = `${failed}${limit === null ? "" : ` of ${limit}`} failed unwraps on ${key}`;
  if (limit === null) return el("span", { className: "budget" }, text);
  const share = Math.min(1, failed / Math.max(1, limit));
  const bar = el("i", { className: share >= 0.8 ? "high" : "" });
  bar.style.width = `${100 * share}%`;
  return el("span", { className: "budget" }, text, el("span", { className: "bar", "aria-hidden": "true" }, bar));
}

export const keys = new List("keys", keyRow);
export const callers = new List("callers", callerRow);
