// Shows what the server is at: its phase, tokens a second, and memory by phase against the budget.

import { serverState } from "./api.js";
import { readsOnlyText, setLimits } from "./attachments.js";
import { bytes, count, counted, element, find } from "./dom.js";

const IDLE_PAUSE = 3000; // milliseconds between two questions about the state
const BUSY_PAUSE = 1000;
const NUM_RATES = 60; // seconds of the small chart
const PHASES = { load: "Loading", vision: "Images", prefill: "Prompt", decode: "Answer" };
const PLACES = { ram: "RAM", vram: "GPU memory" };
const panel = find("#server");
const QUESTION = find("#question").placeholder;
const rates = [];
let before = null;
let state = null;
let shownPlan = "";

/** What the server said last; null before the first time. */
export const lastState = () => state;

function show(text, kind) {
  find("#server-state").textContent = text;
  find("#dot").className = `dot ${kind}`;
}

/** Words for the phase, and the number that shows how far it is. */
function phaseText(now, rate) {
  if (!now.is_ready) return "Loading the model";
  const { progress } = now;
  if (progress?.unit === "images") return `Looking at image ${progress.done} of ${progress.work}`;
  if (progress?.unit === "tokens") return `Reading ${count(progress.done)} of ${count(progress.work)} tokens`;
  if (progress) return "Identifying the model";
  if (!now.running) return "Ready";
  return rate ? `Writing, ${rate.toFixed(1)} tokens/s` : "Working";
}

function rateOf(now) {
  const isSame = before && before.pieces <= now.pieces && before.seconds < now.seconds;
  const rate = isSame ? (now.pieces - before.pieces) / (now.seconds - before.seconds) : 0;
  before = now;
  rates.push(rate);
  if (rates.length > NUM_RATES) rates.shift();
  return rate;
}

async function refresh() {
  let pause = IDLE_PAUSE;
  try {
    state = await serverState();
    setLimits(state.limits, state.modalities);
    find("#question").placeholder = document.body.classList.toggle("only-text", readsOnlyText()) ? "Ask a question" : QUESTION;
    const rate = rateOf(state);
    find("#model").textContent = state.model;
    document.title = `${state.model}: ernie-local`;
    const isBusy = !state.is_ready || Boolean(state.running);
    show(phaseText(state, rate), isBusy ? "busy" : "ready");
    if (isBusy || !panel.hidden) pause = BUSY_PAUSE;
    if (!panel.hidden) showPanel(rate);
  } catch (error) {
    show(error.status === 401 ? "Needs a key" : "No connection", "problem");
    before = null;
  }
  setTimeout(refresh, pause);
}

function showPanel(rate) {
  if (!panel.childElementCount) panel.append(element("div", "speed"));
  const number = element("p", "figure");
  number.append(element("b", "", rate.toFixed(1)), " tokens a second");
  const facts = state.is_ready
    ? [`${state.running} of ${counted(state.parallel, "answer")} being written`, `${counted(state.waiting, "question")} waiting`, `a context of ${count(state.context_size)} tokens`]
    : ["the model is being loaded"];
  panel.firstChild.replaceChildren(element("h2", "", "Speed"), number, chart(), element("p", "quiet", facts.join(", ")));
  const plan = JSON.stringify(state.memory.map((memory) => [memory.limit_bytes, memory.phases]));
  if (plan !== shownPlan) {
    shownPlan = plan;
    panel.replaceChildren(panel.firstChild, ...state.memory.map(memoryView));
  }
  for (const [index, memory] of state.memory.entries()) showUse(panel.children[index + 1], memory);
}

/** The rates of the last minute as bars, the newest at the right. */
function chart() {
  const made = element("div", "chart");
  made.setAttribute("aria-hidden", "true");
  const most = Math.max(1, ...rates);
  for (const rate of rates) {
    const bar = element("i");
    bar.style.height = `${(100 * rate) / most}%`;
    made.append(bar);
  }
  return made;
}

/** Its plan, which is the same until the server is started anew; `showUse` fills in the rest. */
function memoryView(memory) {
  const view = element("div", "memory");
  const rows = element("ul", "phases");
  for (const [phase, name] of Object.entries(PHASES)) {
    const planned = memory.phases[phase];
    if (!planned) continue; // a model that reads only text never encodes images
    const row = element("li");
    row.dataset.phase = phase;
    const track = element("span", "track");
    const bar = element("span", "planned");
    bar.style.width = `${(100 * planned.best) / fullOf(memory)}%`;
    track.append(bar, element("span", "used"));
    track.title = `${bytes(planned.low)} to ${bytes(planned.high)}`;
    row.append(element("span", "name", name), track, element("span", "amount", bytes(planned.best)));
    rows.append(row);
  }
  const legend = "Planned for a full conversation, by phase; the line marks what is used now.";
  view.append(element("h2", "", PLACES[memory.place]), element("p", "now"), rows, element("p", "quiet", legend), termsView(memory));
  return view;
}

const fullOf = (memory) => Math.max(memory.limit_bytes ?? 0, ...Object.values(memory.phases).map((phase) => phase.best));

function showUse(view, memory) {
  const budget = memory.limit_bytes === null ? "" : ` of ${bytes(memory.limit_bytes)} that it may take`;
  view.querySelector(".now").textContent = `${bytes(memory.used_bytes)} used now${budget}`;
  for (const row of view.querySelectorAll("[data-phase]")) {
    if (row.dataset.phase === state.phase) row.setAttribute("aria-current", "step");
    else row.removeAttribute("aria-current");
    row.querySelector(".used").style.left = `${Math.min(100, (100 * memory.used_bytes) / fullOf(memory))}%`;
  }
}

function termsView(memory) {
  const details = element("details");
  const table = element("table");
  const head = element("tr");
  head.append(...["", ...Object.values(PHASES)].map((name) => cell("th", name, "col")));
  table.append(head);
  for (const term of memory.terms) {
    const row = element("tr");
    row.append(cell("th", term.name, "row"));
    row.append(...Object.keys(PHASES).map((phase) => element("td", "", term.bytes[phase] ? bytes(term.bytes[phase]) : "")));
    table.append(row);
  }
  const scroller = element("div", "scroller");
  scroller.tabIndex = 0;
  scroller.setAttribute("role", "region");
  scroller.setAttribute("aria-label", "Memory by part");
  scroller.append(table);
  details.append(element("summary", "", "What takes it"), scroller);
  return details;
}

function cell(name, text, scope) {
  const made = element(text ? name : "td", "", text);
  if (text) made.scope = scope;
  return made;
}

/** Begins to ask the server for its state, again and again. */
export function watchServer() {
  const toggle = find("#show-server");
  toggle.onclick = () => {
    panel.hidden = !panel.hidden;
    toggle.setAttribute("aria-expanded", String(!panel.hidden));
    if (!panel.hidden && state) showPanel(rates.at(-1) ?? 0);
  };
  refresh();
}
