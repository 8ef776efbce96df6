import { Canvas } from "./canvas.js";
import { Queue, encode, get, post } from "./net.js";
import { ClassList, PhotoList, WORDS, element, showCurve } from "./lists.js";

const $ = (id) => document.getElementById(id);
const start = await get("/api/start").catch((error) => { say(error.message, true); throw error; });
let photos, byId, newest, shown, training;
let now = null, chosen = 0, tool = "region", scale = 0, breadth = 20;
let stroke = null, polygon = [], grab = null, cursor = null, held = "";

const canvas = new Canvas($("stage"), start.colours);
const list = new PhotoList($("list"), { choose: open, classes: start.classes });
const classes = new ClassList($("classes"), { ...start, choose, toggle });
const queue = new Queue({ heard, refused, told });
window.review = { queue, canvas };   // for tests

// Note how long something took until it was painted, for tests and the browser's own trace.
const painted = (what, start) => requestAnimationFrame(() => setTimeout(() => performance.measure(what, { start })));

function begin(found) {
  ({ shown, newest, training } = found);
  photos = found.photos.map(([id, tags, state]) => ({ id, tags, state }));
  byId = new Map(photos.map((one) => [one.id, one]));
  $("layer").replaceChildren(...found.layers.map((layer) => element("option", { textContent: layer })));
  $("layer").value = found.layers.filter((layer) => layer.startsWith("before")).at(-1) ?? "computed";
  list.show(visible());
}

// ---- photos

const loads = new Map();

// What the page shows of a photo; asked for ahead of time for the next ones.
function load(id) {
  if (!loads.has(id)) {
    const image = new Image();
    image.src = `/photo?${new URLSearchParams({ id })}`;
    const photo = Promise.all([get("/api/photo", { id }), image.decode().then(() => image)]);
    const regions = get("/api/regions", { id }).then(canvas.cut, () => []);
    photo.catch(() => loads.delete(id));
    loads.set(id, { photo, regions });
    while (loads.size > 8) loads.delete(loads.keys().next().value);
  }
  return loads.get(id);
}

async function open(id) {
  const began = performance.now();
  dropStroke();
  list.select(id);
  now = { id };
  cursor = null;
  $("cross").hidden = true;
  $("message").textContent = "";
  // Its changes are saved first: the server tells what it is then.
  while (queue.has(id)) await new Promise((done) => setTimeout(done, 20));
  if (now.id !== id) return;
  const wanted = load(id);
  try {
    const [found, image] = await wanted.photo;
    if (now.id !== id) return;
    $("photo").src = image.src;
    $("photo").alt = `Photo ${id}`;
    chosen = found.tags[0] ?? 0;
    canvas.regions = null;
    heard(found);
    canvas.fit();
    painted("open", began);
    const regions = await wanted.regions;
    if (now.id !== id) return;
    now.regions = regions;
    canvas.regions = regions[scale];
    const those = visible(), place = those.findIndex((one) => one.id === id);
    those.slice(place + 1, place + 3).forEach((one) => load(one.id));
  } catch (error) {
    if (now.id !== id) return;
    canvas.show({ width: 4, height: 3, data: new Uint8Array(12) });
    $("photo").removeAttribute("src");
    $("message").textContent = `${id}: ${error.message || "the photo cannot be read"}. Go on with the next one.`;
    describe();
  }
}

// What the server has of a photo, when it is opened, saved, or changed elsewhere.
function heard(found) {
  const { id, state, tags, version } = found;
  if (version < (queue.versions.get(id) ?? 0)) return;   // a newer answer was faster
  queue.versions.set(id, version);
  Object.assign(byId.get(id), { state, tags });
  if (id !== now?.id) loads.delete(id);
  else if (!queue.has(id)) {
    Object.assign(now, found);
    canvas.show(found);
  }
  describe();
}

const reload = async (id) => heard(await get("/api/photo", { id }));

const visible = () => ($("filter").value ? photos.filter((one) => one.state === $("filter").value || one.id === now?.id) : photos);

function step(by) {
  const those = visible(), next = those[those.findIndex((one) => one.id === now?.id) + by];
  if (next) open(next.id);
}

// ---- changes

function change(what, { box = [0, 0, 0, 0], pixels = new Uint8Array(), state = "corrected", tags = null } = {}) {
  if (!now?.data) return;
  now.history.push(what);
  Object.assign(now, { redo: 0, state, tags: tags ?? now.tags });
  loads.delete(now.id);
  queue.add("/api/edit", { id: now.id, op: crypto.randomUUID(), what, box, pixels: encode(pixels), state, tags });
  describe();
}

