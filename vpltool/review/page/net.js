// Requests to the server, and the queue of what is not saved yet: each change is sent once the one
// before it is saved, and again until the server answers.

export async function get(path, query = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`);
  if (!answer.ok) throw await problem(answer);
  return answer;
}

export const getJson = async (path, query) => (await get(path, query)).json();

export async function getArray(path, query, Kind) {
  const answer = await get(path, query);
  const [width, height] = answer.headers.get("X-Size").split("x").map(Number);
  return { width, height, data: new Kind(await answer.arrayBuffer()) };
}

export async function post(path, body) {
  const answer = await fetch(path, { method: "POST", body: JSON.stringify(body) });
  if (!answer.ok) throw await problem(answer);
  return answer.json();
}

async function problem(answer) {
  let message = answer.statusText;
  try { message = (await answer.json()).error; } catch { /* not ours */ }
  return Object.assign(new Error(message), { status: answer.status });
}

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
        this.told(this.size, error.status === 403 ? error.message
          : "The server does not answer. Start vpltool review again");
        await new Promise((done) => setTimeout(done, 800));
      }
    }
    this.busy = false;
  }
}
