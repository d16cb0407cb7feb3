// Looks at the page of the operations listener in Chromium, as people do: light, dark, on a phone, by
// keyboard, through the accessibility tree; and has axe-core judge it. Prints what it found as JSON.
//
// node look.mjs MODULES URL FOLDER NAME
//
// MODULES is the folder of axe-core and playwright-core; screenshots go to FOLDER/NAME-light.png and so on.

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, url, folder, name] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const WIDE = { width: 1280, height: 900 };
const LOOKS = {
  light: { viewport: WIDE, colorScheme: "light" },
  dark: { viewport: WIDE, colorScheme: "dark" },
  phone: { viewport: { width: 390, height: 844 }, colorScheme: "light", hasTouch: true },
  small: { viewport: { width: 320, height: 640 }, colorScheme: "dark", forcedColors: "active" },
};
/** More stops than any page has. */
const MOST_STOPS = 400;

const browser = await chromium.launch({
  executablePath: execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim(),
});
const found = { violations: [], policy: [], errors: [], wide: [] };
for (const [look, options] of Object.entries(LOOKS)) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.on("pageerror", (error) => found.errors.push(`${look}: ${error.message}`));
  page.on("console", (message) => {
    if (message.type() === "error") found.errors.push(`${look}: ${message.text()}`);
  });
  await page.exposeFunction("violated", (what) => found.policy.push(`${look}: ${what}`));
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => window.violated(`${event.violatedDirective} ${event.blockedURI}`));
  });
  await page.goto(url);
  await page.locator("#live .state.ok").waitFor();
  await page.locator("#keys-list summary").first().waitFor();
  await page.screenshot({ path: `${folder}/${name}-${look}.png` });
  await judge(page, look);
  if (look === "light") {
    found.stops = await stops(page);
    found.tree = await page.locator("body").ariaSnapshot();
    found.filtered = await filtered(page);
    await judge(page, "filtered");
  }
  await page.locator("#keys-list summary").first().click();
  await judge(page, `${look}, a key changed to open or closed`);
  const width = await page.evaluate(() => [document.scrollingElement.scrollWidth, innerWidth]);
  if (width[0] > width[1]) found.wide.push(`${look}: ${width[0]} of ${width[1]} pixels`);
  await context.close();
}
await browser.close();
console.log(JSON.stringify(found));

async function judge(page, look) {
  // By the debugger: the page's policy lets no script of elsewhere run.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  for (const { id, help, nodes } of violations) {
    found.violations.push(`${look}: ${id}: ${help}: ${nodes.slice(0, 3).map((node) => node.html).join(" | ")}`);
  }
}

/** Everything that the tab key stops at, from the top to the end, and whether that can be seen. */
async function stops(page) {
  const all = [];
  await page.locator("body").focus();
  for (let stop = 0; stop < MOST_STOPS; stop += 1) {
    await page.keyboard.press("Tab");
    const at = await page.evaluate(() => {
      const element = document.activeElement;
      if (element === document.body || element === null) return null;
      const { outlineStyle } = getComputedStyle(element);
      return { tag: element.localName, id: element.id, text: element.textContent.slice(0, 80), seen: outlineStyle !== "none" };
    });
    if (at === null) break;
    all.push(at);
  }
  return all;
}

/** A key that is searched for by name and opened, all by keyboard. */
async function filtered(page) {
  const key = await page.locator("#keys-list .name").last().textContent();
  await page.locator("#keys-text").focus();
  await page.keyboard.type(key);
  await page.locator(`#keys-list li:only-child .name:text-is("${key}")`).waitFor();
  const summary = page.locator("#keys-list summary");
  const before = await page.locator("#keys-list details").evaluate((details) => details.open);
  await summary.focus();
  await page.keyboard.press("Enter");
  await page.locator(before ? "#keys-list details:not([open])" : "#keys-list details[open] .replica").first().waitFor();
  if (before) {
    await page.keyboard.press("Enter");
    await page.locator("#keys-list details[open] .replica").first().waitFor();
  }
  return { key, told: await page.locator("#keys-count").textContent(), opened: await page.locator("#keys-list .replica").first().textContent() };
}
