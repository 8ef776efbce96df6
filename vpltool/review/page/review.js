import { Canvas } from "./canvas.js";
import { Queue, encode, get, getArray, getJson, post } from "./net.js";
import { PhotoList, WORDS, element, showClasses, showCurve } from "./lists.js";

const $ = (id) => document.getElementById(id);
const start = await getJson("/api/start").catch((error) => {
  $("banner").hidden = false;
  $("banner").textContent = error.message;
  throw error;
});
const toPhoto = ([id, tags, state]) => ({ id, tags, state });
let photos = start.photos.map(toPhoto);
let byId = new Map(photos.map((one) => [one.id, one]));
let newest = start.newest, shown = start.shown, training = start.training;
let now = null, chosen = 0, order = [], tool = "region", scale = 0, breadth = 20;
let stroke = null, polygon = [], grab = null, cursor = null;

const canvas = new Canvas($("stage"), start.colours);
const list = new PhotoList($("list"), { choose: open, classes: start.classes });
const queue = new Queue({ heard, refused, told });
window.review = { queue, canvas, times: {} };   // for tests and measurements

// ---- photos

const loads = new Map();

// Everything of a photo that the page shows; asked for ahead of time for the next ones.
function load(id) {
  if (!loads.has(id)) {
    const image = new Image();
    image.src = `/photo?${new URLSearchParams({ id })}`;
    const parts = [getJson("/api/photo", { id }), getArray("/api/labels", { id }, Uint8Array), image.decode().then(() => image)];
    const regions = [0, 1].map((one) => getArray("/api/regions", { id, scale: one }, Uint16Array).catch(() => null));
    loads.set(id, { all: Promise.all(parts), regions });
    loads.get(id).all.catch(() => loads.delete(id));
    while (loads.size > 8) loads.delete(loads.keys().next().value);
  }
  return loads.get(id);
}

async function open(id, { again = false } = {}) {
  if (!byId.has(id)) return;
  const began = performance.now();
  dropStroke();
  if (again) loads.delete(id);
  const wanted = load(id);
  list.select(id);
  now = { id, labels: null };
  $("message").textContent = "";
  try {
    const [about, labels, image] = await wanted.all;
    if (now.id !== id) return;
    now = { ...about, labels };
    queue.versions.set(id, Math.max(about.version, queue.versions.get(id) ?? 0));
    $("photo").src = image.src;
    $("photo").alt = `Photo ${id}`;
    canvas.show(labels, null);
    canvas.fit();
    describe();
    requestAnimationFrame(() => { window.review.times.open = performance.now() - began; });
    const regions = await Promise.all(wanted.regions);
    if (now.id !== id) return;
    now.regions = regions;
    canvas.warm(regions);
    canvas.regions = regions[scale];
    const place = visible().findIndex((one) => one.id === id);
    visible().slice(place + 1, place + 3).forEach((one) => load(one.id).all.catch(() => {}));
  } catch (error) {
    if (now.id !== id) return;
    now.failed = true;
    canvas.show({ width: 4, height: 3, data: new Uint8Array(12) }, null);
    $("photo").removeAttribute("src");
    $("message").textContent = `${id}: ${error.message || "the photo cannot be read"}. Go on with the next one.`;
    describe();
  }
}

const visible = () => ($("filter").value ? photos.filter((one) => one.state === $("filter").value || one.id === now?.id) : photos);

function step(by) {
  const those = visible(), place = those.findIndex((one) => one.id === now?.id) + by;
  if (place >= 0 && place < those.length) open(those[place].id);
}

// ---- changes

function change(what, edit, { state = "corrected", tags = null } = {}) {
  if (!now?.labels || now.failed) return;
  const { box, pixels } = edit ?? { box: [0, 0, 0, 0], pixels: new Uint8Array() };
  now.history.push(what);
  now.redo = 0;
  now.state = state;
  now.tags = tags ?? now.tags;
  loads.delete(now.id);
  queue.add("/api/edit", { id: now.id, op: crypto.randomUUID(), what, box, pixels: encode(pixels), state, tags });
  describe();
}

const name = (label) => start.classes[label] ?? "unlabelled";

