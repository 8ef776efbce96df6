// Search in pages that are opened from disk. Browsers start no worker from file://; a hidden frame
// runs the same script instead. Material for MkDocs asks for a polyfill of this name.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      // What the script posts is for the page, not for the frame that it runs in.
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.ready = new Promise(resolve => {
        const script = inside.document.createElement("script")
        script.onload = resolve
        script.src = address
        inside.document.body.append(script)
      })
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(
        new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
