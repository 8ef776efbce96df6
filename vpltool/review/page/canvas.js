// The mask over the photo: labels on a grid, what tools change in it, and how it is drawn. A tool
// gives {box, inside}, the marked pixels of a box; an edit is {box, pixels}, its new labels.

const NONE = 255;

export class Canvas {
  constructor(stage, colours) {
    this.stage = stage;
    this.sheet = stage.querySelector("#sheet");
    this.photo = stage.querySelector("#photo");
    this.mask = stage.querySelector("#mask");
    this.hint = stage.querySelector("#hint");
    this.colours = new Uint32Array(256);
    const bytes = new Uint8Array(this.colours.buffer);
    colours.forEach((colour, index) => index && bytes.set([...colour, 255], 4 * index));
    bytes.set([255, 255, 255, 150], 4 * NONE);
    this.view = { zoom: 1, x: 0, y: 0 };
    Object.assign(this, { outline: false, regions: null, lit: -1 });
    new ResizeObserver(() => this.fit()).observe(stage);
  }

  show({ width, height, data }) {
    if (width !== this.width || height !== this.height) {
      Object.assign(this, { width, height });
      for (const one of [this.mask, this.hint]) Object.assign(one, { width, height });
      for (const one of [this.sheet, this.photo, this.mask, this.hint]) {
        Object.assign(one.style, { width: `${width}px`, height: `${height}px` });
      }
    } else if (data.every((label, place) => label === this.labels[place])) return;
    this.labels = data;
    this.draw();
  }

  // Draw the labels of a box, and a pixel around it, where outlines may change.
  draw([x, y, w, h] = [0, 0, this.width, this.height], labels = this.labels) {
    const left = Math.max(0, x - 1), top = Math.max(0, y - 1);
    const right = Math.min(this.width, x + w + 1), bottom = Math.min(this.height, y + h + 1);
    if (right <= left || bottom <= top) return;
    const image = new ImageData(right - left, bottom - top);
    const out = new Uint32Array(image.data.buffer);
    let at = 0;
    for (let row = top; row < bottom; row++) {
      for (let column = left; column < right; column++, at++) {
        const place = row * this.width + column, label = labels[place];
        if (this.outline && !this.isEdge(labels, place, row, column)) continue;
        out[at] = this.colours[label];
      }
    }
    this.mask.getContext("2d").putImageData(image, left, top);
  }

  isEdge(labels, place, row, column) {
    const label = labels[place];
    return (column > 0 && labels[place - 1] !== label) || (row > 0 && labels[place - this.width] !== label)
      || (column < this.width - 1 && labels[place + 1] !== label)
      || (row < this.height - 1 && labels[place + this.width] !== label);
  }

  // The mask is scaled by the browser: drawing is never slower when a photo is larger on the screen.
  fit() {
    if (!this.width) return;
    const { clientWidth, clientHeight } = this.stage;
    const zoom = Math.min(clientWidth / this.width, clientHeight / this.height);
    this.least = zoom;
    this.place({ zoom, x: (clientWidth - zoom * this.width) / 2, y: (clientHeight - zoom * this.height) / 2 });
  }

  place(view) {
    this.view = view;
    this.sheet.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
    this.mask.classList.toggle("sharp", view.zoom > 3);
  }

  zoom(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    const old = this.view, zoom = Math.min(40, Math.max(this.least * 0.8, old.zoom * factor));
    this.place({ zoom, x: x - (x - old.x) * zoom / old.zoom, y: y - (y - old.y) * zoom / old.zoom });
  }

  pan(x, y) { this.place({ ...this.view, x: this.view.x + x, y: this.view.y + y }); }

  // The grid's pixel at a place of the window; null outside of the photo.
  at(event) {
    const box = this.stage.getBoundingClientRect(), { zoom, x, y } = this.view;
    const column = Math.floor((event.clientX - box.left - x) / zoom);
    const row = Math.floor((event.clientY - box.top - y) / zoom);
    return column < 0 || row < 0 || column >= this.width || row >= this.height ? null : { x: column, y: row };
  }

  // All scales of regions, from one array; with left, top, right and bottom of each region.
  cut({ width, height, data }) {
    const size = width * height, numbers = new Uint16Array(data.buffer);
    return Array.from({ length: numbers.length / size }, (_, scale) => {
      const own = numbers.subarray(scale * size, (scale + 1) * size);
      const bounds = new Int32Array(4 * (own.reduce((most, one) => Math.max(most, one), 0) + 1));
      for (let at = 0; at < bounds.length; at += 4) bounds.set([width, height, -1, -1], at);
      for (let y = 0, place = 0; y < height; y++) {
        for (let x = 0; x < width; x++, place++) {
          const at = 4 * own[place];
          if (x < bounds[at]) bounds[at] = x;
          if (y < bounds[at + 1]) bounds[at + 1] = y;
          if (x > bounds[at + 2]) bounds[at + 2] = x;
          bounds[at + 3] = y;
        }
      }
      return { width, height, data: own, bounds };
    });
  }