const name = (label) => start.classes[label] ?? "unlabelled";
const label = () => (tool === "eraser" ? 0 : chosen);

// Give pixels a label: those that are marked in a box.
function paint(what, { inside, box }, to = label()) {
  const edit = canvas.fill(inside, box, to);
  if (edit) change(what, edit);
  say(edit ? what : `This is ${name(to)} already.`);
}

function paintRegion(point) {
  const began = performance.now();
  const number = canvas.regionAt(point);
  if (number < 0) { say("The regions are not ready yet."); return; }
  paint(`region: ${name(chosen)}`, canvas.regionPixels(number));
  painted("paint", began);
}

function move(path) {
  if (!now?.data) return;
  dropStroke();
  queue.add(path, { id: now.id });
}

function refused(id, error) {
  say(error.status === 409 ? `${id} was changed in another window: this is how it is now.` : `Not saved: ${error.message}`, true);
  reload(id).catch(() => {});
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
  // What is corrected counts as accepted already.
  if (now?.data && now.state !== state && !(state === "accepted" && now.state === "corrected")) change(state, { state });
  step(1);
}

function clear() {
  if (!now?.data) return;
  paint("whole photo is background", { inside: canvas.labels.map(() => 1), box: [0, 0, canvas.width, canvas.height] }, 0);
}

function toggle(index) {
  if (!now?.data || !index || index === 255) return;
  const has = now.tags.includes(index);
  const tags = has ? now.tags.filter((one) => one !== index) : [...now.tags, index].sort((one, other) => one - other);
  change(`${has ? "without the tag" : "tag"} ${name(index)}`, { state: now.state, tags });
}

// ---- what stands around the photo

function describe() {
  const { tags = [], history = [], redo = 0, state = "new", id } = now ?? {};
  if (now?.data) Object.assign(byId.get(id), { state, tags });
  classes.show(tags, chosen);
  $("history").replaceChildren(...history.slice(-12).reverse().map((what) => element("li", { textContent: what })));
  if (!history.length) $("history").append(element("li", { className: "soft", textContent: WORDS[state] }));
  $("undo").disabled = !history.length;
  $("redo").disabled = !redo;
  list.mark();
  const done = photos.filter((one) => one.state !== "new").length;
  Object.assign($("progress"), { max: photos.length, value: done });
  $("count").textContent = `${done} of ${photos.length}`;
  document.querySelectorAll("[data-tool]").forEach((one) => {
    one.ariaChecked = String(one.dataset.tool === tool);
    one.tabIndex = one.dataset.tool === tool ? 0 : -1;
  });
  $("scale").hidden = tool !== "region";
  $("scale").textContent = `Regions: ${start.scales[scale]}`;
  $("breadth").hidden = tool !== "brush" && tool !== "eraser";
  $("shown").textContent = `${shown} · ${start.split}`;
  $("name").textContent = start.name;
}

function choose(index) {
  chosen = index;
  if (tool === "eraser") tool = "region";
  say(`Paint with ${name(index)}`);
  describe();
}

function pick(which) {
  dropStroke();
  tool = which;
  describe();
}

function setScale() {
  scale = (scale + 1) % start.scales.length;
  canvas.regions = now?.regions?.[scale] ?? null;
  pick("region");
}

// ---- pointer

function dropStroke() {
  stroke = null;
  polygon = [];
  canvas.clear();
}

function close() {
  if (polygon.length > 2) paint(`polygon: ${name(label())}`, canvas.shape(polygon, 0));
  dropStroke();
}

function use(point) {
  if (tool === "region") paintRegion(point);
  else if (tool === "polygon") polygon.push(point);
  else stroke = [point];
  hover(point);
}

function endStroke() {
  if (stroke) paint(`${tool}: ${name(label())}`, canvas.shape(stroke, radius()));
  if (tool !== "polygon") dropStroke();
}

// What the tool would do at a point; null: outside of the photo.
function hover(point) {
  if (stroke && point) canvas.sketch(stroke, radius());
  else if (tool === "region") canvas.light(point ? canvas.regionAt(point) : -1);
  else if (tool === "polygon" && polygon.length && point) canvas.sketch([...polygon, point], 0);
  else if (tool !== "polygon" && point) canvas.sketch([point], radius());
}

