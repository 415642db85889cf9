// Images and PDFs of the question that is being written: picked, dropped or pasted.

import { lookAt } from "./api.js";

const list = document.querySelector("#attached");
let attached = [];

/** What is attached; each has name, url (a data address), kind, and pages as the server saw them. */
export function attachments() {
  return attached;
}

export function setAttachments(files) {
  attached = files;
  show();
}

/** Reads files, and asks the server how the model will see them; gives the messages of those it cannot. */
export async function attach(files) {
  const problems = [];
  for (const file of files) {
    try {
      const [pages, url] = await Promise.all([lookAt(file), dataUrl(file)]);
      attached.push({ name: file.name || "pasted image", kind: file.type, url, pages });
    } catch (error) {
      problems.push(`${file.name || "pasted image"}: ${error.message}`);
    }
    show();
  }
  return problems;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function show() {
  list.replaceChildren(
    ...attached.map((file, index) => {
      const item = figureOf(file);
      const remove = document.createElement("button");
      remove.type = "button";
      remove.textContent = "Remove";
      remove.setAttribute("aria-label", `Remove ${file.name}`);
      remove.onclick = () => {
        attached.splice(index, 1);
        show();
      };
      item.append(remove);
      return item;
    }),
  );
}

/** A list item with the pages of a file, and what the model sees of each. */
export function figureOf(file) {
  const item = document.createElement("li");
  for (const [index, page] of file.pages.entries()) {
    const figure = document.createElement("figure");
    const image = document.createElement("img");
    image.src = page.thumbnail;
    const name = file.pages.length > 1 ? `${file.name}, page ${index + 1}` : file.name;
    image.alt = name;
    const caption = document.createElement("figcaption");
    const [width, height] = page.size;
    const [seenWidth, seenHeight] = page.seen_size;
    const seen = width === seenWidth && height === seenHeight ? "" : ` → ${seenWidth} × ${seenHeight}`;
    caption.textContent = `${name}: ${width} × ${height}${seen}, ${page.tokens} tokens`;
    figure.append(image, caption);
    for (const note of page.notes) {
      const line = document.createElement("p");
      line.className = "note";
      line.textContent = note;
      figure.append(line);
    }
    item.append(figure);
  }
  return item;
}
