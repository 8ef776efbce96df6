"use strict";
// Everything that the page shows of photos. Names are only ever set as text, never as HTML.

const PAGE = 60;
const report = JSON.parse(document.getElementById("report-data").textContent);
const photos = JSON.parse(document.getElementById("photo-data").textContent);
const at = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = tag === "svg" || tag === "rect"
    ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const percent = (share) => (100 * share).toFixed(1) + " %";
const classNames = (indices) => indices.map((index) => report.classes[index]).join(", ");

// Confusion

function shares(counts) {
  return counts.map((row) => {
    const total = row.reduce((sum, count) => sum + count, 0);
    return row.map((count) => (total ? count / total : null));
  });
}

function showConfusion() {
  const score = report.scores[at("confusion-of").value];
  const rows = shares(score.confusion);
  const known = rows.map((_, index) => index).filter((index) => rows[index][0] !== null);
  const columns = rows.map((_, index) => index).filter(
    (index) => known.includes(index) || known.some((row) => rows[row][index] >= 0.001));
  const head = element("tr", {}, element("th", { scope: "col" }, "true class"),
    ...columns.map((index) => element("th", { scope: "col", class: "number" },
      report.classes[index])));
  const body = known.map((row) => element("tr", {},
    element("th", { scope: "row" }, report.classes[row]),
    ...columns.map((column) => element("td", {
      class: `number h${Math.floor(10 * rows[row][column])}${row === column ? " strong" : ""}`,
    }, rows[row][column] >= 0.0005 ? (100 * rows[row][column]).toFixed(1) : "·"))));
  at("confusion-table").replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
  const wrong = known.flatMap((row) => columns.filter((column) => column !== row).map(
    (column) => ({ row, column, share: rows[row][column] })));
  wrong.sort((first, second) => second.share - first.share);
  at("confusion-worst").replaceChildren(...wrong.slice(0, 5).filter((entry) => entry.share > 0)
    .map(({ row, column, share }) => element("li", {},
      `${percent(share)} of ${report.classes[row]} is labelled ${report.classes[column]}`)));
}

// Photos: which, in which order

const state = { layer: report.start, chosen: [], page: 0, open: -1, hidden: false };

const MEASURES = {
  iou: (name) => [`IoU of ${name}, worst first`, 1],
  unsure: (name) => [`uncertainty of ${name}, most first`, -1],
  apart: (name) => [`disagreement of ${name} with the tags, most first`, -1],
};

function fillChoices() {
  at("layer").append(element("option", { value: -1 }, "photos only"),
    ...report.layers.map((layer, index) => element("option", { value: index }, layer.name)));
  at("layer").value = state.layer;
  const counts = new Map();
  for (const photo of photos) {
    for (const index of new Set([...photo.tags, ...shownIn(photo)])) {
      counts.set(index, (counts.get(index) || 0) + 1);
    }
  }
  at("class").append(element("option", { value: "" }, "all"),
    ...[...counts].sort((first, second) => first[0] - second[0]).map(([index, count]) =>
      element("option", { value: index }, `${report.classes[index]} (${count})`)));
  at("sort").append(element("option", { value: "" }, "order of the split"));
  for (const [measure, spell] of Object.entries(MEASURES)) {
    report.layers.forEach((layer, index) => {
      if (photos.some((photo) => valueOf(photo, index, measure) !== null)) {
        at("sort").append(element("option", { value: `${measure} ${index}` }, spell(layer.name)[0]));
      }
    });
  }
}

// Classes that cover enough of any layer of labels to count as found.
const shownIn = (photo) => photo.layers.flatMap((layer) => (layer && layer.found) || []);

function valueOf(photo, index, measure) {
  const value = photo.layers[index] && photo.layers[index][measure];
  return value === undefined || value === null ? null : value;
}

function choose() {
  const wanted = at("class").value;
  const query = at("query").value.toLowerCase();
  const [measure, index] = at("sort").value.split(" ");
  state.chosen = photos.filter((photo) => photo.id.toLowerCase().includes(query)
    && (!wanted || photo.tags.includes(+wanted) || shownIn(photo).includes(+wanted)));
  if (measure) {
    const direction = MEASURES[measure]("")[1];
    // Photos without a value come last.
    const key = (photo) => {
      const value = valueOf(photo, +index, measure);
      return value === null ? Infinity : direction * value;
    };
    state.chosen = state.chosen.map((photo) => [key(photo), photo])
      .sort((first, second) => (first[0] < second[0] ? -1 : first[0] > second[0] ? 1 : 0))
      .map((pair) => pair[1]);
  }
  state.page = 0;
  showPage();
}

