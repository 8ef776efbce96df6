// Requests to the server, and the queue of what is not saved yet: each change is sent once the one
// before it is saved, and again until the server answers.

// JSON as it is; of an array, what stands in its first line, and the bytes after it as `data`.
async function ask(address, options) {
  const answer = await fetch(address, options);
  if (answer.headers.get("Content-Type") !== "application/octet-stream") {
    const found = await answer.json().catch(() => ({ error: answer.statusText }));
    if (!answer.ok) throw Object.assign(new Error(found.error), { status: answer.status });
    return found;
  }
  const bytes = new Uint8Array(await answer.arrayBuffer()), end = bytes.indexOf(10);
  return { ...JSON.parse(new TextDecoder().decode(bytes.subarray(0, end))), data: bytes.slice(end + 1) };
}

export const get = (path, query = {}) => ask(`${path}?${new URLSearchParams(query)}`);
export const post = (path, body) => ask(path, { method: "POST", body: JSON.stringify(body) });

export function encode(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return btoa(text);
}

export class Queue {
  // `heard` gets a photo's description when a change is saved, `refused` when it cannot be, `told`
  // how many wait and why.
  constructor({ heard, refused, told }) {
    Object.assign(this, { heard, refused, told, waiting: [], versions: new Map(), busy: false });
  }

  get size() { return this.waiting.length; }

  has(id) { return this.waiting.some((one) => one.body.id === id); }

  add(path, body) {
    this.waiting.push({ path, body });
    this.told(this.size, "");
    this.send();
  }

  async send() {
    if (this.busy) return;
    this.busy = true;
    while (this.size) {
      const { path, body } = this.waiting[0];
      try {
        const found = await post(path, { ...body, version: this.versions.get(body.id) });
        this.waiting.shift();
        this.versions.set(body.id, found.version);
        this.told(this.size, "");
        this.heard(found);
      } catch (error) {
        if (error.status && error.status !== 403) {
          this.waiting = this.waiting.filter((one) => one.body.id !== body.id);
          this.told(this.size, "");
          this.refused(body.id, error);
          continue;
        }
        this.told(this.size, error.status ? error.message : "The server does not answer. Start vpltool review again");
        await new Promise((done) => setTimeout(done, 800));
      }
    }
    this.busy = false;
  }
}
