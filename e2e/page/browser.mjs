// Pages in Chromium, as people see them: what goes wrong in each is found, and axe-core judges it.

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

/**
 * Opens a page for each of the looks (its options by its name) and has `visit(page, look, judge)` look at it.
 * `modules` is the folder of axe-core and playwright-core. Gives what was found: violations of axe-core's rules
 * and of the page's own policy, errors, and looks in which the page is wider than its window.
 */
export async function inEachLook(modules, looks, visit) {
  const require = createRequire(`${modules}/`);
  const { chromium } = require("playwright-core");
  const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
  const browser = await chromium.launch({
    executablePath: execFileSync("sh", ["-c", "command -v chromium"], { encoding: "utf8" }).trim(),
  });
  const found = { violations: [], policy: [], errors: [], wide: [] };

  async function judge(page, what) {
    // By the debugger: the page's policy lets no script of elsewhere run.
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    for (const { id, help, nodes } of violations) {
      found.violations.push(`${what}: ${id}: ${help}: ${nodes.slice(0, 3).map((node) => node.html).join(" | ")}`);
    }
    const width = await page.evaluate(() => [document.scrollingElement.scrollWidth, innerWidth]);
    if (width[0] > width[1]) found.wide.push(`${what}: ${width[0]} of ${width[1]} pixels`);
  }

  for (const [look, options] of Object.entries(looks)) {
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
    await visit(page, look, judge, found);
    await context.close();
  }
  await browser.close();
  return found;
}
