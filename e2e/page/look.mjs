// Looks at the page of the operations listener in Chromium, as people do: light, dark, on a phone, by
// keyboard, through the accessibility tree; and has axe-core judge it. Prints what it found as JSON.
//
// node look.mjs MODULES URL FOLDER NAME
//
// MODULES is the folder of axe-core and playwright-core; screenshots go to FOLDER/NAME-light.png and so on.

import { inEachLook } from "./browser.mjs";

const [modules, url, folder, name] = process.argv.slice(2);

const WIDE = { width: 1280, height: 900 };
const LOOKS = {
  light: { viewport: WIDE, colorScheme: "light" },
  dark: { viewport: WIDE, colorScheme: "dark" },
  phone: { viewport: { width: 390, height: 844 }, colorScheme: "light", hasTouch: true },
  small: { viewport: { width: 320, height: 640 }, colorScheme: "dark", forcedColors: "active" },
};
/** More stops than any page has. */
const MOST_STOPS = 400;

console.log(JSON.stringify(await inEachLook(modules, LOOKS, async (page, look, judge, found) => {
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
})));

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