function paint(point, began = performance.now()) {
  const number = canvas.regionAt(point);
  if (number < 0) return say("The regions are not ready yet.");
  const { inside, box } = canvas.regionPixels(number);
  take(inside, box, chosen, `region: ${name(chosen)}`);
  canvas.lit = -3;
  requestAnimationFrame(() => { window.review.times.paint = performance.now() - began; });
}

function take(inside, box, label, what) {
  const edit = canvas.fill(inside, box, label);
  if (edit) change(what, edit);
  say(edit ? what : `This is ${name(label)} already.`);
}

function move(path) {
  if (!now?.labels || (path === "/api/undo" ? !now.history.length : !now.redo)) return;
  dropStroke();
  // Counted now: the next key may come before the answer. What the photo is then, the answer says.
  now.moved = true;
  if (path === "/api/undo") { now.history.pop(); now.redo += 1; } else { now.history.push("redone"); now.redo -= 1; }
  queue.add(path, { id: now.id });
}

async function heard(found) {
  const photo = byId.get(found.id);
  if (!photo) return;
  Object.assign(photo, { state: found.state, tags: found.tags });
  if (now?.id === found.id && !queue.has(found.id)) {
    const moved = now.moved || found.history.length !== now.history.length || found.redo !== now.redo;
    Object.assign(now, found, { moved: false });
    if (moved) await reload(found.id);
  }
  describe();
}

// What the server has of a photo, when that is not what the page shows.
async function reload(id) {
  loads.delete(id);
  const [about, labels] = await Promise.all([getJson("/api/photo", { id }), getArray("/api/labels", { id }, Uint8Array)]);
  if (now?.id !== id || queue.has(id)) return;
  Object.assign(now, about, { labels });
  queue.versions.set(id, about.version);
  canvas.show(labels, now.regions?.[scale]);
  describe();
}

function refused(id, error) {
  say(error.status === 409 ? `${id} was changed in another window: this is how it is now.` : `Not saved: ${error.message}`, true);
  if (now?.id === id) reload(id).catch(() => {});
}

function told(waiting, why) {
  $("saved").textContent = waiting ? (why ? `${waiting} not saved` : "Saving…") : "Saved";
  $("saved").classList.toggle("waits", Boolean(why));
  if (why) say(`${why}. ${waiting} changes wait in this window and are saved then: leave it open.`, true);
  else if ($("banner").dataset.waits) say("");
  $("banner").dataset.waits = why ? "1" : "";
}

function say(text, loud = false) {
  if (loud || !text) {
    $("banner").hidden = !text;
    $("banner").textContent = text;
  }
  $("where").textContent = text;
}

function accept(state = "accepted") {
  if (now?.labels && !now.failed && now.state !== state && !(state === "accepted" && now.state === "corrected")) {
    change(state, null, { state });
  }
  step(1);
}

function clear() {
  if (!now?.labels) return;
  const all = new Uint8Array(canvas.labels.length).fill(1);
  take(all, [0, 0, canvas.width, canvas.height], 0, "whole photo is background");
}

function toggle(label) {
  if (!now?.labels || !label || label === 255) return;
  const has = now.tags.includes(label);
  const tags = has ? now.tags.filter((one) => one !== label) : [...now.tags, label].sort((one, other) => one - other);
  change(`${has ? "without the tag" : "tag"} ${name(label)}`, null, { state: now.state, tags });
}

// ---- what stands around the photo

function describe() {
  const { tags = [], history = [], redo = 0, id } = now ?? {};
  if (id !== now?.shownId) { now.shownId = id; chosen = tags[0] ?? 0; }
  order = showClasses($("classes"), { ...start, tags, chosen, choose, toggle });
  $("history").replaceChildren(...history.slice(-12).reverse().map((what) => element("li", { textContent: what })));
  if (!history.length) $("history").append(element("li", { className: "soft", textContent: WORDS[now?.state ?? "new"] }));
  $("undo").disabled = !history.length;
  $("redo").disabled = !redo;
  const photo = byId.get(id);
  if (photo && now.labels) Object.assign(photo, { state: now.state, tags });
  list.mark();
  const done = photos.filter((one) => one.state !== "new").length;
  Object.assign($("progress"), { max: photos.length, value: done });
  $("count").textContent = `${done} of ${photos.length}`;
  document.querySelectorAll("[data-tool]").forEach((one) => {
    one.ariaChecked = String(one.dataset.tool === tool);
    one.tabIndex = one.dataset.tool === tool ? 0 : -1;
  });
  $("scale").textContent = scale ? "Small regions" : "Large regions";
  $("shown").textContent = `${shown} · ${start.split}`;
  $("name").textContent = start.name;
}

