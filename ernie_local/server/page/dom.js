// Makes elements, and says numbers and sizes as people read them.

const SVG = document.querySelector("svg").namespaceURI;

export const find = (selector) => document.querySelector(selector);

export function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export function svgElement(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** A button. icon: one of the page's symbols, instead of a text; it needs a label then. */
export function button(text, act, { icon, label, className = "" } = {}) {
  const made = element("button", icon ? `icon ${className}` : className, icon ? undefined : text);
  made.type = "button";
  if (icon) {
    const picture = svgElement("svg", { "aria-hidden": "true" });
    picture.append(svgElement("use", { href: `#icon-${icon}` }));
    made.append(picture);
  }
  if (label) {
    made.setAttribute("aria-label", label);
    made.title = label;
  }
  made.onclick = act;
  return made;
}

/** Tells people who listen to the page, and does not see it. */
export function announce(text) {
  find("#announcement").textContent = text;
}

export const count = (number) => number.toLocaleString("en");

/** 1 page, 3 pages. */
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** Seconds as the frames of videos show them, in minutes: 0:07, 2:05. */
export const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** Bytes as the server's messages say them: 512 MiB, 3.50 GiB. */
export function bytes(number) {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (number >= size) return `${(number / size).toFixed(unit === "GiB" ? 2 : 0)} ${unit}`;
  }
  return `${number} B`;
}

/** A dialog's answer: the value of the button that closed it, "" for Escape. */
export function askInDialog(dialog) {
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.onclose = () => resolve(dialog.returnValue);
    dialog.showModal();
  });
}
