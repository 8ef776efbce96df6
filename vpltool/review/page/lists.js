// What stands beside the photo: the list of photos, of which only the visible rows exist; the
// classes; and the curve.

const ROW = 72;
const MARKS = { new: "", accepted: "✓", corrected: "✎", skipped: "–" };
export const WORDS = { new: "not seen", accepted: "accepted", corrected: "corrected", skipped: "skipped" };

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export class PhotoList {
  constructor(box, { choose, classes }) {
    Object.assign(this, { box, choose, classes, photos: [], current: "", drawn: new Map() });
    this.rows = box.querySelector("#rows");
    box.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(box);
  }

  show(photos) {
    this.photos = photos;
    this.rows.style.height = `${photos.length * ROW}px`;
    this.drawn.forEach((row) => row.remove());
    this.drawn.clear();
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - 3);
    const last = Math.min(this.photos.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + 3);
    for (const [index, row] of this.drawn) {
      if (index < first || index >= last) { row.remove(); this.drawn.delete(index); }
    }
    for (let index = first; index < last; index++) {
      if (!this.drawn.has(index)) {
        const row = this.row(index);
        this.drawn.set(index, row);
        this.rows.append(row);
      }
    }
    this.mark();
  }

  row(index) {
    const photo = this.photos[index];
    const row = element("div", { id: `row-${index}`, className: "row-photo", role: "option" },
      element("img", { src: `/thumb?${new URLSearchParams({ id: photo.id })}`, alt: "", loading: "lazy" }),
      element("span", { className: "words" }, element("b", { textContent: photo.id }),
        element("span", { className: "tags" })),
      element("i", {}));
    row.style.top = `${index * ROW}px`;
    row.ariaSetSize = this.photos.length;
    row.ariaPosInSet = index + 1;
    row.addEventListener("click", () => this.choose(photo.id));
    return row;
  }

  // Bring states, tags and the selection up to date.
  mark() {
    for (const [index, row] of this.drawn) {
      const { id, state, tags } = this.photos[index];
      const named = tags.map((tag) => this.classes[tag]).join(", ") || "no tags";
      row.querySelector(".tags").textContent = named;
      row.ariaSelected = String(id === this.current);
      row.dataset.state = state;
      row.lastChild.textContent = MARKS[state];
      row.ariaLabel = `${id}, ${named}, ${WORDS[state]}`;
      if (id === this.current) this.box.setAttribute("aria-activedescendant", row.id);
    }
  }

  select(id) {
    this.current = id;
    const top = this.photos.findIndex((photo) => photo.id === id) * ROW;
    if (top >= 0 && (top < this.box.scrollTop || top + ROW > this.box.scrollTop + this.box.clientHeight)) {
      this.box.scrollTop = top - ROW;
    }
    this.draw();
  }
}

// Classes to paint with: those of the photo's tags first; keys 1 to 9 in this order. Rows are made
// once: a click would be lost if its button were replaced before the mouse is let go.
export class ClassList {
  constructor(box, { classes, colours, choose, toggle }) {
    Object.assign(this, { box, order: [], rows: new Map() });
    [...classes.keys(), 255].forEach((index) => {
      const name = classes[index] ?? "unlabelled", swatch = element("span", { className: `swatch swatch-${index}` });
      const key = element("kbd", { textContent: { 0: "0", 255: "u" }[index] ?? "" }), tag = element("button", { className: "tag" });
      const pick = element("button", { id: `class-${index}`, className: "pick" }, swatch, element("span", { textContent: name }), key);
      pick.addEventListener("click", () => choose(index));
      const row = element("li", {}, pick);
      if (index && index !== 255) {
        swatch.style.background = `rgb(${colours[index]})`;
        tag.ariaLabel = `Tag ${name}`;
        tag.addEventListener("click", () => toggle(index));
        row.append(tag);
      }
      this.rows.set(index, { row, pick, key, tag });
    });
  }

  show(tags, chosen) {
    const others = [...this.rows.keys()].filter((index) => index && index !== 255 && !tags.includes(index));
    const order = [...tags, ...others];
    if (order.join() !== this.order.join()) {
      const focused = document.activeElement;
      this.order = order;
      this.box.append(...[0, ...order, 255].map((index) => this.rows.get(index).row));
      order.forEach((index, place) => { this.rows.get(index).key.textContent = place < 9 ? place + 1 : ""; });
      if (this.box.contains(focused)) focused.focus();
    }
    for (const [index, { pick, key, tag }] of this.rows) {
      const tagged = tags.includes(index);
      pick.ariaPressed = String(index === chosen);
      key.hidden = !key.textContent;
      Object.assign(tag, { ariaPressed: String(tagged), textContent: tagged ? "tagged" : "no tag",
        title: tagged ? "This tag is wrong: take it away (t)" : "Give the photo this tag (t)" });
    }
  }
}

// Score after each training, by corrected photos.
export function showCurve(box, curve) {
  if (!curve.length) {
    box.replaceChildren(element("p", { className: "soft", textContent: "A point for each training will be here." }));
    return;
  }
  const space = "http://www.w3.org/2000/svg", wide = 240, high = 110, pad = 26;
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", curve.map((one) => `${one.photos} photos: ${one.score.toFixed(1)}`).join("; "));
  const most = Math.max(1, ...curve.map((one) => one.photos)), scores = curve.map((one) => one.score);
  const low = Math.min(...scores) - 1, span = Math.max(...scores) + 1 - low;
  const points = curve.map((one) => [pad + one.photos / most * (wide - 2 * pad), high - pad - (one.score - low) / span * (high - 2 * pad)]);
  const draw = (name, values, text = "") => {
    const made = document.createElementNS(space, name);
    Object.entries(values).forEach(([key, value]) => made.setAttribute(key, value));
    made.textContent = text;
    svg.append(made);
  };
  draw("line", { class: "axis", x1: pad, y1: high - pad, x2: wide - pad, y2: high - pad });
  draw("polyline", { class: "line", points: points.map((one) => one.join()).join(" ") });
  points.forEach(([x, y], index) => {
    draw("circle", { class: "dot", cx: x, cy: y, r: 3.5 });
    draw("text", { x, y: y - 8 }, curve[index].score.toFixed(1));
    draw("text", { class: "soft", x, y: high - 10 }, curve[index].photos);
  });
  box.replaceChildren(svg, element("p", { className: "soft",
    textContent: `${curve.at(-1).measure} of the segmenter, by corrected photos` }));
}
