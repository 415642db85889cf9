// Draws the boxes of an answer on its images, and links them with the places of the text that name them.

import { isVideo, pageName, viewAddress } from "./attachments.js";
import { button, element, svgElement } from "./dom.js";

// Okabe and Ito, without black: colours that people with any colour blindness tell apart.
const NUM_COLOURS = 7;
const NUMBER = "-?\\d+(?:\\.\\d+)?";
const FOUR = Array(4).fill(`(${NUMBER})`);
const PLACES = new RegExp(`\\[\\s*\\[?\\s*${FOUR.join("\\s*[\\],[\\s]+\\s*")}\\s*\\]?\\s*\\]|(?:<\\|LOC_\\d{1,4}\\|>\\s*){4,8}`, "g");

/** The pages of a chat in the order of the prompt: box.image counts them from 1. */
export function pagesOf(messages) {
  const images = messages.flatMap((message) => message.images ?? []).filter((file) => !isVideo(file));
  return images.flatMap((file) => file.pages.map((_, index) => ({ file, index })));
}

/** Images with their boxes, and a list of the boxes. body: where the text of the answer is. */
export function boxesView(boxes, pages, body) {
  const view = element("section", "boxes");
  view.setAttribute("aria-label", "Places in the images");
  const numbers = [...new Set(boxes.map((box) => box.image))].filter((number) => pages[number - 1]);
  view.append(...numbers.map((number) => pictureView(boxes, number, pages[number - 1], view)));
  const list = element("ol", "box-list");
  for (const [index, box] of boxes.entries()) {
    const item = element("li");
    const named = button("", () => showPlace(view, index), { className: "named" });
    named.append(badge(index), element("span", "", box.label || "unnamed"));
    if (!pages[box.image - 1]) named.append(element("span", "quiet", " in an image that the answer does not name"));
    link(named, index, view);
    item.append(named);
    list.append(item);
  }
  view.append(list);
  linkText(boxes, body, view);
  return view;
}

function badge(index) {
  const made = element("span", `badge colour-${index % NUM_COLOURS}`, String(index + 1));
  made.setAttribute("aria-hidden", "true");
  return made;
}

function pictureView(boxes, number, { file, index }, view) {
  const figure = element("figure", "boxed");
  const frame = element("div", "frame");
  const image = element("img");
  image.src = file.pages[index].thumbnail;
  viewAddress(file, index).then((address) => (image.src = address));
  const mine = boxes.map((box, place) => [box, place]).filter(([box]) => box.image === number);
  image.alt = `${pageName(file, index)} with ${mine.map(([box, place]) => `${place + 1} ${box.label ?? ""}`).join(", ")} marked`;
  const [width, height] = file.pages[index].seen_size;
  image.width = width;
  image.height = height;
  const drawing = svgElement("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", "aria-hidden": "true" });
  const badges = mine.map(([box, place]) => {
    const [left, top, right, bottom] = box.box;
    const shape = { x: left, y: top, width: right - left, height: bottom - top };
    const edge = svgElement("rect", { ...shape, class: "edge" });
    const area = svgElement("rect", { ...shape, class: `area colour-${place % NUM_COLOURS}` });
    link(area, place, view);
    area.addEventListener("click", () => view.querySelectorAll(".named")[place].focus());
    drawing.append(edge, area);
    const marker = badge(place);
    marker.style.left = `${left / 10}%`;
    marker.style.top = `${top / 10}%`;
    link(marker, place, view);
    return marker;
  });
  frame.append(image, drawing, ...badges);
  figure.append(frame, element("figcaption", "quiet", pageName(file, index)));
  return figure;
}

/** Pointing at one of the elements of a box, or moving the focus there, marks all of them. */
function link(one, index, view) {
  one.dataset.box = index;
  const mark = (isMarked) => () => {
    const all = view.closest("article") ?? view;
    for (const other of all.querySelectorAll(`[data-box="${index}"]`)) other.classList.toggle("marked", isMarked);
    view.classList.toggle("points", isMarked);
  };
  for (const name of ["pointerenter", "focus"]) one.addEventListener(name, mark(true));
  for (const name of ["pointerleave", "blur"]) one.addEventListener(name, mark(false));
}

function showPlace(view, index) {
  view.querySelector(`rect[data-box="${index}"]`)?.closest("figure").scrollIntoView({ block: "nearest" });
}

/** Makes buttons of the numbers in the text that are boxes; the server has said which are. */
function linkText(boxes, body, view) {
  const left = boxes.map((box, index) => ({ key: String(box.box), index }));
  const walker = document.createTreeWalker(body, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  for (const node of nodes) {
    const pieces = [];
    let end = 0;
    for (const match of node.data.matchAll(PLACES)) {
      const found = left.findIndex((one) => one.key === String(placeOf(match[0])));
      if (found < 0) continue;
      const [{ index }] = left.splice(found, 1);
      const place = button(match[0].trim(), () => showPlace(view, index), { className: "place" });
      place.prepend(badge(index));
      link(place, index, view);
      pieces.push(node.data.slice(end, match.index), place);
      end = match.index + match[0].length;
    }
    if (pieces.length) node.replaceWith(...pieces, node.data.slice(end));
  }
}

/** The place that a text stands for, its corners in order and within the image, as the server has it. */
function placeOf(text) {
  const numbers = text.match(new RegExp(NUMBER, "g")).map(Number);
  const across = numbers.filter((_, index) => index % 2 === 0);
  const down = numbers.filter((_, index) => index % 2 === 1);
  const [first, last] = [Math.max(0, Math.min(...across)), Math.min(1000, Math.max(...across))];
  return [first, Math.max(0, Math.min(...down)), last, Math.min(1000, Math.max(...down))];
}