function choose(label) {
  chosen = label;
  if (tool === "eraser") tool = "region";
  say(`Paint with ${name(label)}`);
  describe();
}

function pick(which) {
  dropStroke();
  tool = which;
  canvas.light(-1);
  describe();
}

function setScale() {
  scale = 1 - scale;
  canvas.regions = now?.regions?.[scale];
  canvas.light(-1);
  describe();
}

// ---- pointer

const label = () => (tool === "eraser" ? 0 : chosen);

function dropStroke() {
  stroke = null;
  polygon = [];
  if (canvas.width) canvas.sketch([], 0);
}

function close() {
  if (polygon.length > 2) {
    const { inside, box } = canvas.shape(polygon, 0);
    take(inside, box, label(), `polygon: ${name(label())}`);
  }
  dropStroke();
}

$("stage").addEventListener("pointerdown", (event) => {
  if (event.target.closest("button") || !now?.labels || now.failed) return;
  $("stage").focus({ preventScroll: true });
  $("stage").setPointerCapture(event.pointerId);
  const point = canvas.at(event);
  if (event.button === 1 || event.button === 2 || event.shiftKey || !point) grab = { x: event.clientX, y: event.clientY };
  else use(point);
});
$("stage").addEventListener("pointermove", (event) => {
  if (grab) {
    canvas.pan(event.clientX - grab.x, event.clientY - grab.y);
    grab = { x: event.clientX, y: event.clientY };
    return;
  }
  const point = canvas.width ? canvas.at(event) : null;
  if (stroke && point) {
    stroke.push(point);
    canvas.sketch(stroke, radius());
  } else if (tool === "region") canvas.light(point ? canvas.regionAt(point) : -1);
  else if (tool === "polygon" && polygon.length && point) canvas.sketch([...polygon, point], 0);
  else if (point && (tool === "brush" || tool === "eraser")) canvas.sketch([point], radius());
});
$("stage").addEventListener("pointerup", () => { grab = null; endStroke(); });
$("stage").addEventListener("pointercancel", () => { grab = null; dropStroke(); });
$("stage").addEventListener("pointerleave", () => { if (!stroke && tool !== "polygon" && canvas.width) canvas.light(-1); });
$("stage").addEventListener("dblclick", () => { if (tool === "polygon") close(); });
$("stage").addEventListener("contextmenu", (event) => event.preventDefault());
$("stage").addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = $("stage").getBoundingClientRect();
  canvas.zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });

function use(point) {
  if (tool === "region") paint(point);
  else if (tool === "polygon") canvas.sketch(polygon = [...polygon, point], 0);
  else canvas.sketch(stroke = [point], radius());
}

function endStroke() {
  if (!stroke) return;
  const { inside, box } = canvas.shape(stroke, radius());
  take(inside, box, label(), `${tool}: ${name(label())}`);
  dropStroke();
}

// ---- keys

const peek = {
  h: () => { $("mask").hidden = true; },
  x: async () => {
    const layer = $("layer").value, id = now?.id;
    const { data } = await getArray("/api/labels", { id, layer }, Uint8Array);
    if (held === "x" && now?.id === id) { canvas.draw(undefined, data); say(`This is ${layer}`); }
  },
};
let held = "";

// The keyboard's cross: arrows move it, Space uses the tool where it is.
function aim(x, y) {
  if (!now?.labels) return;
  cursor = cursor ?? { x: canvas.width >> 1, y: canvas.height >> 1 };
  cursor = { x: Math.min(canvas.width - 1, Math.max(0, cursor.x + x)), y: Math.min(canvas.height - 1, Math.max(0, cursor.y + y)) };
  const { zoom, x: left, y: top } = canvas.view;
  $("cross").hidden = false;
  $("cross").style.transform = `translate(${left + (cursor.x + 0.5) * zoom}px, ${top + (cursor.y + 0.5) * zoom}px)`;
  if (tool === "region") canvas.light(canvas.regionAt(cursor));
  else if (tool === "polygon" && polygon.length) canvas.sketch([...polygon, cursor], 0);
  say(`${name(canvas.labels[cursor.y * canvas.width + cursor.x])}, ${cursor.x} from the left, ${cursor.y} from the top`);
}