const stage = $("stage"), onStage = (type, run, options) => stage.addEventListener(type, run, options);
onStage("pointerdown", (event) => {
  if (!now?.data) return;
  stage.focus({ preventScroll: true });
  stage.setPointerCapture(event.pointerId);
  const point = canvas.at(event);
  if (event.button || event.shiftKey || !point) grab = { x: event.clientX, y: event.clientY };
  else use(point);
});
onStage("pointermove", (event) => {
  if (grab) {
    canvas.pan(event.clientX - grab.x, event.clientY - grab.y);
    grab = { x: event.clientX, y: event.clientY };
  } else if (now?.data) {
    const point = canvas.at(event);
    if (stroke && point) stroke.push(point);
    hover(point);
  }
});
onStage("pointerup", () => { if (!grab) endStroke(); grab = null; });
onStage("pointercancel", () => { grab = null; dropStroke(); });
onStage("pointerleave", () => { if (!stroke && !polygon.length) canvas.clear(); });
onStage("dblclick", () => { if (tool === "polygon") close(); });
onStage("contextmenu", (event) => event.preventDefault());
onStage("wheel", (event) => {
  event.preventDefault();
  const box = stage.getBoundingClientRect();
  canvas.zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });

// ---- keys

// While a key or its button is held: no mask, or another one.
async function hold(which) {
  held = which;
  if (which === "h") $("mask").hidden = true;
  else {
    const layer = $("layer").value, id = now?.id;
    const { data } = await get("/api/layer", { id, layer });
    if (held === which && now?.id === id) { canvas.draw(undefined, data); say(`This is ${layer}`); }
  }
}

function release() {
  if (!held) return;
  held = "";
  $("mask").hidden = false;
  canvas.draw();
}

// The keyboard's cross: arrows move it, Space uses the tool where it is.
function aim(x, y) {
  if (!now?.data) return;
  const stride = Math.max(1, Math.round(0.02 * Math.max(canvas.width, canvas.height)));
  cursor ??= { x: canvas.width >> 1, y: canvas.height >> 1 };
  cursor = { x: Math.min(canvas.width - 1, Math.max(0, cursor.x + stride * x)), y: Math.min(canvas.height - 1, Math.max(0, cursor.y + stride * y)) };
  const { zoom, x: left, y: top } = canvas.view;
  $("cross").hidden = false;
  $("cross").style.transform = `translate(${left + (cursor.x + 0.5) * zoom}px, ${top + (cursor.y + 0.5) * zoom}px)`;
  hover(cursor);
  say(`${name(canvas.labels[cursor.y * canvas.width + cursor.x])}, ${cursor.x} from the left, ${cursor.y} from the top`);
}

function press() {
  if (!cursor) { aim(0, 0); return; }
  use(cursor);
  endStroke();
}

// A brush is as wide on every photo: a share of its longer side, in thousandths.
const radius = () => Math.max(0.5, breadth / 1000 * Math.max(canvas.width, canvas.height));

function setBreadth(value) {
  breadth = Math.min(80, Math.max(1, value));
  $("size").value = breadth;
}

// Keys, what they do, and the button that does the same.
const KEYS = [
  ["n", "next photo", () => step(1), "next"], ["p", "previous photo", () => step(-1), "previous"],
  ["Enter", "accept, and go on; or close the polygon", () => (polygon.length ? close() : accept()), "accept"],
  ["z", "undo", () => move("/api/undo"), "undo"], ["y", "do it again", () => move("/api/redo"), "redo"],
  ["1 to 9", "class, in the order of the list"], ["0", "background", () => choose(0)], ["u", "unlabelled: nothing is learned here", () => choose(255)],
  ["r", "region", () => pick("region")], ["s", "size of the regions", setScale, "scale"], ["b", "brush", () => pick("brush")],
  ["e", "eraser", () => pick("eraser")], ["g", "polygon", () => pick("polygon")],
  ["[", "smaller brush", () => setBreadth(breadth - 3)], ["]", "larger brush", () => setBreadth(breadth + 3)],
  ["t", "the tag of this class is wrong, or is missing", () => toggle(chosen)],
  ["m", "whole photo is background", clear, "clear"], ["k", "skip", () => accept("skipped"), "skip"],
  ["+", "zoom in", () => canvas.zoom(1.3), "in"], ["-", "zoom out", () => canvas.zoom(1 / 1.3), "out"], ["f", "whole photo", () => canvas.fit(), "fit"],
  ["o", "outline only", () => $("outline").click()], ["h, held", "hide the mask"], ["x, held", "compare with other masks"],
  ["Arrows, Space", "on the photo: move the cross, use the tool there; with Shift: pan"],
  ["Escape", "drop the polygon", dropStroke], ["?", "this help", () => $("help").showModal(), "help-button"],
];
const BY_KEY = new Map(KEYS.map(([key, , run]) => [key, run]));
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function pressed({ key, target, shiftKey, repeat }) {
  if (target.matches("input, select") || (target.matches("button, a") && (key === "Enter" || key === " "))) return false;
  const [x, y] = ARROWS[key] ?? [];
  if (key in ARROWS && target === $("list")) step(x + y);
  else if (key in ARROWS && target === stage && shiftKey) canvas.pan(-60 * x, -60 * y);
  else if (key in ARROWS && target === stage) aim(x, y);
  else if (key === " " && target === stage) press();
  else if (key === "h" || key === "x") { if (!repeat) hold(key).catch((error) => say(error.message, true)); }
  else if (/^[1-9]$/.test(key)) { if (classes.order[key - 1]) choose(classes.order[key - 1]); }
  else if (BY_KEY.get(key)) BY_KEY.get(key)();
  else return false;
  return true;
}

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (pressed(event)) event.preventDefault();
});
document.addEventListener("keyup", ({ key }) => { if (key === held) release(); });