// Photos: a page of them

function words(photo, index) {
  const layer = index >= 0 ? photo.layers[index] : null;
  if (!layer) return "";
  if (layer.why) return layer.why;
  const said = [];
  if (layer.iou !== undefined) said.push(`IoU ${percent(layer.iou)}`);
  if (layer.unsure !== undefined) said.push(`unsure ${percent(layer.unsure)}`);
  if (layer.missed && layer.missed.length) said.push(`not found: ${classNames(layer.missed)}`);
  if (layer.extra && layer.extra.length) said.push(`not tagged: ${classNames(layer.extra)}`);
  return said.join("; ");
}

function spoken(photo, index) {
  const layer = photo.layers[index];
  const parts = layer.areas
    ? layer.areas.map(([label, share]) => `${report.classes[label]} ${percent(share)}`)
    : (layer.classes || []).map((label) => report.classes[label]);
  return `${report.layers[index].name}: ${parts.join(", ") || "background only"}`;
}

function fillStack(stack, photo, index, lazy) {
  const loading = lazy ? "lazy" : "eager";
  stack.classList.toggle("maps", index >= 0 && report.layers[index].kind === "maps");
  const images = [element("img",
    { src: photo.picture, loading, alt: altOf(photo), draggable: "false" })];
  const layer = index >= 0 ? photo.layers[index] : null;
  if (layer && layer.picture) {
    const over = element("img", { src: layer.picture, loading, alt: spoken(photo, index),
      class: report.layers[index].kind, draggable: "false" });
    over.style.opacity = at("opacity").value / 100;
    images.push(over);
  }
  stack.replaceChildren(...images);
}

const altOf = (photo) => `photo ${photo.id}, ${
  photo.tags.length ? `tagged ${classNames(photo.tags)}` : "without tags"}`;

function showPage() {
  const pages = Math.max(1, Math.ceil(state.chosen.length / PAGE));
  const first = state.page * PAGE;
  at("grid").replaceChildren(...state.chosen.slice(first, first + PAGE).map((photo, number) => {
    const stack = element("span", { class: "stack" });
    fillStack(stack, photo, state.layer, true);
    const button = element("button", { type: "button" }, stack, element("span", { class: "words" },
      element("b", {}, photo.id), element("span", {}, classNames(photo.tags)),
      element("br"), element("span", {}, words(photo, state.layer))));
    button.addEventListener("click", () => open(first + number));
    return element("li", {}, button);
  }));
  at("count").textContent = `${state.chosen.length} of ${photos.length} photos`;
  at("page-number").textContent = `page ${state.page + 1} of ${pages}`;
  at("page-before").disabled = state.page === 0;
  at("page-after").disabled = state.page >= pages - 1;
}

function turn(by) {
  state.page += by;
  showPage();
  at("photos").scrollIntoView();
}

// One photo

const view = { scale: 1, left: 0, top: 0 };

function open(number) {
  state.open = number;
  state.hidden = false;
  zoomTo(1);
  showPhoto();
  if (!at("viewer").open) at("viewer").showModal();
}

function showPhoto() {
  const photo = state.chosen[state.open];
  const index = state.hidden ? -1 : state.layer;
  at("viewer-title").textContent = photo.id;
  at("viewer-tags").textContent = photo.tags.length ? `Tags: ${classNames(photo.tags)}` : "No tags";
  fillStack(at("stack"), photo, index, false);
  for (const input of at("viewer-layers").querySelectorAll("input")) {
    const own = photo.layers[input.value];
    input.checked = +input.value === index;
    input.disabled = input.value >= 0 && !(own && own.picture);
  }
  const layer = index >= 0 ? photo.layers[index] : null;
  const listed = layer ? layer.areas || (layer.classes || []).map((label) => [label, null]) : [];
  at("legend").replaceChildren(...listed.filter(([label]) => label).map(([label, share]) =>
    element("li", {}, element("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" },
      element("rect", { width: 16, height: 16, fill: report.colours[label] })),
    report.classes[label] + (share === null ? "" : ` ${percent(share)}`))));
  at("viewer-words").textContent = index >= 0 ? words(photo, index) : "";
  at("before").disabled = state.open === 0;
  at("after").disabled = state.open === state.chosen.length - 1;
}

function fillLayers() {
  at("viewer-layers").append(...["photo only", ...report.layers.map((layer) => layer.name)]
    .map((name, number) => {
      const input = element("input", { type: "radio", name: "layer", value: number - 1 });
      input.addEventListener("change", () => showLayer(number - 1));
      return element("label", {}, input, name,
        ...(number < 10 ? [element("kbd", { "aria-hidden": "true" }, String(number))] : []));
    }));
}