const stride = () => Math.max(1, Math.round(0.02 * Math.max(canvas.width, canvas.height)));

function press() {
  if (!cursor) return aim(0, 0);
  use(cursor);
  endStroke();
}

const KEYS = [
  ["n", "next photo", () => step(1)], ["p", "previous photo", () => step(-1)],
  ["Enter", "accept, and go on; or close the polygon", () => (polygon.length ? close() : accept())],
  ["z", "undo", () => move("/api/undo")], ["y", "do it again", () => move("/api/redo")],
  ["1 to 9", "class, in the order of the list", null], ["0", "background", () => choose(0)], ["u", "unlabelled: nothing is learned here", () => choose(255)],
  ["r", "region", () => pick("region")], ["s", "large or small regions", setScale], ["b", "brush", () => pick("brush")],
  ["e", "eraser", () => pick("eraser")], ["g", "polygon", () => pick("polygon")],
  ["[", "smaller brush", () => setBreadth(breadth - 3)], ["]", "larger brush", () => setBreadth(breadth + 3)],
  ["t", "the tag of this class is wrong, or is missing", () => toggle(chosen)],
  ["m", "whole photo is background", clear], ["k", "skip", () => accept("skipped")],
  ["+", "zoom in", () => canvas.zoom(1.3)], ["-", "zoom out", () => canvas.zoom(1 / 1.3)], ["f", "whole photo", () => canvas.fit()],
  ["o", "outline only", () => $("outline").click()], ["h, held", "hide the mask", null], ["x, held", "compare with other masks", null],
  ["Arrows, Space", "on the photo: move the cross, use the tool there; with Shift: pan", null],
  ["Escape", "drop the polygon", dropStroke], ["?", "this help", () => $("help").showModal()],
];
const BY_KEY = new Map(KEYS.map(([key, , run]) => [key, run]));
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = target.matches("input, select"), onButton = target.matches("button, a");
  if (typing || (onButton && (key === "Enter" || key === " "))) return;
  if (key in ARROWS) {
    const [x, y] = ARROWS[key];
    if (target === $("list")) step(x + y);
    else if (target === $("stage") && event.shiftKey) canvas.pan(-60 * x, -60 * y);
    else if (target === $("stage")) aim(stride() * x, stride() * y);
    else return;
  } else if (key === " " && target === $("stage")) press();
  else if (key in peek) {
    if (!event.repeat) { held = key; Promise.resolve(peek[key]()).catch((error) => say(error.message, true)); }
  } else if (/^[1-9]$/.test(key)) { if (order[key - 1]) choose(order[key - 1]); } else if (BY_KEY.get(key)) BY_KEY.get(key)();
  else return;
  event.preventDefault();
});
document.addEventListener("keyup", ({ key }) => {
  if (key !== held) return;
  held = "";
  $("mask").hidden = false;
  canvas.draw();
});

// A brush is as wide on every photo: a share of its longer side, in thousandths.
const radius = () => Math.max(0.5, breadth / 1000 * Math.max(canvas.width, canvas.height));

function setBreadth(value) {
  breadth = Math.min(80, Math.max(1, value));
  $("size").value = breadth;
}

// ---- the rest of the page