  regionAt(point) {
    const { regions, width, height } = this;
    if (!regions) return -1;
    return regions.data[Math.floor((point.y + 0.5) * regions.height / height) * regions.width
      + Math.floor((point.x + 0.5) * regions.width / width)];
  }

  // Which pixels of a box belong to a region, as {box, inside}; only the region's own box is read.
  regionPixels(number) {
    const { regions, width, height } = this;
    const [left, top, right, bottom] = regions.bounds.subarray(4 * number, 4 * number + 4);
    const x = Math.max(0, Math.floor(left * width / regions.width) - 1), y = Math.max(0, Math.floor(top * height / regions.height) - 1);
    const w = Math.min(width, Math.ceil((right + 1) * width / regions.width) + 1) - x;
    const h = Math.min(height, Math.ceil((bottom + 1) * height / regions.height) + 1) - y;
    const column = Int32Array.from({ length: w }, (_, at) => Math.floor((x + at + 0.5) * regions.width / width));
    const inside = new Uint8Array(w * h);
    for (let row = 0, at = 0; row < h; row++) {
      const start = Math.floor((y + row + 0.5) * regions.height / height) * regions.width;
      for (let place = 0; place < w; place++, at++) inside[at] = regions.data[start + column[place]] === number ? 1 : 0;
    }
    return { inside, box: [x, y, w, h] };
  }

  clear() {
    this.lit = -1;
    this.hint.getContext("2d").clearRect(0, 0, this.hint.width, this.hint.height);
  }

  // Show a region's outline under the pointer.
  light(number) {
    if (number === this.lit) return;
    this.clear();
    if (number < 0) return;
    this.lit = number;
    const { inside, box: [x, y, w, h] } = this.regionPixels(number);
    const image = new ImageData(w, h), out = new Uint32Array(image.data.buffer);
    const reach = Math.max(1, Math.round(0.8 / this.view.zoom));
    for (let row = 0, at = 0; row < h; row++) {
      for (let column = 0; column < w; column++, at++) {
        if (!inside[at]) continue;
        const edge = (by) => column < by || row < by || column >= w - by || row >= h - by || !inside[at - by] || !inside[at + by]
          || !inside[at - by * w] || !inside[at + by * w];
        out[at] = edge(reach) ? 0xffffffff : edge(2 * reach) ? 0xc0000000 : 0;
      }
    }
    this.hint.getContext("2d").putImageData(image, x, y);
  }

  // Give the pixels that `inside` marks a label; null if none changes.
  fill(inside, [x, y, w, h], label) {
    const pixels = new Uint8Array(w * h);
    let changes = false;
    for (let row = 0, at = 0; row < h; row++) {
      for (let column = 0; column < w; column++, at++) {
        const place = (y + row) * this.width + x + column;
        pixels[at] = inside[at] ? label : this.labels[place];
        changes ||= pixels[at] !== this.labels[place];
        this.labels[place] = pixels[at];
      }
    }
    if (changes) this.draw([x, y, w, h]);
    return changes ? { box: [x, y, w, h], pixels } : null;
  }

  // A shape, drawn by the browser, as pixels: a brush's path, or a polygon.
  shape(points, radius) {
    const reach = Math.ceil(radius) + 1;
    const left = Math.max(0, Math.floor(Math.min(...points.map((one) => one.x))) - reach);
    const top = Math.max(0, Math.floor(Math.min(...points.map((one) => one.y))) - reach);
    const right = Math.min(this.width, Math.ceil(Math.max(...points.map((one) => one.x))) + reach + 1);
    const bottom = Math.min(this.height, Math.ceil(Math.max(...points.map((one) => one.y))) + reach + 1);
    const w = right - left, h = bottom - top;
    const context = new OffscreenCanvas(w, h).getContext("2d", { willReadFrequently: true });
    context.translate(0.5 - left, 0.5 - top);
    context.beginPath();
    points.forEach((one) => context.lineTo(one.x, one.y));
    if (radius) {
      Object.assign(context, { lineWidth: 2 * radius, lineCap: "round", lineJoin: "round" });
      if (points.length === 1) context.lineTo(points[0].x + 0.01, points[0].y);
      context.stroke();
    } else {
      context.fill("evenodd");
    }
    const drawn = context.getImageData(0, 0, w, h).data;
    const inside = Uint8Array.from({ length: w * h }, (_, at) => (drawn[4 * at + 3] > 127 ? 1 : 0));
    return { inside, box: [left, top, w, h] };
  }

  // The line that a tool draws before it is taken.
  sketch(points, radius) {
    const context = this.hint.getContext("2d");
    this.clear();
    context.beginPath();
    points.forEach((one) => context.lineTo(one.x + 0.5, one.y + 0.5));
    if (points.length === 1) context.lineTo(points[0].x + 0.51, points[0].y + 0.5);
    Object.assign(context, { lineCap: "round", lineJoin: "round", lineWidth: radius ? 2 * radius : 3 / this.view.zoom,
      strokeStyle: radius ? "rgba(255,255,255,.6)" : "#fff" });
    context.stroke();
  }
}