function showLayer(index) {
  state.hidden = false;
  state.layer = index;
  at("layer").value = index;
  showPhoto();
}

function step(by) {
  const next = state.open + by;
  if (next >= 0 && next < state.chosen.length) open(next);
}

function zoomTo(scale, x = 0, y = 0) {
  const next = Math.min(16, Math.max(1, scale));
  const factor = next / view.scale;
  view.left = next === 1 ? 0 : x - (x - view.left) * factor;
  view.top = next === 1 ? 0 : y - (y - view.top) * factor;
  view.scale = next;
  place();
}

function place() {
  at("stack").style.transform = `translate(${view.left}px, ${view.top}px) scale(${view.scale})`;
}

function zoomMiddle(factor) {
  zoomTo(view.scale * factor, at("frame").clientWidth / 2, at("frame").clientHeight / 2);
}

function closed() {
  state.page = Math.floor(state.open / PAGE);
  showPage();
  at("grid").children[state.open % PAGE].firstChild.focus();
}

const fingers = new Map();

function placeOf(event) {
  const box = at("frame").getBoundingClientRect();
  return { x: event.clientX - box.left, y: event.clientY - box.top };
}

function spread() {
  const [first, second] = [...fingers.values()];
  return { x: (first.x + second.x) / 2, y: (first.y + second.y) / 2,
    wide: Math.hypot(first.x - second.x, first.y - second.y) };
}

function move(event) {
  const last = fingers.get(event.pointerId);
  if (!last) return;
  const before = fingers.size === 2 ? spread() : null;
  const now = placeOf(event);
  fingers.set(event.pointerId, now);
  if (before) {
    const after = spread();
    if (before.wide > 0) zoomTo(view.scale * after.wide / before.wide, after.x, after.y);
  } else if (view.scale > 1) {
    view.left += now.x - last.x;
    view.top += now.y - last.y;
    place();
  }
}

const KEYS = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), "+": () => zoomMiddle(1.5),
  "=": () => zoomMiddle(1.5), "-": () => zoomMiddle(1 / 1.5), Home: () => zoomTo(1),
  " ": () => { state.hidden = !state.hidden; showPhoto(); },
};

function pressed(event) {
  if (!at("viewer").open || event.ctrlKey || event.metaKey || event.altKey) return;
  const number = /^[0-9]$/.test(event.key) ? +event.key : null;
  const onRadio = event.target.type === "radio" && event.key.startsWith("Arrow");
  if (number !== null && number <= report.layers.length) showLayer(number - 1);
  else if (KEYS[event.key] && !onRadio && !(event.key === " " && event.target.tagName === "BUTTON")) {
    event.preventDefault();
    KEYS[event.key]();
  }
}

function listen() {
  for (const id of ["class", "sort"]) at(id).addEventListener("change", choose);
  at("query").addEventListener("input", choose);
  at("choice").addEventListener("submit", (event) => event.preventDefault());
  at("layer").addEventListener("change", () => { state.layer = +at("layer").value; showPage(); });
  at("opacity").addEventListener("input", () => {
    for (const image of document.querySelectorAll(".stack img:nth-child(2)")) {
      image.style.opacity = at("opacity").value / 100;
    }
  });
  at("page-before").addEventListener("click", () => turn(-1));
  at("page-after").addEventListener("click", () => turn(1));
  at("before").addEventListener("click", () => step(-1));
  at("after").addEventListener("click", () => step(1));
  at("smaller").addEventListener("click", () => zoomMiddle(1 / 1.5));
  at("larger").addEventListener("click", () => zoomMiddle(1.5));
  at("close").addEventListener("click", () => at("viewer").close());
  at("viewer").addEventListener("close", closed);
  document.addEventListener("keydown", pressed);
  const frame = at("frame");
  frame.addEventListener("wheel", (event) => {
    event.preventDefault();
    const { x, y } = placeOf(event);
    zoomTo(view.scale * (event.deltaY < 0 ? 1.2 : 1 / 1.2), x, y);
  }, { passive: false });
  frame.addEventListener("pointerdown", (event) => {
    frame.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, placeOf(event));
  });
  frame.addEventListener("pointermove", move);
  for (const name of ["pointerup", "pointercancel"]) {
    frame.addEventListener(name, (event) => fingers.delete(event.pointerId));
  }
}

if (report.scores.length) {
  at("confusion-of").addEventListener("change", showConfusion);
  showConfusion();
}
fillChoices();
fillLayers();
listen();
choose();