const on = (id, run) => $(id).addEventListener("click", run);
on("next", () => step(1)); on("previous", () => step(-1)); on("accept", () => accept()); on("skip", () => accept("skipped"));
on("clear", clear); on("undo", () => move("/api/undo")); on("redo", () => move("/api/redo")); on("scale", setScale);
on("in", () => canvas.zoom(1.3)); on("out", () => canvas.zoom(1 / 1.3)); on("fit", () => canvas.fit());
on("help-button", () => $("help").showModal());
on("menu", () => $("menu").setAttribute("aria-expanded", String(document.body.classList.toggle("listed"))));
document.querySelectorAll("[data-tool]").forEach((one) => one.addEventListener("click", () => pick(one.dataset.tool)));
document.querySelector("[role=radiogroup]").addEventListener("keydown", (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  const tools = [...document.querySelectorAll("[data-tool]")], other = tools.at((tools.indexOf(event.target) + by) % tools.length);
  pick(other.dataset.tool);
  other.focus();
});
$("size").addEventListener("input", () => setBreadth(Number($("size").value)));
$("opacity").addEventListener("input", () => { $("mask").style.opacity = $("opacity").value / 100; });
$("outline").addEventListener("change", () => { canvas.outline = $("outline").checked; canvas.draw(); });
$("filter").addEventListener("change", () => { list.show(visible()); list.select(now?.id); });
$("order").addEventListener("change", async () => {
  say("The photos are being ordered…", true);
  try {
    photos = (await getJson("/api/order", { by: $("order").value })).map((id) => byId.get(id)).filter(Boolean);
    list.show(visible());
    say("");
    if (visible().length) open(visible()[0].id);
  } catch (error) { say(error.message, true); }
});
on("train", () => { showTraining(); $("training").showModal(); });
on("close", () => $("training").close());
on("begin", async () => { training = await post("/api/train", {}).catch((error) => ({ ...training, error: error.message })); showTraining(); poll(); });
on("stop", async () => { training = await post("/api/stop", {}); showTraining(); });
window.addEventListener("beforeunload", (event) => { if (queue.size) event.preventDefault(); });

function showTraining() {
  const { runs, lines, step: line = "", title = "", done = 0, total = 0, error = "", curve, segmenter } = training;
  $("lines").textContent = lines.join("\n");
  $("step").textContent = error ? `Failed: ${error}` : runs ? [line, title && `${title} ${done} of ${total}`].filter(Boolean).join(": ")
    : segmenter ? (line ? "Done: these are the new masks." : "") : "There is no segmenter yet: vpltool train-decoder trains one.";
  $("bar").hidden = !runs;
  if (total) Object.assign($("bar"), { max: total, value: done });
  else $("bar").removeAttribute("value");
  $("begin").hidden = runs;
  $("begin").disabled = !segmenter;
  $("stop").hidden = !runs;
  $("train").textContent = runs ? "Training…" : "Train again";
  showCurve($("curve"), curve);
}

function showLayers(layers) {
  $("layer").replaceChildren(...layers.map((layer) => element("option", { textContent: layer })));
  $("layer").value = layers.filter((layer) => layer.startsWith("before")).at(-1) ?? "computed";
}

// After training: the same page, with other masks and a new state of all photos.
async function renew() {
  const found = await getJson("/api/start");
  ({ shown, newest } = found);
  photos = found.photos.map(toPhoto);
  byId = new Map(photos.map((one) => [one.id, one]));
  loads.clear();
  showLayers(found.layers);
  list.show(visible());
  if (now && !queue.size) await open(now.id, { again: true });
}

let polls = 0;
async function poll() {
  const mine = ++polls, ran = training.runs;
  try {
    const found = await getJson("/api/poll", { since: newest });
    if (mine !== polls) return;
    newest = found.newest;
    training = found.training;
    for (const [id, state] of Object.entries(found.states)) {
      if (byId.has(id)) byId.get(id).state = state;
      if (id !== now?.id) loads.delete(id);
    }
    if (now?.labels && found.states[now.id] && !queue.has(now.id) && !stroke) {
      const about = await getJson("/api/photo", { id: now.id });
      if (about.version !== (queue.versions.get(about.id) ?? 0)) await reload(about.id);
    }
    if (ran && !training.runs) await renew();
    describe();
    showTraining();
  } catch { /* the queue says when the server is gone */ }
  setTimeout(() => { if (mine === polls) poll(); }, training.runs ? 400 : 2500);
}

$("keys").append(...KEYS.map(([key, what]) => element("div", {}, element("dt", {}, element("kbd", { textContent: key })), element("dd", { textContent: what }))));
$("order").append(...start.orders.map((one) => element("option", { textContent: one })));
$("order").value = start.order;
$("mask").style.opacity = 0.55;
showLayers(start.layers);
showTraining();
list.show(visible());
await open((photos.find((one) => one.state === "new") ?? photos[0]).id);
if (!localStorage.getItem("vpltool-review-seen")) { $("help").showModal(); localStorage.setItem("vpltool-review-seen", "1"); }
poll();
document.body.classList.add("ready");
