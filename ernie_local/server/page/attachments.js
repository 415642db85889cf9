// Images, PDFs and videos of the question that is being written: picked, dropped or pasted; and images shown large.

import { lookAt, viewOf } from "./api.js";
import { button, bytes, clock, count, counted, element, find } from "./dom.js";

const list = find("#attached");
const viewer = find("#viewer");
const views = new Map(); // object addresses of images as the model sees them, by file and page
let attached = [];
let reading = Promise.resolve();
let numReading = 0;
let limits = null;
let modalities = null; // what the model reads

/** What is attached; each has name, url (a data address), kind, and pages as the server saw them. */
export function attachments() {
  return attached;
}

export function setAttachments(files) {
  attached = files;
  show();
}

/** Whether a file is a video; what is sent of it differs, and boxes lie in images only. */
export const isVideo = (file) => Boolean(file.pages[0].frames);

export const isReading = () => numReading > 0;

/** Resolves when all files that were given have been looked at. */
export const allRead = () => reading;

/** told: of the server, what it takes. kinds: what its model reads; undefined while it is loaded. */
export function setLimits(told, kinds) {
  limits = told;
  modalities = kinds ?? modalities;
}

/** Whether the model is known to read nothing but text. */
export const readsOnlyText = () => modalities?.join() === "text";

/** Reads files, and asks the server how the model will see them; gives the messages of those it cannot. */
export function attach(files) {
  const into = attached; // a chat that is opened meanwhile has a list of its own
  const results = [...files].map((file) => {
    const row = element("li", "reading", `Reading ${file.name || "the pasted image"}…`);
    list.append(row);
    numReading += 1;
    const result = reading.then(() => attachOne(file, into)).finally(() => {
      numReading -= 1;
      row.remove();
      if (into === attached) show();
    });
    reading = result;
    return result;
  });
  return Promise.all(results).then((problems) => problems.filter(Boolean));
}

async function attachOne(file, into) {
  const name = file.name || "pasted image";
  try {
    if (readsOnlyText()) throw new Error("the model of this server reads only text");
    const most = Math.min(limits?.file_bytes ?? Infinity, limits?.request_bytes ?? Infinity);
    if (file.size > most) throw new Error(`${bytes(file.size)}, and this server reads at most ${bytes(most)} of a file`);
    if (limits && into.length >= limits.images) throw new Error(`more than ${limits.images} files`);
    const url = await dataUrl(file);
    into.push({ name, kind: file.type, url, pages: await lookAt(file) });
    return null;
  } catch (error) {
    const reason = error.message || "it cannot be read; is it a folder?";
    return `${name}: ${reason.replace(/^(image|video): /, "")}`; // the server does not know its name
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function bytesOf(url) {
  const text = atob(url.slice(url.indexOf(",") + 1));
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0));
}

/** The address of what the model sees of a page; the small image where the server does not answer. */
export async function viewAddress(file, index) {
  const key = `${index} ${file.url}`;
  if (!views.has(key)) {
    try {
      views.set(key, URL.createObjectURL(await viewOf(bytesOf(file.url), index + 1)));
    } catch {
      return file.pages[index].thumbnail;
    }
  }
  return views.get(key);
}

function show() {
  const waiting = list.querySelectorAll(".reading");
  list.replaceChildren(
    ...attached.map((file, index) => {
      const item = fileView(file);
      const remove = () => {
        attached.splice(index, 1);
        show();
        find("#question").focus();
      };
      item.append(button("", remove, { icon: "close", label: `Remove ${file.name}`, className: "remove" }));
      return item;
    }),
    ...waiting,
  );
  list.dispatchEvent(new Event("change"));
}

/** A list item with the pages of a file, and what the model sees of each. */
export function fileView(file) {
  const item = element("li", "file");
  const strip = element("div", "strip");
  strip.append(...file.pages.map((page, index) => pageView(file, page, index)));
  item.append(strip);
  if (file.pages.length > 1) {
    const tokens = file.pages.reduce((sum, page) => sum + page.tokens, 0);
    item.append(element("p", "quiet", `${file.name}: ${counted(file.pages.length, "page")}, ${count(tokens)} tokens`));
  }
  return item;
}

function pageView(file, page, index) {
  const figure = element("figure");
  const name = pageName(file, index);
  const image = element("img");
  image.src = page.thumbnail;
  image.alt = name;
  const open = button("", () => showLarge(file, index), { className: "thumbnail" });
  open.append(image);
  open.title = "Show what the model sees";
  const caption = element("figcaption");
  const [width, height] = page.seen_size;
  const title = element("b", "", file.pages.length > 1 ? `Page ${index + 1}` : file.name);
  title.title = name;
  const seen = page.frames ? `${counted(page.frames, "frame")} of ${clock(page.seconds)}` : `${width} × ${height} pixels seen`;
  caption.append(title, element("span", "", `${count(page.tokens)} tokens`), element("span", "", seen));
  figure.append(open, caption);
  return figure;
}

export const pageName = (file, index) => (file.pages.length > 1 ? `${file.name}, page ${index + 1}` : file.name);

/** All that the model sees of a page, in a dialog. */
export async function showLarge(file, index) {
  const page = file.pages[index];
  const [width, height] = page.size;
  const [seenWidth, seenHeight] = page.seen_size;
  find("#viewer-title").textContent = pageName(file, index);
  const sizes = [`${width} × ${height} pixels`, `the model sees it at ${seenWidth} × ${seenHeight}`, `${count(page.tokens)} tokens`];
  if (page.frames) sizes.unshift(`${counted(page.frames, "frame")} of ${clock(page.seconds)}`);
  find("#viewer-caption").textContent = [sizes.join(", "), ...page.notes].join(". ");
  const image = find("#viewer-image");
  image.src = page.thumbnail;
  image.alt = pageName(file, index);
  viewer.showModal();
  image.src = await viewAddress(file, index);
}

viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close();
});
