// Approves a device in the connector's page, in Chromium, as an approver does: signs in at the issuer, compares
// the words, approves by keyboard; light, dark, on a phone; and has axe-core judge it. Prints what it found.
//
// node approve.mjs MODULES URL FOLDER
//
// MODULES is the folder of axe-core and playwright-core; screenshots go to FOLDER/approvals-light.png and so on.

import { inEachLook } from "./browser.mjs";

const [modules, url, folder] = process.argv.slice(2);

const WIDE = { width: 1000, height: 620 };
// The last one approves.
const LOOKS = {
  dark: { viewport: WIDE, colorScheme: "dark" },
  phone: { viewport: { width: 390, height: 844 }, colorScheme: "light", hasTouch: true },
  light: { viewport: WIDE, colorScheme: "light" },
};

console.log(JSON.stringify(await inEachLook(modules, LOOKS, async (page, look, judge, found) => {
  await page.goto(url);
  await page.getByText("Sign in to see who asks.").waitFor();
  await judge(page, `${look}, before the sign-in`);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.locator("#requests .phrase").waitFor();
  found.address = page.url();
  found.phrase = await page.locator("#requests .phrase").textContent();
  await page.screenshot({ path: `${folder}/approvals-${look}.png` });
  await judge(page, look);
  if (look !== "light") return;
  found.focused = await approve(page);
  await page.getByText(/^The device of .* was approved\.$/).waitFor();
  await page.locator("#history .state").waitFor();
  found.tree = await page.locator("body").ariaSnapshot();
  await page.screenshot({ path: `${folder}/approvals-done.png` });
  await judge(page, "after the approval");
  // Once more with what the approval was: nothing is under way any longer.
  await page.goto(`${url}?state=x&code=y`);
  await page.getByText("another sign-in came back").waitFor();
})));

/** By keyboard alone; the name of the button. */
async function approve(page) {
  await page.locator("body").focus();
  for (let stop = 0; stop < 20; stop += 1) {
    await page.keyboard.press("Tab");
    const name = await page.evaluate(() => document.activeElement.getAttribute("aria-label") ?? "");
    if (name.startsWith("Approve")) {
      await page.keyboard.press("Enter");
      return name;
    }
  }
  throw Error("no button to approve is reached by tab");
}