// ---- the rest of the page

const on = (id, run, type = "click") => $(id).addEventListener(type, run);
KEYS.forEach(([key, what, run, button]) => {
  if (button) on(button, button === "accept" ? () => accept() : run);
  $("keys").append(element("div", {}, element("dt", {}, element("kbd", { textContent: key })), element("dd", { textContent: what })));
});
const tools = [...document.querySelectorAll("[data-tool]")];
tools.forEach((one) => one.addEventListener("click", () => pick(one.dataset.tool)));
tools[0].parentElement.addEventListener("keydown", ({ key, target }) => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[key];
  if (by) tools.at((tools.indexOf(target) + by) % tools.length).click();
  if (by) tools.find((one) => one.dataset.tool === tool).focus();
});
on("menu", () => $("menu").setAttribute("aria-expanded", String(document.body.classList.toggle("listed"))));
on("size", () => setBreadth(Number($("size").value)), "input");
on("opacity", () => { $("mask").style.opacity = $("opacity").value / 100; }, "input");
on("outline", () => { canvas.outline = $("outline").checked; canvas.draw(); }, "change");
on("compare", () => hold("x").catch((error) => say(error.message, true)), "pointerdown");
window.addEventListener("pointerup", release);
on("filter", () => { list.show(visible()); list.select(now?.id); }, "change");
on("order", async () => {
  say("The photos are being ordered…", true);
  try {
    photos = (await get("/api/order", { by: $("order").value })).map((id) => byId.get(id)).filter(Boolean);
    list.show(visible());
    say("");
    if (visible().length) open(visible()[0].id);
  } catch (error) { say(error.message, true); }
}, "change");
on("train", () => $("training").showModal());
on("close", () => $("training").close());
on("begin", () => train("/api/train"));
on("stop", () => train("/api/stop"));
window.addEventListener("beforeunload", (event) => { if (queue.size) event.preventDefault(); });

// ---- training, and what changes elsewhere

async function train(path) {
  training = await post(path, {}).catch((error) => ({ ...training, error: error.message }));
  showTraining();
  poll();
}

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

let polls = 0;
async function poll() {
  const mine = ++polls, ran = training.runs;
  try {
    const found = await get("/api/poll", { since: newest });
    if (mine !== polls) return;
    ({ newest, training } = found);
    for (const [id, state] of Object.entries(found.states)) {
      if (byId.has(id)) byId.get(id).state = state;
      if (id !== now?.id) loads.delete(id);
      else if (now.data && !queue.has(id) && !stroke) await reload(id);
    }
    if (ran && training.error) say(training.error, true);
    else if (ran && !training.runs) {
      begin(await get("/api/start"));
      loads.clear();
      queue.versions.clear();
      if (now && !queue.size) await open(now.id);
    }
    describe();
    showTraining();
  } catch { /* the queue says when the server is gone */ }
  setTimeout(() => { if (mine === polls) poll(); }, training.runs ? 400 : 2500);
}

$("order").append(...start.orders.map((one) => element("option", { textContent: one })));
$("order").value = start.order;
$("mask").style.opacity = 0.55;
begin(start);
showTraining();
await open((photos.find((one) => one.state === "new") ?? photos[0]).id);
if (!localStorage.getItem("vpltool-review-seen")) { $("help").showModal(); localStorage.setItem("vpltool-review-seen", "1"); }
poll();
document.body.classList.add("ready");
